"""Errors that the person at the keyboard can mend."""

import errno
import getpass
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from .stopping import at_once, handled, raise_stopped, reader_left, silence

FULL = "|".join(str(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# What a library's error says where the machine has too little of something, which is short, and the cure. Each library
# has types of its own for these, and some have none.
SHORTAGES = {
    # Of torch, which passes tensors between processes by files there.
    r"shared memory|/dev/shm|</torch_|signal: Bus error|torch_\d+_\d+_\d+": (
        "the shared memory (/dev/shm) is too small for what processes that read rows pass on",
        "Use --dataloader_num_workers 0 (of safe-clip eval: --num_workers 0), or fewer, or a smaller batch; in a "
        "container, give it more (`--shm-size 8g`). --resume_from_checkpoint last goes on from the last checkpoint.",
    ),
    r"Too many open files|Errno 24\b": (
        "too many files are open at once",
        "Allow more with `ulimit -n 65536`, or use fewer --dataloader_num_workers (of safe-clip eval: --num_workers).",
    ),
    # Python and pyarrow; safetensors; datasets; torch, which tells no number.
    rf"(?i:errno|os error) (?:{FULL})\b|Not enough disk space|unexpected pos \d+ vs|StreamWriter failed": (
        "the disk is full",
        "Free some space, or choose another --output_dir; HF_HOME says where `datasets` and the Hub's files are. "
        "A checkpoint that was whole stays so: --resume_from_checkpoint last goes on from it.",
    ),
    # Of torch too, but where tensors of the dead process were on their way, only where it was raised tells.
    r"DataLoader worker .*(?:killed by signal|exited unexpectedly)| in .*torch\.multiprocessing\.reductions": (
        "a process that reads rows was ended from outside, most likely because memory ran out",
        "Use fewer --dataloader_num_workers (of safe-clip eval: --num_workers) or smaller images; in a container, give "
        "it more memory and `--shm-size`. --resume_from_checkpoint last goes on from the last checkpoint.",
    ),
    r"OutOfMemoryError|out of memory|can't allocate memory": (
        "the device has too little memory",
        "Use a smaller --per_device_train_batch_size with more --gradient_accumulation_steps (or, for as many to be "
        "compared with each other, with --contrastive_batch_size), and a smaller "
        "--per_device_eval_batch_size (of safe-clip eval: --batch_size, of generate: --generation_batch_size).",
    ),
}


class UserError(ValueError):
    """Bad input: one line that names what is wrong, where, and the cure.

    Args:
        message: that line.
        code: what a program ends with.
    """

    def __init__(self, message: str, code: int = 1):
        self.code = code
        # A data-loading worker's error is raised anew with its traceback for a message; only what
        # stood in the original is worth reading.
        message = message.rpartition(f"{__name__}.{type(self).__name__}: ")[2]
        super().__init__(" ".join(message.split()))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; where it has none, what kind of error it is."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def hub_trouble(error: BaseException | None) -> str | None:
    """What to do where the Hub answered that it cannot serve just now; `None` where that is not what went wrong."""
    for each in _behind(error):
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status == 429:
            return (
                "the Hub answers that too many requests came from here (429). Wait some minutes, and log in with "
                "`hf auth login`, which allows more."
            )
        if status is not None and status >= 500:
            return f"the Hub has a fault of its own ({status}). Try again later; what was fetched is kept."
    return None


def explained(error: BaseException | None) -> str | None:
    """What to do where a full disk, a killed process or too little memory is behind an error.

    Args:
        error: anything that was raised; what it was raised from is looked at too.

    Returns:
        One line with the cure, or `None` for any other error.
    """
    for each in _behind(error):
        modules = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(each.__traceback__)]
        said = f"{type(each).__name__}: {first_line(each)} in {modules}"
        for pattern, (short, cure) in SHORTAGES.items():
            if re.search(pattern, said):
                return f"{short} ({first_line(each)}). {cure}"
    return None


def run(main: Callable[..., None], *args: Any) -> None:
    """Runs a script's `main`, which ends in one line where a person can mend what went wrong, else in the traceback.

    Where it is stopped, by Ctrl-C or SIGTERM, it ends in one line too; a second time ends it at once.

    Raises:
        SystemExit: with that line, or after it with the status that goes with it.
    """
    with handled(raise_stopped):
        try:
            check_home()
            main(*args)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            at_once()
            print(f"\n{error}" if str(error) else "\ninterrupted.", file=sys.stderr, flush=True)
            sys.exit(getattr(error, "code", 130))
        except Exception as error:
            if any(isinstance(each, BrokenPipeError) for each in _behind(error)) and reader_left():
                silence()
                sys.exit(128 + 13)  # as what ends by SIGPIPE
            said = str(error) if isinstance(error, UserError) else explained(error)
            if said is None:
                raise
            code = getattr(error, "code", 1)
            if code == 1:
                sys.exit(f"error: {said}")
            print(f"error: {said}", file=sys.stderr)
            sys.exit(code)


def check_home() -> None:
    """Raises `UserError` where there is no home, under whose name libraries would make a folder `~` right here, and
    gives a user without a name one, which some ask for."""
    if not os.path.isabs(os.path.expanduser("~")):
        raise UserError(
            f"the user of number {os.getuid()} has no home folder, where what is downloaded is kept: set HOME to a "
            "folder that may be written."
        )
    kept = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    place = kept = os.path.abspath(os.path.expanduser(kept))
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if place != kept and "HF_DATASETS_CACHE" not in os.environ and not os.access(place, os.W_OK):
        raise UserError(f"{kept}, where caches are kept, cannot be made: set HF_HOME to a folder that may be written.")
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def missing_tokenizer(name: str, error: ImportError) -> UserError:
    """What to say of a tokenizer whose library is not installed."""
    if "sentencepiece" in str(error).lower() or "protobuf" in str(error).lower():
        return UserError(
            f"--model {name} requires sentencepiece and protobuf for its tokenizer: pip install 'safe-clip[siglip]'."
        )
    return UserError(f"--model {name} has a tokenizer that requires what is not installed: {first_line(error)}")
