"""How much of a data set may be unusable: the one policy behind `--on_bad_row skip` and `--max_bad_fraction`."""

from ..errors import UserError


def check_bad_share(bad: int, count: int, most: float, summary: str, details: str) -> None:
    """Raises `UserError` where so many cannot be used that it is no bad luck.

    Args:
        bad: how many of `count` cannot be used.
        most: the largest share of them that is left out, in [0, 1].
        summary: the message up to the reason, such as `3 of 4 rows cannot be used`.
        details: of the message, after the reason.
    """
    if bad and bad == count:
        why = "and none is left"
    elif bad > most * count:
        why = f"more than --max_bad_fraction {most:g} allows"
    else:
        return
    raise UserError(f"{summary}, {why}{details}")
