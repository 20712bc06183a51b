"""`python -m safe_clip` is `safe-clip`."""

from .cli import command

command()
