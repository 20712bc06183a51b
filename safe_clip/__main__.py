"""`python -m safe_clip` is `safe-clip`."""

from .cli import command

if __name__ == "__main__":
    command()
