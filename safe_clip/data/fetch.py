"""`python -m safe_clip.data.fetch` is `safe-clip fetch`."""

from ..cli import door

if __name__ == "__main__":
    door("fetch")
