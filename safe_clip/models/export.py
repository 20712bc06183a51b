"""Writes a CLIP in the formats of other tools."""

import json
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel, ProcessorMixin

from .drop_in import save_drop_in, save_processor
from .families import family_of
from .onnx_format import export_onnx
from .open_clip_format import WEIGHTS_FILE
from .open_clip_inputs import CONFIG_FILE


def export_open_clip(model: PreTrainedModel, processor: ProcessorMixin, output_dir: Path) -> None:
    """Writes `open_clip_config.json`, `open_clip_model.safetensors` and the processor, which `load_clip` reads too."""
    form = family_of(model).open_clip
    config = form.open_clip_config(model, processor)
    output_dir.mkdir(parents=True, exist_ok=True)
    save_file(form.to_open_clip(model), output_dir / WEIGHTS_FILE, metadata={"format": "pt"})
    (output_dir / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_processor(processor, output_dir, family_of(model).padded_length(model.config))


FORMATS = {"transformers": save_drop_in, "open_clip": export_open_clip, "onnx": export_onnx}
