"""What kind of value each setting of `transformers` takes, and what it says where one does not fit, in one line."""

import contextlib
import functools
import numbers
import os
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import fields
from enum import Enum
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from .errors import UserError, first_line

KINDS = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: ((str, os.PathLike), "a text"),
    dict: (dict, "a mapping"),
    list: ((list, tuple), "a list"),
}


# What `transformers` takes besides the types that it declares: it converts these, or passes them on to what does.
CONVERTED = {
    "accelerator_config": AcceleratorConfig,
    "fsdp": (bool, list),
    "hub_token": bool,
    "max_grad_norm": type(None),
    "resume_from_checkpoint": bool,
    "trackio_static_space_id": bool,
}


@functools.cache
def _hints(settings: type) -> dict[str, Any]:
    return typing.get_type_hints(settings)


def wrong_kind(settings: type, each: Any, value: Any) -> str | None:
    """What a value of a setting must be if it is of another type; `None` if it is not, or if the type is one of
    `transformers`' own."""
    hint = _hints(settings)[each.name]
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    hints = [typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if union else (hint,))]
    if isinstance(value, CONVERTED.get(each.name, ())):
        return None
    kinds = [KINDS[kind] for kind in hints if kind in KINDS]
    if value is None:
        takes_none = each.default is None or not set(hints) <= {bool, int, float}
        return None if takes_none else " or ".join(words for _, words in kinds)
    if len(kinds) + (type(None) in hints) < len(hints) and not isinstance(value, int | float):
        return None
    fits = any(isinstance(value, kind) for kind, _ in kinds)
    if isinstance(value, bool) and bool not in hints:
        fits = False
    return None if fits or not kinds else " or ".join(words for _, words in kinds)


@functools.cache
def enums() -> dict[str, tuple[str, ...]]:
    """The settings of `transformers` that take one of several words, and these."""
    hints = typing.get_type_hints(TrainingArguments)
    found = {}
    for each in fields(TrainingArguments):
        for kind in typing.get_args(hints[each.name]) or (hints[each.name],):
            if isinstance(kind, type) and issubclass(kind, Enum):
                found[each.name] = tuple(member.value for member in kind)
    return found


@contextlib.contextmanager
def restated(settings: TrainingArguments) -> Iterator[None]:
    """Turns what `transformers` raises of settings, each kind of error of its own, into one line that names them."""
    given = settings._changed
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or first_line(error)
        known = [each.name for each in fields(settings)]
        named = [name for name in known if re.search(rf"\b{name}\b", said)]
        likely = [name for name in given if re.search(rf"\b{re.escape(str(given[name]))}\b", said)]
        flags = [name for name in named if name in given] or named or likely or list(given)
        told = ", ".join(f"--{name} {getattr(settings, name)}" for name in flags)
        raise UserError(f"{told or 'the settings'}: {said}") from error
