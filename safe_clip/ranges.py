"""Ranges of numbers that settings may have, and the one check of them."""

import math
import numbers
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UserError

HUGE = 10**9  # beyond which a count is a slip, and what computes with it overflows


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`.

    Args:
        low, high: the bounds.
        above, below: whether the bounds themselves are left out.
        whole: whether a number with a fraction is.
        unset: another value that stands for none.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    unset: float | None = None

    def fault(self, value: Any) -> str | None:
        """What a value must be if it is not in the range; `None` if it is."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return f"a {'whole ' * self.whole}number"
        if value == self.unset:
            return None
        if self.whole and not isinstance(value, numbers.Integral):
            return "a whole number"
        # Of NaN, no comparison is true.
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= min(self.high, sys.float_info.max)
        return None if low and high else self._words(value)

    def _words(self, value: Any) -> str:
        low = f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        if self.high == math.inf:
            return f"{low} and finite" if value > self.low else low
        if self.above or self.below:
            return f"{low} and {'below' if self.below else 'up to'} {self.high:g}"
        return low if self.high == HUGE and value < self.low else f"from {self.low:g} to {self.high:.15g}"


COUNT = Range(1, HUGE, whole=True)  # of what there has to be one at least
SIZE = Range(0, HUGE, whole=True)
POSITIVE = Range(0, above=True)
AMOUNT = Range(0)
SHARE = Range(0, 1)
DROPPED = Range(0, 1, below=True)  # a share that is not all
SEED = Range(0, 2**32 - 1, whole=True)  # what NumPy takes


def check_ranges(settings: Any, ranges: Mapping[str, Range]) -> None:
    """Raises `UserError` for the first setting that is out of its range; `None` is none, and of a list each counts.

    Args:
        settings: an object with attributes of these names.
        ranges: by name.
    """
    for name, allowed in ranges.items():
        value = getattr(settings, name)
        for each in value if isinstance(value, list | tuple) else [value]:
            fault = None if each is None else allowed.fault(each)
            if fault:
                raise UserError(f"--{name} is {shown(each)}; it must be {fault}.")


def shown(value: Any) -> str:
    """A value in few letters."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "too large"
