"""The command `safe-clip`: one module a verb."""

import importlib
import sys

from .. import __version__
from ..errors import UserError, run

VERBS = {
    "train": "make a CLIP safe",
    "eval": "measure a CLIP, beside its original",
}
HELP = f"""Usage: safe-clip VERB [--flag value ...]

{{}}

safe-clip VERB --help lists the settings of each. safe-clip {__version__}.
"""


def main(argv: list[str]) -> None:
    """Does what a verb does, with the flags after it."""
    verb, *flags = argv or ["--help"]
    if verb in ("--version", "-V"):
        print(f"safe-clip {__version__}")
    elif verb in ("--help", "-h", "help"):
        print(HELP.format("\n".join(f"  {name:10}  {what}" for name, what in VERBS.items())))
    elif verb in VERBS:
        importlib.import_module(f".{verb}", __name__).main(flags)
    else:
        raise UserError(
            f"safe-clip {verb}: it must be among {', '.join(VERBS)}. safe-clip --help says what each does.", 2
        )


def command() -> None:
    """What is installed as `safe-clip`."""
    run(main, sys.argv[1:])
