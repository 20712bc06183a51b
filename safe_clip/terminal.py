"""What a terminal shows that a file does not: colours."""

import os
import sys
from typing import TextIO

CODES = {"gain": "32", "loss": "31", "strong": "1"}


def in_colour(stream: TextIO | None = None) -> bool:
    """Whether a stream, by default standard output, shows colours: a terminal's does, unless NO_COLOR is set."""
    stream = sys.stdout if stream is None else stream
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def coloured(text: str, kind: str | None, colour: bool) -> str:
    """Text as a `"gain"`, a `"loss"` or `"strong"`, where colours are shown."""
    return f"\x1b[{CODES[kind]}m{text}\x1b[0m" if colour and kind else text
