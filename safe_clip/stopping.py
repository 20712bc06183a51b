"""How programs end where they are stopped from outside, or where nobody reads them any more."""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A program was asked to stop: by Ctrl-C, or by SIGTERM.

    Args:
        number: the signal's.
        message: what the person reads.
    """

    def __init__(self, number: int = signal.SIGINT, message: str = "interrupted."):
        super().__init__(message)
        self.code = 128 + number  # as shells have it


@contextlib.contextmanager
def handled(handler: Any) -> Iterator[None]:
    """Has a function called with a signal's number where one of `SIGNALS` comes; outside the main thread, and for those
    that somebody else handles or ignores, nothing is changed.

    Processes that this one forks are left alone: Ctrl-C reaches them too, and they end with this one.
    """
    main, before = os.getpid(), {}

    def called(number: int, frame: Any) -> None:
        if os.getpid() == main:
            handler(number)
        elif number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    with contextlib.suppress(ValueError):  # not the main thread
        for number in SIGNALS:
            known = signal.getsignal(number)
            if known in (signal.SIG_DFL, signal.default_int_handler) or getattr(known, "ours", False):
                before[number] = known
                called.ours = True
                signal.signal(number, called)
    try:
        yield
    finally:
        for number, known in before.items():
            if signal.getsignal(number) is called:
                signal.signal(number, known)


def raise_stopped(number: int) -> None:
    """The first signal ends the program in order, a second one at once."""
    at_once()
    raise Stopped(number)


def at_once() -> None:
    """From now on a signal ends the program wherever it is."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def reader_left() -> bool:
    """Whether what reads this program's output, such as `head`, has ended."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            poll = select.poll()
            poll.register(stream.fileno(), select.POLLERR)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return True
    return False


def silence() -> None:
    """Lets what is still written go nowhere, so that the end of the program has nothing to complain of."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
