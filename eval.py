"""Measures a CLIP: what `safe-clip eval` does, from a checkout. `python eval.py --help` lists its settings."""

import sys

from safe_clip.cli.eval import main
from safe_clip.errors import run

if __name__ == "__main__":
    run(main, sys.argv[1:])
