"""By what anything that is kept is known again: digests of bytes, texts, files, weights and settings."""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from .. import __version__

if TYPE_CHECKING:  # slow to import
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

LIBRARIES = ("torch", "transformers", "pillow")
# What is larger is known by its size and by samples that are spread evenly from its beginning to its end and come to
# as much: enough to tell one image or file from another, at a cost that does not grow with them.
WHOLE_FILE = 1 << 23  # bytes
SAMPLES = 8


# ---- Bytes and texts ----


def digest(parts: Iterable[Any]) -> str:
    """128 bits of bytes, or of other buffers, that follow one another: 32 hexadecimal digits."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def short_digest(text: str) -> str:
    """64 bits of a text, 16 hexadecimal digits: the name of a file or folder that is made of it."""
    return xxhash.xxh3_64_hexdigest(text.encode(errors="surrogatepass"))


def secure_digest(text: str) -> str:
    """256 bits of a text that somebody else may choose, for whom two of one digest must be out of reach."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def content_id(*contents: bytes) -> int:
    """A signed 64-bit number that is the same for the same content."""
    state = xxhash.xxh3_64()
    for content in contents:
        state.update(content)
    return int.from_bytes(state.digest(), "little", signed=True)


def captions_digest(parts: Iterable[list[str | None]]) -> str:
    """A digest of a column of captions, which comes in parts."""
    return digest(repr(captions).encode(errors="surrogatepass") for captions in parts)


# ---- Files ----


def file_digest(path: str | Path, whole: int = WHOLE_FILE) -> str:
    """A digest of a file's size and content, of which all is read up to `whole` bytes and as much in samples beyond."""

    def parts() -> Iterator[bytes]:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            yield str(size).encode()
            for start, stop in sampled(size, whole):
                file.seek(start)
                yield file.read(stop - start)

    return digest(parts())


def sampled(size: int, whole: int) -> list[tuple[int, int]]:
    """Which bytes are read of so many."""
    if size <= whole:
        return [(0, size)]
    length = whole // SAMPLES
    starts = [number * (size - length) // (SAMPLES - 1) for number in range(SAMPLES)]
    return [(start, start + length) for start in starts]


# ---- Models ----


def weights_digest(weights: Iterable[tuple[str, "Tensor"]], *settings: str) -> str:
    """A digest of named weights, whatever their order, and of what else decides what a model makes of its inputs."""
    parts = (part for name, tensor in sorted(weights, key=lambda each: each[0]) for part in _held(name, tensor))
    return digest(chain(parts, map(str.encode, settings)))


def stored_weights_digest(folder: Path) -> str | None:
    """The digest of the weights in a model's folder, as of the model that is loaded from it; `None` for none."""
    from safetensors import safe_open

    files = sorted(folder.glob("model*.safetensors"))
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
        where = {name: tensors for tensors in opened for name in tensors.keys()}  # noqa: SIM118
        parts = (part for name in sorted(where) for part in _held(name, where[name].get_tensor(name)))
        return digest(parts) if files else None


def _held(name: str, tensor: "Tensor") -> Iterator[Any]:
    import torch

    yield name.encode()
    yield tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def vocabulary_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A digest of a tokenizer's words and their numbers."""
    from datasets.fingerprint import Hasher

    return Hasher.hash(sorted(tokenizer.get_vocab().items()))


def settings_of(config: "PreTrainedConfig", processor: "ProcessorMixin") -> list[Any]:
    """All that tells one way of embedding from another, besides weights, device and precision."""
    return [
        json.dumps({**config.to_dict(), "_name_or_path": None}, sort_keys=True, default=str),
        *processor_settings(processor),
        [__version__, *(importlib.metadata.version(name) for name in LIBRARIES)],
    ]


def processor_settings(processor: "ProcessorMixin") -> list[str]:
    """All that tells what a processor makes of captions and images."""
    image_processor = processor.image_processor
    return [
        tokenizer_settings(processor.tokenizer),
        processor.tokenizer.padding_side,
        type(image_processor).__name__,
        json.dumps(image_processor and image_processor.to_dict(), sort_keys=True, default=str),
    ]


def backend_of(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer | None":
    """What of the `tokenizers` library does a tokenizer's work; `None` where it is another, such as SentencePiece."""
    return getattr(tokenizer, "backend_tokenizer", None)


def tokenizer_settings(tokenizer: "PreTrainedTokenizerBase") -> str:
    """All that tells what a tokenizer makes of texts, but for padding and cuts."""
    backend = backend_of(tokenizer)
    if backend is None:  # one of SentencePiece's
        words = sorted(tokenizer.get_vocab().items())
        settings = [str(tokenizer.init_kwargs.get(name)) for name in ("do_lower_case", "sp_model_kwargs")]
        settings += [type(tokenizer).__name__, str(tokenizer.special_tokens_map)]
        return json.dumps([words, digest([tokenizer.sp_model.serialized_model_proto()]), *settings])
    # Padding and cuts are set by every call, and no matter for the embeddings.
    return json.dumps({**json.loads(backend.to_str()), "padding": None, "truncation": None}, sort_keys=True)
