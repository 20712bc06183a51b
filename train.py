"""Makes a CLIP safe: what `safe-clip train` does, from a checkout. `python train.py --help` lists its settings."""

from safe_clip.cli import door

if __name__ == "__main__":
    door("train")
