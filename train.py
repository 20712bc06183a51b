"""Makes a CLIP safe: what `safe-clip train` does, from a checkout. `python train.py --help` lists its settings."""

import sys

from safe_clip.cli.train import main
from safe_clip.errors import run

if __name__ == "__main__":
    run(main, sys.argv[1:])
