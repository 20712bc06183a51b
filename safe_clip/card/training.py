"""What a card tells of the training."""

import importlib.metadata
import json
import os
import platform
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
from transformers import ProcessorMixin, Trainer, TrainingArguments

from .. import __version__
from ..card_text import code, plain
from ..data.quadruplets import DEMO
from ..data.streams import QuadrupletStream
from ..evaluation.quadruplets import CATEGORY_COLUMN, MOST_CATEGORIES, cell_names
from ..evaluation.unseen import CONCEPT_COLUMN
from ..models.families import family_of
from ..models.load import bundled_name, public_name
from ..models.pipelines import split_name
from ..names import redact_paths

MOST_CONCEPTS = 30  # of a category, that are named
CURVES_FILE = "loss_curves.png"
LIBRARIES = ("torch", "transformers", "peft", "datasets", "accelerate", "huggingface_hub", "pillow")
DEMO_LICENCE = "Apache-2.0 (Noto Emoji), CC-BY 4.0 (Twemoji), MIT (Fluent Emoji)"


@dataclass(frozen=True)
class Source:
    """Where a model or a data set came from.

    Attributes:
        name: what others may know it by: `"demo"`, its id on the Hub, or the last part of a path.
        title: what it is called in a sentence, if not by name.
        page: its page on the Hub, if that is where it came from, as `id` or `datasets/id`.
        revision: its commit there.
        licence: as its card states it.
    """

    name: str
    title: str | None = None
    page: str | None = None
    revision: str | None = None
    licence: str | None = None

    def pinned(self, argument: str) -> str:
        """A further argument of a call that loads it, as Python."""
        return f', {argument}="{self.revision}"' if self.revision else ""

    def summary(self) -> str:
        """In a sentence, in Markdown."""
        name = f"[{self.name}](https://huggingface.co/{self.page})" if self.page else code(self.name)
        return (self.title or name) + (f" at commit `{self.revision}`" if self.revision else "")


def base_source(trainer: Trainer) -> Source:
    """The original model."""
    config = trainer.model.config
    name = config._name_or_path
    if known := bundled_name(name):
        title = "demo model" if known == DEMO else family_of(config).name
        return Source(known, f"The bundled {title} of safe-clip", licence="Apache-2.0")
    if not name:
        return Source("ORIGINAL", "A model that was given in Python and has no name")
    page = (split_name(name) or (name,))[0]  # of a text encoder, the pipeline that it lies in
    if Path(page).exists():
        return Source(public_name(name))
    try:
        licence = _listed(ModelCard.load(page, ignore_metadata_errors=True).data.get("license"))
    except Exception:  # no card, no connection: whatever it is, the licence is not known
        licence = None
    return Source(name, None, page, getattr(config, "_commit_hash", None), licence)


def data_source(name: str | None) -> Source:
    """The data set, which has no name where it was made in Python."""
    if name is None:
        return Source("DATASET", "given in Python, without a name")
    if name == DEMO:
        return Source(DEMO, "the bundled emoji scenes of safe-clip", licence=DEMO_LICENCE)
    if Path(name).exists():
        return Source(public_name(name))
    page = f"datasets/{name}"
    try:
        info = HfApi().dataset_info(name)
    except Exception:  # no connection, no such data set any more
        return Source(name, page=page)
    return Source(name, None, page, info.sha, _listed((info.card_data or {}).get("license")))


def _listed(licence: str | list[str] | None) -> str | None:
    return plain(", ".join(licence) if isinstance(licence, list) else licence) if licence else None


