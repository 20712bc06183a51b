"""`python -m safe_clip.export`, which published cards name, is `safe-clip export`."""

from .cli import door

if __name__ == "__main__":
    door("export")
