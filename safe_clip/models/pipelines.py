"""The text encoders of diffusers' pipelines, as `REPO_OR_FOLDER:text_encoder` names them."""

import json
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..errors import UserError
from .families.clip_text import CLIP_TEXT
from .weights import Damaged, find_file

INDEX = "model_index.json"  # of a pipeline: its parts, each with its library and class
PART = r"text_encoder(_\d)?"
KINDS = {kind.__name__ for kind in CLIP_TEXT.models}


def split_name(name: str) -> tuple[str, str] | None:
    """The pipeline and its part that a name with `:text_encoder` (`_2`, `_3`) means; `None` for other names."""
    pipeline, colon, part = name.rpartition(":")
    return (pipeline, part) if colon and pipeline and re.fullmatch(PART, part) else None


def text_encoders(path: str, **where: str | None) -> dict[str, str | None]:
    """The classes of a pipeline's text encoders, `None` for one that it does without; none at all where there is no
    pipeline.

    Args:
        path: a folder or a Hub id.
        **where: `revision` and `token`.

    Raises:
        Damaged: its index cannot be read.
    """
    index = find_file(path, INDEX, **where)
    try:
        parts = json.loads(Path(index).read_text(encoding="utf-8")) if index else {}
        return {name: kind[1] if kind else None for name, kind in parts.items() if re.fullmatch(PART, name)}
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise Damaged(INDEX, f"does not say what the pipeline is made of ({error})") from error


def trainable(pipeline: str, encoders: dict[str, str | None]) -> str:
    """What to name in place of a pipeline, or of a part that is no CLIP's text encoder."""
    names = [f"{pipeline}:{part}" for part, kind in encoders.items() if kind in KINDS]
    if not names:
        return "It has no text encoder of a CLIP's, and no other can be trained."
    return f"Name {' or '.join(names)}, which is a CLIP's and is trained on captions alone."


def fetch(pipeline: str, part: str, **where: str | None) -> Path:
    """The folder of a pipeline's text encoder, beside which that of its tokenizer lies; of a Hub repository those two
    are downloaded, and nothing else.

    Args:
        pipeline: a folder or a Hub id.
        part: such as `text_encoder_2`.
        **where: `revision` and `token`.

    Raises:
        UserError: there is no such pipeline, or the part is no CLIP's text encoder.
    """
    encoders = text_encoders(pipeline, **where)
    if not encoders:
        raise UserError(f"it is no pipeline of diffusers with a text encoder (there is none in a {INDEX}).")
    kind = encoders.get(part)
    if kind not in KINDS:
        is_what = f"its {part} is a {kind}, which is no CLIP's" if kind else f"it has no {part}"
        raise UserError(f"{is_what}. {trainable(pipeline, encoders)}")
    if Path(pipeline).is_dir():
        return Path(pipeline, part)
    weights = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors")
    patterns = [f"{part}/{name}" for name in (CONFIG_NAME, *weights)] + [
        f"{_tokenizer(part)}/*.{end}" for end in ("json", "txt")
    ]
    return Path(snapshot_download(pipeline, allow_patterns=patterns, **where), part)


def tokenizer_folder(path: str) -> str:
    """Where a text encoder's tokenizer lies: in a pipeline in a folder of its own, elsewhere beside the weights."""
    folder = Path(path)
    if not folder.is_dir() or not re.fullmatch(PART, folder.name) or (folder / TOKENIZER_CONFIG_FILE).exists():
        return path
    beside = folder.parent / _tokenizer(folder.name)
    return str(beside) if beside.is_dir() else path


def _tokenizer(part: str) -> str:
    return part.replace("text_encoder", "tokenizer")
