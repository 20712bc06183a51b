"""Splits by the names that people give them, and parts of splits."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, ReadInstruction, concatenate_datasets

from ..errors import UserError
from .columns import numbered
from .plain import unformatted

logger = logging.getLogger(__name__)

# What a split's name begins with, and which split is meant.
MEANT = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "valid", "validate", "val", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
PART = r"[A-Za-z_][\w.-]*(?:\[[^\]]*\])?"


def meant(split: str) -> str | None:
    """Which of train, validation and test a split's name says: of `"val"`, `"Valid"` and `"validation-00000"`, the
    second; `None` where it says none or several."""
    named = re.findall("[a-z]+", split.casefold())
    found = {role for role, names in MEANT.items() for word in named if word in names}
    return found.pop() if len(found) == 1 else None


def named_splits(splits: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Splits under the names `train` and `validation`, where there are none of these but one whose name says so."""
    renamed = {}
    for role in ("train", "validation"):
        found = [split for split in splits if meant(split) == role]
        if role in splits or not found:
            continue
        if len(found) > 1:
            logger.warning(
                "%s has no split '%s', and several that may be it: %s; none of them is taken for it.",
                where,
                role,
                ", ".join(found),
            )
            continue
        renamed[found[0]] = role
        logger.warning("%s: the split '%s' is taken as '%s'.", where, found[0], role)
    return {renamed.get(split, split): rows for split, rows in splits.items()}


def known_splits(wanted: Sequence[str] | None, splits: Collection[str]) -> list[str] | None:
    """The splits that are asked for, by the names that `named_splits` gives."""
    if wanted is None:
        return None
    return [split if split in splits or meant(split) not in splits else meant(split) for split in wanted]


def part_off(name: str) -> tuple[str, str | None]:
    """A data set's name, and what follows it of a split: `"a.csv:train[:50%]"` is `"a.csv"` and `"train[:50%]"`."""
    found = re.fullmatch(rf"(.+?):({PART}(?:\+{PART})*)", name, re.DOTALL)
    if found is None or Path(name).exists():
        return name, None
    return found[1], found[2]


def take_part(splits: Mapping[str, Any], part: str, where: str) -> dict[str, Any]:
    """A split, or some of its rows, as `datasets` writes it: `train[:50%]`, `train[100:]`, `train[:10]+test[:10]`.

    Returns:
        The rows, under the name of the first split there, or `train` where it is named for no purpose.

    Raises:
        UserError: there is no such split, no such rows, or rows come in a stream and are not to be taken whole.
    """
    names = [split.partition("[")[0] for split in part.split("+")]
    known = known_splits(names, splits)
    for old, name in zip(names, known, strict=True):
        if name not in splits:
            raise UserError(f"{where} has no split '{old}', only {', '.join(splits)}.")
    to = known[0] if known[0] == meant(known[0]) else "train"
    if part == names[0]:
        return {to: splits[known[0]]}
    if not all(isinstance(splits[name], Dataset) for name in known):
        raise UserError(f"{where}:{part}: with --streaming, a split is taken whole; leave out [...] and +.")
    rows = {name: unformatted(splits[name], f"split '{name}' of {where}") for name in known}
    spec = "+".join(f"{name}{each[len(old) :]}" for name, old, each in zip(known, names, part.split("+"), strict=True))
    try:
        asked = ReadInstruction.from_spec(spec).to_absolute({name: len(each) for name, each in rows.items()})
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{where}:{part}: {error}. Write it as in {where}:{to}[:50%] or {where}:{to}[100:200]."
        ) from error
    parts = [numbered(rows[each.splitname]).select(range(each.from_, each.to)) for each in asked]
    made = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    if not len(made):
        raise UserError(f"{where}:{part} has no rows.")
    return {to: made}
