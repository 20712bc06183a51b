"""The tensors of a checkpoint: what they are called there, and whether they are all that a model consists of."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import get_checkpoint_shard_files

from ..errors import UserError
from .families import family_of

# What compiling and distributing put around a module, as parts of the names of its weights.
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
FLOATS = {"F64", "F32", "F16", "BF16"}  # safetensors' names of the types that hold weights as they are
LARGEST_SCALE = 10.0  # of CLIPs whose factor was not stored in place of its logarithm
POINTER = b"version https://git-lfs"
NAMED = 3  # tensors that a message names


class Stored(NamedTuple):
    """A tensor in a file: where it is, its type under safetensors' name, and its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


class Damaged(UserError):
    """A file of a checkpoint is not what its name says."""

    def __init__(self, file: str, fault: str):
        super().__init__(f"cannot be opened: its {file} {fault}. Download it anew.")


class Misfit(ValueError):
    """The tensors of a checkpoint are not those of the model."""


def find_file(path: str, file: str, **where: str | None) -> str | None:
    """The local path of a folder's or Hub repository's file, or `None` where it has no such file.

    Args:
        path: a folder or a Hub id.
        file: its name there.
        **where: `revision` and `token`.

    Raises:
        LocalEntryNotFoundError: nobody can be asked for it.
    """
    if Path(path).is_dir():
        found = Path(path, file)
        return str(found) if found.is_file() else None
    try:
        return hf_hub_download(path, file, **where)
    except RemoteEntryNotFoundError:
        return None


def weight_files(path: str, names: Iterable[str] = (SAFE_WEIGHTS_NAME,), **where: str | None) -> list[str]:
    """The safetensors files of a folder or Hub repository; none if it has none. Arguments as for `find_file`.

    Args:
        names: what a single file may be called. Shards are those of transformers.

    Raises:
        LocalEntryNotFoundError: some of the names were not found here, and nobody can be asked for them.
        Damaged: the index of shards is not whole, or a shard is missing.
    """
    unsure = None
    for name in (*names, SAFE_WEIGHTS_INDEX_NAME):
        try:
            found = find_file(path, name, **where)
        except LocalEntryNotFoundError as error:
            unsure = error
            continue
        if found and name == SAFE_WEIGHTS_INDEX_NAME:
            return _shards(path, found, **where)
        if found:
            return [found]
    if unsure is not None:
        raise unsure
    return []


