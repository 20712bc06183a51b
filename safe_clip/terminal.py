"""What a person sees of a run: colours and bars on a terminal or in a notebook, lines in a file."""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm
from tqdm.std import tqdm as text_tqdm

CODES = {"gain": "32", "loss": "31", "strong": "1"}
SHORT = 1.0  # seconds that need no bar
BETWEEN = 60.0  # seconds between two lines of progress in a file
LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left"

_phases: list[Any] = []  # the bar of the phase that is open, if one is


def in_colour(stream: TextIO | None = None) -> bool:
    """Whether a stream, by default standard output, shows colours: a terminal's does, unless NO_COLOR is set."""
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str, kind: str | None, colour: bool) -> str:
    """Text as a `"gain"`, a `"loss"` or `"strong"`, where colours are shown."""
    return f"\x1b[{CODES[kind]}m{text}\x1b[0m" if colour and kind else text


def command_line(*words: str) -> str:
    """A command `safe-clip *words` that can be pasted where this program was started."""
    beside = Path(sys.executable).with_name("safe-clip")
    found = shutil.which("safe-clip")
    if found and Path(found) == beside:
        called = ["safe-clip"]
    elif beside.exists():  # in an environment that is not activated
        here = os.path.relpath(beside)
        called = [str(beside) if here.startswith(os.pardir) else here]
    else:
        called = ["safe-clip"] if found else [sys.executable, "-m", "safe_clip"]
    return shlex.join([*called, *words])


def draws_bars() -> bool:
    """Whether bars can be drawn: on a terminal and in a notebook, not in a file."""
    ipython = sys.modules.get("IPython")  # which libraries import outside notebooks too, as they do its kernel
    return sys.stderr.isatty() or (ipython is not None and hasattr(ipython.get_ipython(), "kernel"))


class _Lines:
    """A file that gets each state of a bar as a line, in place of one that is drawn over."""

    def __init__(self, file: TextIO):
        self.file, self.last = file, ""

    def write(self, text: str) -> None:
        state = text.strip().rsplit(",", 2)[0]  # without the times
        if state and state != self.last:  # a bar that is full is drawn once more as it is closed
            self.file.write(f"{text.strip()}\n")
            self.last = state

    def flush(self) -> None:
        self.file.flush()


def progress_bar(iterable: Iterable | None = None, **options: Any) -> Any:
    """As `tqdm(...)`, where a bar can be drawn; in a file, a line a minute; in a `phase`, its share of that."""
    if _phases:
        return _Part(iterable, options.get("total"))
    options = {"delay": SHORT, "dynamic_ncols": True, "leave": True} | options
    if draws_bars():
        return tqdm(iterable, **options)
    # With one item as the least, none of tqdm's threads prints a line of its own between two of these.
    every = {"mininterval": BETWEEN, "delay": BETWEEN, "miniters": 1, "dynamic_ncols": False}
    return text_tqdm(iterable, **options | every | {"file": _Lines(sys.stderr), "bar_format": LINE})


@contextmanager
def phase(desc: str, total: int, disable: bool = False) -> Iterator[None]:
    """One bar for all that goes on inside: each `bar` there moves this one on.

    Args:
        desc: what goes on.
        total: of all bars inside.
        disable: show nothing.
    """
    if _phases:
        yield
        return
    if not disable and not draws_bars():
        print(f"{desc}: {total:,} items.", file=sys.stderr, flush=True)
    with progress_bar(total=total, desc=desc, unit=" items", disable=disable) as whole:
        _phases.append(whole)
        try:
            yield
            whole.update(max(0, total - whole.n))
        finally:
            _phases.pop()


@contextmanager
def told(total: int, tell: Callable[[int, int], None]) -> Iterator[None]:
    """As `phase`, for what is shown elsewhere: `tell(done, total)` is called as each `bar` inside moves on."""
    if _phases:
        yield
        return
    _phases.append(_Told(total, tell))
    try:
        yield
    finally:
        _phases.pop()


class _Told:
    """What stands for the bar of a phase that is shown elsewhere."""

    def __init__(self, total: int, tell: Callable[[int, int], None]):
        self.n, self.total, self.tell = 0, total, tell

    def update(self, count: int) -> None:
        self.n += count
        self.tell(self.n, self.total)


class _Part:
    """What stands for a bar where a phase is open."""

    def __init__(self, iterable: Iterable | None, total: int | None):
        self.iterable, self.total = iterable, total

    def __iter__(self) -> Iterator:
        for each in self.iterable:
            yield each
            self.update()

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        whole = _phases[0]
        whole.update(min(count, max(0, whole.total - whole.n)))

    def close(self) -> None:
        pass


def say(text: str) -> None:
    """Prints a line, above a bar if one is drawn."""
    with tqdm.external_write_mode(file=sys.stdout):
        print(text, flush=True)


def _tells_something(record: logging.LogRecord) -> bool:
    """False for transformers' warning of special tokens outside the vocabulary: of SigLIPs, which use none."""
    return "must be `None` or an integer within the vocabulary" not in record.getMessage()


def quiet_libraries() -> None:
    """Leaves out what other libraries show of their own progress, as far as it tells a person nothing."""
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # loading weights, a bar a file
    logging.getLogger("transformers.configuration_utils").addFilter(_tells_something)
    if not draws_bars():
        datasets.disable_progress_bars()
