"""The command `safe-clip`: one module a verb."""

import difflib
import importlib
import sys

from .. import __version__
from ..errors import UserError, run

VERBS = {
    "train": "make a CLIP or SigLIP safe",
    "eval": "measure a model, beside its original",
    "embed": "embed a folder of images, or a data set, into an index",
    "search": "search an index by a text or an image",
    "generate": "see what Stable Diffusion draws, or LLaVA says, with a safe CLIP in it",
    "app": "try a safe model beside its original, in the browser",
    "monitor": "watch what a safe model does with the queries of a log",
    "audit": "look at data before anything is trained on them",
    "fetch": "fetch the images behind a column of addresses",
    "export": "write a model for other tools, or a less strong one",
    "cache": "list what is computed once and kept, or remove it",
}
HELP = f"""Usage: safe-clip VERB [--flag value ...]

{{}}

To begin:
  safe-clip train     makes the bundled demo model safe, in minutes on two CPU cores
  safe-clip eval      measures what that made, beside its original

safe-clip VERB --help lists the settings of each. safe-clip {__version__}.
"""


def main(argv: list[str]) -> None:
    """Does what a verb does, with the flags after it.

    Raises:
        UserError: there is no such verb, or a verb is not to be done as it was asked for.
    """
    verb, *flags = argv or ["--help"]
    if verb in ("--version", "-V"):
        print(f"safe-clip {__version__}")
    elif verb in ("--help", "-h", "help"):
        print(HELP.format("\n".join(f"  {name:10}  {what}" for name, what in VERBS.items())), end="")
    elif verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean 'safe-clip {close[0]}'?" if close else f"It must be among {', '.join(VERBS)}."
        raise UserError(f"safe-clip {verb}: there is no such command. {hint} safe-clip --help says what each does.", 2)
    else:
        importlib.import_module(f".{verb}", __name__).main(flags)


def command() -> None:
    """What is installed as `safe-clip`."""
    run(main, sys.argv[1:])


def door(verb: str) -> None:
    """What starts a verb under another name."""
    run(main, [verb, *sys.argv[1:]])