def unlearned(rows: Dataset) -> dict[str, list[str]]:
    """Categories of the unsafe side, each with the names of its concepts, the most frequent first.

    Where data name them: in the columns `category` and `concept`. Cells too long for a name are left out, since they
    may be content.
    """
    columns = [column for column in (CATEGORY_COLUMN, CONCEPT_COLUMN) if column in rows.column_names]
    if CATEGORY_COLUMN not in columns:
        return {}
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    values = [cell_names(rows, column) for column in columns]
    for category, *concept in zip(*values, strict=True):
        if category:
            for name in (*concept, ""):
                counts[category][name or ""] += 1  # "" counts the rows
    common = sorted(counts, key=lambda category: -counts[category][""])[:MOST_CATEGORIES]
    return {
        category: sorted(filter(None, counts[category]), key=lambda name: (-counts[category][name], name))[
            :MOST_CONCEPTS
        ]
        for category in common
    }


@dataclass
class TrainingFacts:
    """What a card tells of a training run; each attribute a Markdown text, or a table's rows.

    Attributes:
        base, data: where model and data came from.
        rows: number of rows by split, in words.
        unlearned: as `unlearned`.
        arguments: the settings that differ from their defaults, by name.
        adapter: what was trained of the model.
        has_adapter: whether an adapter was saved on its own.
        duration: how long it took, on what.
        energy: how much energy it took, or that this was not measured.
        versions: of the libraries, by name.
        images: which image processor prepared the images.
        curves: whether there is a plot of the losses.
        frozen_gallery: whether queries alone were trained, for an index that the original embedded.
    """

    base: Source
    data: Source
    rows: dict[str, str]
    unlearned: dict[str, list[str]]
    arguments: dict[str, str]
    adapter: str
    has_adapter: bool
    duration: str
    energy: str
    versions: dict[str, str] = field(default_factory=dict)
    images: str = ""
    curves: bool = False
    frozen_gallery: bool = False


def training_facts(
    trainer: Trainer,
    rows: Mapping[str, Dataset] | None = None,
    dataset: str | None = None,
    settings: dict[str, Any] | None = None,
) -> TrainingFacts:
    """Collects them from a trainer that has trained, and draws its losses beside the model."""
    if rows is None:
        evaluated = trainer.eval_dataset
        splits = {"train": trainer.train_dataset} | (
            evaluated if isinstance(evaluated, dict) else {"validation": evaluated}
        )
        tables = {split: getattr(each, "rows", each) for split, each in splits.items()}
        rows = {split: table for split, table in tables.items() if isinstance(table, Dataset)}  # no stream
    named = unlearned(rows["train"]) if "train" in rows else {}
    streamed = {"train": "(a stream)"} if isinstance(trainer.train_dataset, QuadrupletStream) else {}
    return TrainingFacts(
        base=base_source(trainer),
        data=data_source(dataset),
        rows={split: f"{len(part):,}" for split, part in rows.items()} | streamed,
        unlearned={plain(kind): list(map(plain, names)) for kind, names in named.items()},
        arguments={
            name: plain(_setting(value))
            for name, value in {**trainer.args.changed, **redact_paths(settings or {})}.items()
        },
        adapter=_adapter(trainer),
        has_adapter=isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel),
        duration=_duration(trainer),
        energy=_energy(trainer),
        versions={"python": platform.python_version(), "safe_clip": __version__}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
        images=_images(trainer.processing_class),
        curves=draw_losses(trainer.state.log_history, Path(trainer.args.output_dir) / CURVES_FILE),
        frozen_gallery=trainer.args.frozen_gallery,
    )


def _setting(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(getattr(value, "value", value))


def trained_parameters(model: Any) -> str:
    """How much of a model is trained, in words."""
    counts = [(each.numel(), each.requires_grad) for each in model.parameters()]
    trained, whole = sum(count for count, is_trained in counts if is_trained), sum(count for count, _ in counts)
    return f"{trained:,} of {whole:,} parameters" if trained < whole else f"all {whole:,} parameters"


def _adapter(trainer: Trainer) -> str:
    model = trainer.accelerator.unwrap_model(trainer.model)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not isinstance(model, PeftModel):
        return f"all weights ({count:,} parameters)"
    config = model.active_peft_config
    summary = f"an adapter of type {config.peft_type.value} ({count:,} parameters), merged into the weights"
    if getattr(config, "lora_alpha", None) is None:
        return summary
    modules = ", ".join(f"`{name}`" for name in sorted(config.target_modules))
    return f"{summary}: rank {config.r}, alpha {config.lora_alpha:g}, dropout {config.lora_dropout:g}, on {modules}"


def hardware(args: TrainingArguments) -> str:
    """The devices of a training, in words."""
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else _processor()
    return f"{args.world_size * max(1, args.n_gpu)} x {name}"


def precision(accelerator: Accelerator) -> str:
    """The type of numbers that a training computes in."""
    known = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
    return known.get(accelerator.mixed_precision, accelerator.mixed_precision)


def _duration(trainer: Trainer) -> str:
    seconds = next(
        (entry["train_runtime"] for entry in reversed(trainer.state.log_history) if "train_runtime" in entry), None
    )
    if seconds is None:
        return "not known"
    hours, rest = divmod(round(seconds), 3600)
    time = f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
    last, begun = trainer.state.global_step, trainer.resumed_from
    steps = f"steps {begun + 1:,} to {last:,} alone, being resumed," if begun else f"{last:,} steps"
    return f"{time} for {steps} on {hardware(trainer.args)}, computing in {precision(trainer.accelerator)}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} with {os.cpu_count()} cores"


def _energy(trainer: Trainer) -> str:
    for callback in trainer.callback_handler.callbacks:
        measured = getattr(getattr(callback, "tracker", None), "final_emissions_data", None)
        if measured is not None:
            return (
                f"{measured.energy_consumed:.3g} kWh in this time, about {1000 * measured.emissions:.3g} g of CO2 "
                f"where it ran ({measured.country_name}), as estimated by codecarbon {measured.codecarbon_version}"
            )
    return "not measured (`--report_to codecarbon` does)"


def _images(processor: ProcessorMixin) -> str:
    if processor.image_processor is None:
        return "none, captions alone"
    name = type(processor.image_processor).__name__
    if name.endswith("Pil"):
        return f"Pillow {importlib.metadata.version('pillow')} (`{name}`)"
    return f"torchvision {importlib.metadata.version('torchvision')} (`{name}`)"


def draw_losses(log_history: list[dict], path: Path) -> bool:
    """Draws the total loss and each of its terms over the steps, a panel each; whether there was anything to draw."""
    skip = {"grad_norm", "learning_rate", "epoch", "step"}
    curves: dict[str, dict[str, tuple[list, list]]] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for entry in log_history:
        if "loss" in entry or "eval_loss" in entry:
            kind = "training" if "loss" in entry else "evaluation"
            for name, value in entry.items():
                term = name.removeprefix("eval_")
                if name not in skip and isinstance(value, int | float):
                    steps, values = curves[term][kind]
                    steps.append(entry["step"])
                    values.append(value)
    curves = {term: kinds for term, kinds in curves.items() if "training" in kinds}
    if not curves:
        path.unlink(missing_ok=True)
        return False
    from matplotlib.figure import Figure

    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    width, height = 3.2 * columns, 2.4 * lines
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (term, kinds) in zip(panels, curves.items(), strict=False):
        for kind, points in kinds.items():
            axes.plot(*points, marker="o" if len(points[0]) < 20 else None, markersize=3, label=kind)
        axes.set_title(term.replace("_", " "), fontsize=9, y=1)  # or it is looked for what is in its way
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in list(figure.axes)[len(curves) :]:
        axes.set_axis_off()
    figure.supxlabel("step", fontsize=9)
    if any(len(kinds) > 1 for kinds in curves.values()):
        figure.axes[0].legend(frameon=False, fontsize=8)
    # Of fixed margins, in inches: to measure every label, as "constrained" does, takes longer than to draw them.
    figure.subplots_adjust(0.55 / width, 0.6 / height, 1 - 0.15 / width, 1 - 0.35 / height, wspace=0.3, hspace=0.4)
    figure.savefig(path, dpi=110)
    return True
