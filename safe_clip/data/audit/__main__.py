"""`python -m safe_clip.data.audit` is `safe-clip audit`."""

from ...cli import door

if __name__ == "__main__":
    door("audit")
