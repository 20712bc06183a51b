"""What others load: a plain CLIP with its tokenizer and image processor, in the files of new and of old consumers."""

import copy
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..items import MODALITIES
from ..store.fingerprints import backend_of
from .families import family_of
from .tokens import unset_padding

SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
_FEATURES = {name: {"method": f"get_{name}_features", "method_output_name": "pooler_output"} for name in MODALITIES}
# sentence-transformers pads captions to the longest, unless it is told otherwise.
SENTENCE_TRANSFORMERS = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": _FEATURES,
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"text": {"padding": "max_length"}},
    },
}


def save_drop_in(
    model: PreTrainedModel, processor: ProcessorMixin, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Writes what `from_pretrained` of the model's class and of its processor's read.

    Args:
        model: as it is to be loaded; adapters are merged by now.
        processor: its tokenizer and image processor.
        folder: made if it is not there.
        dtype: of the weights in the file; by default as they are.
    """
    if dtype not in (None, model.dtype):
        model = copy.deepcopy(model).to(dtype)
    family = family_of(model)
    family.fix_projection_dim(model)
    model.save_pretrained(folder)
    length = family.padded_length(model.config)
    save_processor(processor, folder, length)
    if length is not None:
        for file, content in SENTENCE_TRANSFORMERS.items():
            _write(Path(folder) / file, content)


def save_processor(processor: ProcessorMixin, folder: Path, padded_length: int | None = None) -> None:
    """Writes a processor as this transformers does, and beside it the files that transformers 4 and others look for.

    Args:
        processor: a tokenizer and an image processor.
        folder: made if it is not there.
        padded_length: that every caption is padded to, stored in `tokenizer.json`; `None` to store no padding.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = processor.tokenizer
    unset_padding(tokenizer)
    backend = backend_of(tokenizer)
    padded = backend is not None and padded_length is not None
    if padded:
        backend.enable_truncation(padded_length)
        pad = {"pad_id": tokenizer.pad_token_id, "pad_token": tokenizer.pad_token, "direction": tokenizer.padding_side}
        backend.enable_padding(length=padded_length, **pad)
    processor.save_pretrained(folder)
    unset_padding(tokenizer)
    if processor.image_processor is not None:
        processor.image_processor.save_pretrained(folder)  # preprocessor_config.json
    if "merges_file" in tokenizer.vocab_files_names:
        backend.model.save(str(folder))  # vocab.json, merges.txt
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    _write(folder / SPECIAL_TOKENS, special)
    settings = json.loads((folder / TOKENIZER_CONFIG_FILE).read_text(encoding="utf-8"))
    if padded:
        # For Gemma's tokenizer of transformers 4, which goes by these alone.
        around = tokenizer("")["input_ids"]
        settings |= {f"add_{end}_token": getattr(tokenizer, f"{end}_token_id") in around for end in ("bos", "eos")}
        _write(folder / TOKENIZER_CONFIG_FILE, settings)
    if isinstance(more := settings.get("extra_special_tokens"), list):  # which older versions fail at; both read this:
        del settings["extra_special_tokens"]
        _write(folder / TOKENIZER_CONFIG_FILE, {**settings, "additional_special_tokens": more})
    known = tokenizer.get_vocab() if backend is None else backend.get_vocab(with_added_tokens=False)
    if added := {token: number for token, number in tokenizer.get_added_vocab().items() if token not in known}:
        _write(folder / ADDED_TOKENS, added)


def _write(file: Path, content: dict | list) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
