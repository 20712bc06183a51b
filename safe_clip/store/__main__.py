"""`python -m safe_clip.store` is `safe-clip cache`."""

from ..cli import door

if __name__ == "__main__":
    door("cache")
