"""Columns of known data sets, and what they are called here."""

from collections.abc import Mapping
from typing import Any

from datasets import Value

from .column_names import ABOUT, modality, pair_of_captions, senses, words
from .features import inner_feature, is_text
from .items import ITEM_COLUMNS

# Of data sets as they were published: their columns, and what the schema calls them.
PRESETS = {
    "ViSU-Text": {"safe": "safe_caption", "nsfw": "unsafe_caption", "tag": "category"},
    "NSFWCaps": {"caption": "safe_caption", "nsfw_caption": "unsafe_caption", "chosen_category": "category"},
}
LISTS = {"a list of prompts, such as I2P": {"prompt": "unsafe_caption", "categories": "category"}}
# One of these beside prompts tells that they are such a list.
LIST_MARKS = {"categories", "inappropriate_percentage", "nudity_percentage", "q16_percentage", "lexica_url"}
REPLIES = {"response", "responses", "answer", "answers", "completion", "output", "reply", "chosen", "rejected"}


def known_columns(
    columns: list[str], features: Mapping[str, Any] | None = None, sure: bool = True
) -> tuple[str, dict[str, str]] | None:
    """The preset whose captions a data set has, and how it renames the columns that are there.

    Nothing where the data set has captions of the schema already, or where another column makes it doubtful that the
    preset's are captions, or of which side.

    Args:
        columns: the names of all columns.
        features: of them, where they are known.
        sure: give nothing in doubt; otherwise the first preset whose columns there are.
    """
    if {"safe_caption", "unsafe_caption"} & set(columns):
        return None
    pair = pair_of_captions(columns, features)
    for name, mapping in {**PRESETS, **({"pairs of captions": pair} if pair else {}), **LISTS}.items():
        captions = [old for old, new in mapping.items() if new.endswith("caption")]
        if not set(captions) <= set(columns) or not all(_may_hold_text(each, features) for each in captions):
            continue
        if sure and (_undecided_list if name in LISTS else _undecided_pair)(captions, columns, features):
            continue
        return name, {old: new for old, new in mapping.items() if old in columns and new not in columns}
    return None


def _undecided_pair(captions: list[str], columns: list[str], features: Mapping[str, Any] | None) -> bool:
    """Whether another column of captions says its side, or is called one where the preset's own are not, so that
    theirs may be flags."""
    others = [name for name in columns if name not in captions]
    texts = [name for name in others if modality(name, (features or {}).get(name)) == "text"]
    flags = any(modality(name) != "text" for name in captions)
    return any(flags or senses(name) for name in texts)


def _undecided_list(captions: list[str], columns: list[str], features: Mapping[str, Any] | None) -> bool:
    """Whether prompts may be of either side: nothing marks them as unsafe, or there are other items, or verdicts."""
    if not LIST_MARKS & set(columns):
        return True
    others = [name for name in columns if name not in {*captions, *LIST_MARKS}]
    return any(
        name in ITEM_COLUMNS
        or modality(name, (features or {}).get(name)) is not None
        or REPLIES & set(words(name))
        or (senses(name) and not ABOUT & set(words(name)))
        for name in others
    )


def _may_hold_text(column: str, features: Mapping[str, Any] | None) -> bool:
    feature = inner_feature((features or {}).get(column))
    return not isinstance(feature, Value) or is_text(feature) or feature.dtype == "null"