def _shards(path: str, index: str, **where: str | None) -> list[str]:
    try:
        names = sorted({str(name) for name in json.loads(Path(index).read_bytes())["weight_map"].values()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(SAFE_WEIGHTS_INDEX_NAME, "does not say in which files the tensors are") from error
    if not names:
        raise Damaged(SAFE_WEIGHTS_INDEX_NAME, "names no files")
    if not Path(path).is_dir():
        return get_checkpoint_shard_files(path, index, **where)[0]
    if missing := [name for name in names if not Path(path, name).is_file()]:
        raise Damaged(missing[0], f"is missing, one of {len(names)} files that {SAFE_WEIGHTS_INDEX_NAME} names")
    return [str(Path(path, name)) for name in names]


def stored_tensors(files: Iterable[str]) -> dict[str, Stored]:
    """What safetensors files hold, by name; no tensor is read.

    Raises:
        Misfit: a name occurs twice, so that either tensor could be meant, or the weights were not downloaded.
        Damaged: a file is cut off, or no safetensors file.
    """
    stored: dict[str, Stored] = {}
    for file in files:
        with open(file, "rb") as start:
            if start.read(len(POINTER)) == POINTER:
                raise Misfit(f"{Path(file).name} is a pointer of Git LFS to them: run `git lfs pull` in its folder")
        try:
            tensors = safe_open(file, "pt")
        except SafetensorError as error:
            raise Damaged(Path(file).name, f"is cut off or no safetensors file ({error})") from error
        with tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if name in stored:
                    raise Misfit(f"{name} is both in {Path(stored[name].file).name} and in {Path(file).name}")
                header = tensors.get_slice(name)
                stored[name] = Stored(file, header.get_dtype(), tuple(header.get_shape()))
    return stored


def fit(stored: Mapping[str, Stored], expected: Mapping[str, Tensor], made: Collection[str] = ()) -> dict[str, str]:
    """Finds every tensor that a model consists of among those of a checkpoint.

    Wrappers around modules (`_orig_mod.`), and whatever stands before all names (`model.`, `base_model.model.`), are
    understood.

    Args:
        stored: as `stored_tensors` gives it.
        expected: the model's own tensors by name, on any device, such as `meta`.
        made: names that are passed over: buffers that the model makes for itself, which old checkpoints hold.

    Returns:
        The name in the checkpoint of each expected tensor.

    Raises:
        Misfit: tensors are missing, left over, of another shape, or not floating-point numbers.
    """
    known = {*expected, *made}
    names = {name: _core(name, known) for name in stored}
    twice = [name for name, count in Counter(names.values()).items() if count > 1 and name in expected]
    found = {ours: theirs for theirs, ours in names.items() if ours in expected}
    if not found:
        raise Misfit(f"none of its {len(stored)} tensors ({_some(list(stored))}) has the name of one of the model's")
    missing = [name for name in expected if name not in found]
    unknown = [theirs for theirs, ours in names.items() if ours not in expected and ours not in made]
    shapes = [
        f"{name} ({_by(stored[theirs].shape)} in the file, {_by(expected[name].shape)} by the configuration)"
        for name, theirs in found.items()
        # A scale is a number, or a list of one.
        if stored[theirs].shape != expected[name].shape
        and not (stored[theirs].shape == (1,) and not expected[name].dim())
    ]
    types = [f"{name} ({stored[theirs].dtype})" for name, theirs in found.items() if stored[theirs].dtype not in FLOATS]
    faults = {"missing": missing, "left over": unknown, "there twice": twice, "of another shape": shapes}
    faults["not stored as floating-point numbers"] = types
    if faulty := [
        f"{kind} ({len(items)} of {len(expected)}): {_some(items)}" for kind, items in faults.items() if items
    ]:
        adapter = any(part in name for name in unknown for part in ("lora_", ".base_layer."))
        faulty += ["adapter layers are still in it, call `merge_and_unload()` before saving"] if adapter else []
        raise Misfit("; ".join(faulty))
    return found


def read(stored: Mapping[str, Stored], names: Mapping[str, str], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The expected tensors, read under the names that `fit` found."""
    tensors = {}
    for file in dict.fromkeys(each.file for each in stored.values()):
        with safe_open(file, "pt") as opened:
            for name, theirs in names.items():
                if stored[theirs].file == file:
                    tensors[name] = opened.get_tensor(theirs).reshape(expected[name].shape)
    return tensors


def broken_weights(model: PreTrainedModel) -> str | None:
    """What is wrong with the values of a CLIP's weights, if anything."""
    named = dict(model.named_parameters())
    if names := [name for name, weight in named.items() if not torch.isfinite(weight).all()]:
        return f"tensors hold values that are not finite numbers ({len(names)}): {_some(names)}"
    if names := [
        name for name, weight in named.items() if weight.dim() > 1 and "lora_" not in name and not weight.any()
    ]:
        return f"tensors hold nothing but zeros ({len(names)}): {_some(names)}"
    name = family_of(model).logit_scale
    if name is None:
        return None
    scale = getattr(model, name).item()
    if not -LARGEST_SCALE <= scale <= LARGEST_SCALE:
        return f"{name} is {scale:g}, the logarithm of a factor, which is 4.6 at most for other CLIPs"
    return None


def _core(name: str, known: Iterable[str]) -> str:
    """A name without wrappers, from where the model's own name for it begins, if it has one."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    ends = (".".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end in known), name)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _some(items: list[str]) -> str:
    return ", ".join(items[:NAMED]) + (", ..." if len(items) > NAMED else "")
