"""Writes a CLIP in the formats of other tools."""

import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from ..errors import UserError
from .drop_in import save_drop_in, save_processor
from .family import family_of
from .open_clip_format import CONFIG_FILE, WEIGHTS_FILE


def export_open_clip(model: PreTrainedModel, processor: ProcessorMixin, output_dir: Path) -> None:
    """Writes `open_clip_config.json`, `open_clip_model.safetensors` and the processor, which `load_clip` reads too."""
    form = family_of(model).open_clip
    config = form.open_clip_config(model, processor)
    output_dir.mkdir(parents=True, exist_ok=True)
    save_file(form.to_open_clip(model), output_dir / WEIGHTS_FILE, metadata={"format": "pt"})
    (output_dir / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_processor(processor, output_dir)


class _Both(nn.Module):
    """Both encoders, with the inputs and outputs that transformers.js expects of the whole model."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model, family = model, family_of(model)
        self.inputs = (*family.text_inputs, "pixel_values")
        self.outputs = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, inputs, strict=True)))
        return output.logits_per_image, output.logits_per_text, output.text_embeds, output.image_embeds


class _Text(_Both):
    """What transformers.js expects of the text encoder with its projection: embeddings not yet of length 1.

    No mask: captions are padded on the right, after the token that is read, which sees only what is before it; or all
    to one length, and read with their padding.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.inputs, self.outputs = ("input_ids",), (family_of(model).text.onnx_output,)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model.get_text_features(input_ids=input_ids).pooler_output


class _Vision(_Both):
    """What transformers.js expects of the image encoder with its projection: embeddings not yet of length 1."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.inputs, self.outputs = ("pixel_values",), (family_of(model).image.onnx_output,)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixel_values).pooler_output


GRAPHS = {"model.onnx": _Both, "text_model.onnx": _Text, "vision_model.onnx": _Vision}
DYNAMIC = {
    "input_ids": {0: "texts", 1: "length"},
    "attention_mask": {0: "texts", 1: "length"},
    "pixel_values": {0: "images"},
}


def export_onnx(model: PreTrainedModel, processor: ProcessorMixin, output_dir: Path) -> None:
    """Writes graphs of both encoders and of each alone, configuration and processor, as transformers.js reads them.

    Raises:
        UserError: `onnx` or `onnxscript` is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX export requires onnx and onnxscript: pip install 'safe-clip[onnx]'.") from error
    family = family_of(model)
    size = family.image_size(model.config)
    examples = family.tokenize(processor.tokenizer, ["a dog", "a picture of a cat"], model.config)
    examples["pixel_values"] = torch.zeros(3, 3, size, size)
    (output_dir / "onnx").mkdir(parents=True, exist_ok=True)
    for file, kind in GRAPHS.items():
        graph = kind(model.eval())
        shapes = tuple(DYNAMIC[name] for name in graph.inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own exporter about itself
            torch.onnx.export(
                graph,
                tuple(examples[name] for name in graph.inputs),
                output_dir / "onnx" / file,
                input_names=graph.inputs,
                output_names=graph.outputs,
                dynamic_shapes=(shapes,) if kind is _Both else shapes,  # of its one argument *inputs
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    family.fix_projection_dim(model)
    model.config.save_pretrained(output_dir)
    save_processor(processor, output_dir)


FORMATS = {"transformers": save_drop_in, "open_clip": export_open_clip, "onnx": export_onnx}
