"""Errors that the person at the keyboard can mend."""


class UserError(ValueError):
    """Bad input: one line that names what is wrong, where, and the cure."""

    def __init__(self, message: str):
        # A data-loading worker's error is raised anew with its traceback for a message; only what
        # stood in the original is worth reading.
        message = message.rpartition(f"{__name__}.{type(self).__name__}: ")[2]
        super().__init__(" ".join(message.split()))
