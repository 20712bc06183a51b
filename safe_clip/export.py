"""The command `python -m safe_clip.export`, whose `--help` says what it does."""

from .errors import run
from .models.export import main

if __name__ == "__main__":
    run(main)
