"""What embeddings depend on besides the items: by which they are known again in a cache."""

import importlib.metadata
import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, ProcessorMixin

from .. import __version__

LIBRARIES = ("torch", "transformers", "pillow")


def weights_digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of named weights, whatever their order."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(weights, key=lambda each: each[0]):
        _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: xxhash.xxh3_128, name: str, tensor: Tensor) -> None:
    digest.update(name.encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def settings_of(config: PreTrainedConfig, processor: ProcessorMixin) -> list[Any]:
    """All that tells one way of embedding from another, besides weights, device and precision."""
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    # Set by every call, and no matter for the embeddings.
    tokenizer.update(padding=None, truncation=None)
    image_processor = processor.image_processor
    return [
        json.dumps({**config.to_dict(), "_name_or_path": None}, sort_keys=True, default=str),
        json.dumps(tokenizer, sort_keys=True),
        config.text_config.max_position_embeddings,
        type(image_processor).__name__,
        json.dumps(image_processor.to_dict(), sort_keys=True, default=str),
        [__version__, *(importlib.metadata.version(name) for name in LIBRARIES)],
    ]


def stored_weights_digest(folder: Path) -> str | None:
    """The digest of the weights in a model's folder, as of the model that is loaded from it; `None` for none."""
    state = xxhash.xxh3_128()
    files = sorted(folder.glob("model*.safetensors"))
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        where = {name: tensors for tensors in opened for name in tensors.keys()}  # noqa: SIM118
        for name in sorted(where):
            _add(state, name, where[name].get_tensor(name))
    return state.hexdigest() if files else None
