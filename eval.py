"""Measures a CLIP: what `safe-clip eval` does, from a checkout. `python eval.py --help` lists its settings."""

from safe_clip.cli import door

if __name__ == "__main__":
    door("eval")
