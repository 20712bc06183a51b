"""Writes a CLIP in the formats of other tools, or at a point between the original and the safe model.

    python -m safe_clip.export --model you/safe-clip --format open_clip --output_dir safe-clip-open_clip
    python -m safe_clip.export --model safe-clip --format onnx
    python -m safe_clip.export --model safe-clip --baseline demo --strength 0.8 --format transformers

`transformers`: a plain `CLIPModel` with its processor. `open_clip`: a folder for
`open_clip.create_model_and_transforms("local-dir:FOLDER")`; its files may also be uploaded beside a Hub repository's
others, for `"hf-hub:you/safe-clip"`. `onnx`: one graph for onnxruntime and transformers.js.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPProcessor

from .errors import UserError, run
from .interpolation import merge
from .model import check_processor, load_clip, load_processor

OPENAI_VOCABULARY = 49408  # of the tokenizer that open_clip brings along
LAYERS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def open_clip_config(model: CLIPModel, processor: CLIPProcessor) -> dict:
    """The `open_clip_config.json` of a model.

    Raises:
        UserError: open_clip has no such architecture.
    """
    text, vision = model.config.text_config, model.config.vision_config
    activations = {text.hidden_act, vision.hidden_act}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise UserError(f"open_clip knows quick_gelu and gelu, for both encoders alike, not {sorted(activations)}.")
    # transformers reads the caption's last word at the first end token, in old configurations at the largest.
    pooling = {"pool_type": "argmax"} if text.eos_token_id == 2 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    images = processor.image_processor
    if text.vocab_size != OPENAI_VOCABULARY:
        pooling["hf_tokenizer_name"] = "local"  # open_clip reads the folder's own under "local-dir:"
    return {
        "model_cfg": {
            "embed_dim": model.config.projection_dim,
            "quick_gelu": activations == {"quick_gelu"},
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "layers": vision.num_hidden_layers,
                "width": vision.hidden_size,
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
                "norm_kwargs": {"eps": vision.layer_norm_eps},
            },
            "text_cfg": {
                "context_length": text.max_position_embeddings,
                "vocab_size": text.vocab_size,
                "layers": text.num_hidden_layers,
                "width": text.hidden_size,
                "heads": text.num_attention_heads,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
                "norm_kwargs": {"eps": text.layer_norm_eps},
                **pooling,
            },
        },
        "preprocess_cfg": {
            "mean": list(images.image_mean),
            "std": list(images.image_std),
            "interpolation": Image.Resampling(images.resample).name.lower(),
            "resize_mode": "shortest" if "shortest_edge" in images.size else "squash",
        },
    }


def open_clip_weights(model: CLIPModel) -> dict[str, Tensor]:
    """The weights under open_clip's names."""
    state = model.state_dict()
    weights = {
        "logit_scale": state["logit_scale"],
        "text_projection": state["text_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
    }
    layers = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",  # sic
        "visual.ln_post": "vision_model.post_layernorm",
    }
    for tower, prefix in (("text", ""), ("vision", "visual.")):
        for number in range(getattr(model.config, f"{tower}_config").num_hidden_layers):
            ours, theirs = f"{tower}_model.encoder.layers.{number}", f"{prefix}transformer.resblocks.{number}"
            layers |= {f"{theirs}.{name}": f"{ours}.{other}" for name, other in LAYERS.items()}
            for kind in ("weight", "bias"):
                parts = [state[f"{ours}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                weights[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(parts)
    weights |= {
        f"{name}.{kind}": state[f"{other}.{kind}"] for name, other in layers.items() for kind in ("weight", "bias")
    }
    return {name: weight.contiguous() for name, weight in weights.items()}


def export_open_clip(model: CLIPModel, processor: CLIPProcessor, output_dir: Path) -> None:
    """Writes `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer."""
    config = open_clip_config(model, processor)
    output_dir.mkdir(parents=True, exist_ok=True)
    save_file(open_clip_weights(model), output_dir / "open_clip_model.safetensors", metadata={"format": "pt"})
    (output_dir / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    processor.tokenizer.save_pretrained(output_dir)


class _Embeddings(nn.Module):
    """Both encoders, with the inputs and outputs that transformers.js expects of a CLIP."""

    def __init__(self, model: CLIPModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return output.logits_per_image, output.logits_per_text, output.text_embeds, output.image_embeds


def export_onnx(model: CLIPModel, processor: CLIPProcessor, output_dir: Path) -> None:
    """Writes `onnx/model.onnx`, the configuration and the processor, laid out as transformers.js reads them.

    Raises:
        UserError: `onnx` or `onnxscript` is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("ONNX export wants onnx and onnxscript: pip install 'safe-clip[onnx]'.") from error
    text = processor.tokenizer(["a dog", "a picture of a cat"], padding=True, return_tensors="pt")
    size = model.config.vision_config.image_size
    inputs = (text["input_ids"], text["attention_mask"], torch.zeros(3, 3, size, size))
    file = output_dir / "onnx" / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own exporter about itself
        torch.onnx.export(
            _Embeddings(model.eval()),
            inputs,
            file,
            input_names=["input_ids", "attention_mask", "pixel_values"],
            output_names=["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
            dynamic_shapes={
                "input_ids": {0: "texts", 1: "length"},
                "attention_mask": {0: "texts", 1: "length"},
                "pixel_values": {0: "images"},
            },
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model.config.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    processor.image_processor.save_pretrained(output_dir)  # the file of its own that transformers.js looks for


def export_transformers(model: CLIPModel, processor: CLIPProcessor, output_dir: Path) -> None:
    """Writes what `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` read."""
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)


FORMATS = {"transformers": export_transformers, "open_clip": export_open_clip, "onnx": export_onnx}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m safe_clip.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="safe-clip", help="a folder, a Hub id, or 'demo'")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--baseline", help="the original, for --strength")
    parser.add_argument("--baseline_revision", help="branch, tag or commit of a Hub model")
    parser.add_argument("--strength", type=float, help="from 0, the original, to 1, the safe model")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--output_dir", type=Path, help="by default the model's name and the format's")
    args = parser.parse_args(argv)
    if (args.strength is None) != (args.baseline is None):
        raise UserError("--strength and --baseline go together: the original, and how far from it the model shall be.")
    output_dir = args.output_dir or Path(f"{Path(args.model).name}-{args.format}")
    model, processor = load_clip(args.model, args.revision), load_processor(args.model, args.revision)
    if args.strength is not None:
        model = merge(args.baseline, model, args.strength, args.baseline_revision)
    check_processor(model, processor)
    FORMATS[args.format](model, processor, output_dir)
    print(f"{args.model} is in {output_dir}/ for {args.format}.")


if __name__ == "__main__":
    run(main)
