"""Writes a CLIP in the formats of other tools, or at a point between the original and the safe model.

    python -m safe_clip.export --model you/safe-clip --format open_clip --output_dir safe-clip-open_clip
    python -m safe_clip.export --model safe-clip --format onnx
    python -m safe_clip.export --model safe-clip --baseline demo --strength 0.8 --format transformers

`transformers`: a plain `CLIPModel` with its processor. `open_clip`: a folder for
`open_clip.create_model_and_transforms("local-dir:FOLDER")`; its files may also be uploaded beside a Hub repository's
others, for `"hf-hub:you/safe-clip"`. `onnx`: graphs for onnxruntime and transformers.js, of both encoders and of each.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from ..config import OneLineParser
from ..errors import UserError
from ..outputs import OutputFolder
from .drop_in import save_drop_in, save_processor
from .family import family_of
from .load import check_processor, load_clip, load_processor, resolve_model
from .merge import check_strength, merge
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


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(
        prog="python -m safe_clip.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="safe-clip", help="a folder, a Hub id, or 'demo'")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--baseline", help="the original, for --strength")
    parser.add_argument("--baseline_revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--strength", type=float, help="from 0, the original, to 1, the safe model")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--output_dir", type=Path, help="by default the model's name and the format's")
    parser.add_argument("--overwrite_output_dir", action="store_true", help="what is in the way goes into replaced/")
    args = parser.parse_args(argv)
    if (args.strength is None) != (args.baseline is None):
        raise UserError("--strength and --baseline go together: the original, and how far from it the model shall be.")
    if args.strength is not None:
        check_strength(args.strength)
    output_dir = args.output_dir or Path(f"{Path(args.model).name}-{args.format}")
    for flag, name in (("--model", args.model), ("--baseline", args.baseline)):
        if name and output_dir.resolve() == Path(resolve_model(name)).resolve():
            raise UserError(
                f"--output_dir {output_dir} is the folder of {flag}, which is never written; choose another."
            )
    output = OutputFolder(output_dir)
    output.check(args.overwrite_output_dir, [resolve_model(name) for name in (args.model, args.baseline) if name])
    model, processor = load_clip(args.model, args.revision), load_processor(args.model, args.revision)
    if args.format not in (known := family_of(model).exports):
        raise UserError(f"--format {args.format} has no models of this family; take {', '.join(known)}.")
    if args.strength is not None:
        model = merge(args.baseline, model, args.strength, args.baseline_revision)
    check_processor(model, processor)
    with output.staged() as stage:
        FORMATS[args.format](model, processor, stage)
    print(f"{args.model} is in {output_dir}/ for {args.format}.")
