"""What columns hold, however they are stored, and what tables call their cells."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from datasets import ClassLabel, Dataset, Image, IterableDataset, LargeList, List, Value

Rows = TypeVar("Rows", Dataset, IterableDataset)
TEXTS = ("string", "large_string", "string_view")


def is_text(feature: Any) -> bool:
    """Whether a column holds texts, however they are stored."""
    return isinstance(feature, Value) and feature.dtype in TEXTS


def inner_feature(feature: Any) -> Any:
    """What a list holds, or a list of lists; the feature itself where it is none."""
    while isinstance(feature, List | LargeList | list):
        feature = feature[0] if isinstance(feature, list) else feature.feature
    return feature


def texts_in(feature: Any, cell: Any) -> Iterator[str]:
    """The texts in a cell, in its order: names where it holds numbers of classes, what lists and parts hold, and the
    names of parts that are true.

    Args:
        feature: of its column; `None` where it is not known.
        cell: as `datasets` gives it.
    """
    if isinstance(cell, str):
        yield cell
    elif isinstance(feature, ClassLabel) and isinstance(cell, int | np.integer) and 0 <= cell < feature.num_classes:
        yield feature.int2str(int(cell))
    elif isinstance(cell, Mapping):
        for name, part in cell.items():
            if isinstance(part, bool | np.bool_):
                yield from [name] if part else []
            else:
                inner = feature.get(name) if isinstance(feature, Mapping) else getattr(feature, "feature", None)
                yield from texts_in(inner, part)
    elif isinstance(cell, list | tuple | np.ndarray):
        inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
        for part in cell:
            yield from texts_in(inner, part)


def cell_name(feature: Any, cell: Any) -> str:
    """What tables call a cell: its text, several with commas between them; "" for an empty one."""
    if cell is None or isinstance(cell, str) or isinstance(feature, ClassLabel):
        return "".join(texts_in(feature, cell)).strip()
    if isinstance(cell, list | tuple | np.ndarray | Mapping):
        return ", ".join(filter(None, (text.strip() for text in texts_in(feature, cell))))
    return str(cell).strip()


def stored_images(rows: Rows) -> Rows:
    """Rows whose images are read as they are stored, and not decoded."""
    for column, feature in (rows.features or {}).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows
