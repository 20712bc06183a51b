"""A model as graphs of ONNX, whole and by encoder, as transformers.js and onnxruntime run them."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, ProcessorMixin

from ..errors import UserError
from .drop_in import save_processor
from .families import family_of

ALIKE = 1e-4  # the most by which the entries of an embedding of length 1 may differ between torch and onnxruntime
QUANTIZED = "_quantized"  # after the name of a graph, as transformers.js looks for it under dtype "q8"
# Matrix products and tables of tokens, which hold nearly all weights; few runtimes have integer convolutions.
QUANTIZED_OPERATIONS = ["MatMul", "Gemm", "Gather"]


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
        self.inputs, self.outputs = ("pixel_values",), (family_of(model).image_tower.onnx_output,)

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

    Each is written twice, in float32 and, as `*_quantized.onnx`, with weights of 8 bits. All are run by onnxruntime:
    what those in float32 embed must be what the model embeds, and of the others it is told how near that is.

    Raises:
        UserError: `onnx`, `onnxruntime` or `onnxscript` is not installed, or a graph embeds otherwise.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            "ONNX export requires onnx, onnxruntime and onnxscript: pip install 'safe-clip[onnx]'."
        ) from error
    family = family_of(model)
    size = family.image_size(model.config)
    examples = family.tokenize(processor.tokenizer, ["a dog", "a picture of a cat"], model.config)
    examples["pixel_values"] = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (output_dir / "onnx").mkdir(parents=True, exist_ok=True)
    for file, kind in GRAPHS.items():
        graph, path = kind(model.eval()), output_dir / "onnx" / file
        inputs = {name: examples[name] for name in graph.inputs}
        _write(graph, inputs, path)
        with torch.no_grad():
            expected = dict(zip(graph.outputs, _outputs(graph(*inputs.values())), strict=True))
        _check(path, inputs, expected)
        small = path.with_stem(path.stem + QUANTIZED)
        _quantize(path, small)
        print(
            f"{small.name}: embeddings at a cosine of {_nearness(small, inputs, expected):.3f} or more to the model's."
        )
    family.fix_projection_dim(model)
    model.config.save_pretrained(output_dir)
    save_processor(processor, output_dir, family.padded_length(model.config))


def _write(graph: "_Both", inputs: dict[str, Tensor], path: Path) -> None:
    shapes = tuple(DYNAMIC[name] for name in graph.inputs)
    with _quiet():
        torch.onnx.export(
            graph,
            tuple(inputs.values()),
            path,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=shapes if isinstance(graph, _Text | _Vision) else (shapes,),  # of its one argument *inputs
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _outputs(made: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def _quantize(path: Path, small: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(path, small, op_types_to_quantize=QUANTIZED_OPERATIONS, weight_type=QuantType.QUInt8)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def _run(path: Path, inputs: dict[str, Tensor], outputs: list[str]) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    made = session.run(outputs, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(outputs, made, strict=True)}


def _embeddings(outputs: dict[str, Tensor]) -> list[str]:
    return [name for name in outputs if not name.startswith("logits")]


def _check(path: Path, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    names = _embeddings(expected)
    made = _run(path, inputs, names)
    for name in names:
        ours, theirs = (nn.functional.normalize(values[name], dim=1) for values in (expected, made))
        if not (ours - theirs).abs().max() <= ALIKE:
            raise UserError(
                f"{path.name} embeds otherwise than the model ({name}: by up to {(ours - theirs).abs().max():.1e}), so "
                "it is not kept. Try other versions of onnxscript and onnxruntime."
            )


def _nearness(path: Path, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The least cosine of what a graph embeds to what is expected."""
    names = _embeddings(expected)
    made = _run(path, inputs, names)
    return min(cosine_similarity(made[name], expected[name], dim=1).min().item() for name in names)
