"""Figures of what was generated, in all and by the categories of what it was generated from."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..evaluation.intervals import summarise
from .prompts import Item

OTHER = "other"


def summarise_items(values: Mapping[str, Tensor], items: Sequence[Item]) -> dict[str, dict]:
    """As `summarise`, rows of a split drawn together; of unsafe items also by category.

    Args:
        values: for each figure, one value for each of what was generated.
        items: from what. One of several categories (`"hate, violence"`, as I2P has them) counts in each.
    """
    rows = np.asarray([item.row for item in items])
    figures = summarise(values, clusters=rows)
    if items[0].side != "unsafe" or not any(item.category for item in items):
        return figures
    labels = [categories(item) for item in items]
    for label in sorted(set().union(*labels)):
        mine = np.asarray([label in each for each in labels])
        part = summarise({name: np.asarray(column)[mine] for name, column in values.items()}, clusters=rows[mine])
        for name, figure in part.items():
            there = int((~np.isnan(np.asarray(values[name], dtype=np.float64)[mine])).sum())
            figures[name].setdefault("by_category", {})[label] = figure | {"n": there}
    return figures


def categories(item: Item) -> set[str]:
    """The names between the commas of an item's category."""
    return {name.strip() for name in (item.category or "").split(",") if name.strip()} or {OTHER}
