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

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from ..errors import UserError, first_line

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
        likely = [name for name in given if any(re.search(rf"\b{word}\b", said) for word in _words(given[name]))]
        flags = [name for name in named if name in given] or named or likely or list(given)
        values = ", ".join(f"--{name} {getattr(settings, name)}" for name in flags)
        raise UserError(f"{values or 'the settings'}: {said}") from error


def _words(value: Any) -> list[str]:
    """What an error may quote of a setting's value, as patterns: it, or the keys of a mapping."""
    return [re.escape(str(each)) for each in (value if isinstance(value, dict) else (value,))]


def check_optimizer_args(optim_args: str | None) -> None:
    """Raises `UserError` where they are not `name=value` and so on."""
    for each in (optim_args or "").replace(" ", "").split(",") if optim_args else ():
        if not re.fullmatch("[^=]+=[^=]+", each):
            raise UserError(f"--optim_args {optim_args}: it must be NAME=VALUE,NAME=VALUE, and '{each}' is none.")


def check_compile(backend: str | None, mode: str | None) -> None:
    """Raises `UserError` where torch knows no such way to compile."""
    known = [each.value.lower() for each in DynamoBackend]
    if backend is not None and backend.lower() not in known:
        raise UserError(f"--torch_compile_backend {backend}: it must be among {', '.join(known)}.")
    if mode is None:
        return
    try:
        torch.compile(lambda: None, backend=backend or "inductor", mode=mode)
    except Exception as error:  # backends are modules of others, with errors of their own
        raise UserError(f"--torch_compile_mode {mode}: {first_line(error)}") from error
