"""Errors that the person at the keyboard can mend."""


class UserError(ValueError):
    """Bad input: one line that names what is wrong, where, and the cure."""

    def __init__(self, message: str):
        # A data-loading worker's error is raised anew with its traceback for a message; only what
        # stood in the original is worth reading.
        message = message.rpartition(f"{__name__}.{type(self).__name__}: ")[2]
        super().__init__(" ".join(message.split()))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; where it has none, what kind of error it is."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def hub_trouble(error: BaseException | None) -> str | None:
    """What to do where the Hub answered that it cannot serve just now; `None` where that is not what went wrong."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 429:
            return (
                "the Hub answers that too many requests came from here (429). Wait some minutes, and log in with "
                "`hf auth login`, which allows more."
            )
        if status is not None and status >= 500:
            return f"the Hub has a fault of its own ({status}). Try again later; what was fetched is kept."
        error = error.__cause__ or error.__context__
    return None
