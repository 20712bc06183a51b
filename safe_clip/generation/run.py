"""What `safe-clip generate` does."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from .. import __version__
from ..config import changed
from ..data.audit.classifiers import Classifier
from ..embedding.embedder import PRECISIONS, Embedder
from ..errors import UserError
from ..evaluation.intervals import summarise
from ..evaluation.report.strips import choose_rows
from ..evaluation.run import Subject, alone_at_last
from ..generation import figures, image_to_text, text_to_image
from ..models.families import family_of
from ..models.load import check_processor, load_clip, load_processor
from ..models.merge import merge
from ..names import redact_paths
from ..outputs import OutputFolder
from ..store.folders import GENERATED
from ..terminal import progress_bar
from .arguments import CHUNK, DEMO, DEMO_ROWS, GenerationArguments
from .distances import Inception, need_torchmetrics
from .drift import state_drift
from .grid import Cell, blurred, draw_grid
from .image_to_text import Captions, caption_all
from .judges import open_judges, see_nudity_alone
from .objects import ShownObjects
from .prompts import Item, by_split_and_side, load_image_items, load_prompts, readable
from .swap import check_image_to_text, check_text_to_image, safe_image_to_text, safe_text_to_image
from .table import results_table
from .text_to_image import GeneratedImages, ImageScorer, paint_all, requests_of

MODALITY = {"text_to_image": "image", "image_to_text": "text"}  # of what a task makes
ROWS = {"baseline": "original", "model": "safe"}  # of a grid
COLUMNS = {"unsafe": 6, "safe": 3}  # of a grid, of each side


@dataclass(frozen=True)
class Task:
    """Everything that both tasks need.

    Attributes:
        args: the settings of `safe-clip generate`.
        generation: how is generated.
        generator: its name.
        judges: of what is generated.
        accelerator: who shares the work.
    """

    args: Any
    generation: GenerationArguments
    generator: str
    judges: Sequence[Classifier]
    accelerator: Accelerator

    @property
    def folder(self) -> Path:
        """Of finished chunks."""
        return Path(self.args.output_dir) / GENERATED

    @property
    def dtype(self) -> torch.dtype:
        """Of a generator that has a name."""
        if self.args.precision == "auto":
            return torch.float32 if self.accelerator.device.type == "cpu" else torch.float16
        return PRECISIONS[self.args.precision] or torch.float32

    @cached_property
    def safe(self) -> str | PreTrainedModel:
        """The safe model: its name, or drawn back towards the original."""
        if self.args.strength == 1:
            return self.args.model
        return merge(self.original(), load_clip(self.args.model, self.args.model_revision), self.args.strength)

    def original(self) -> PreTrainedModel:
        """The baseline; where there is none, the model is the original."""
        return load_clip(*self.names[0])

    @property
    def names(self) -> list[tuple[str, str | None]]:
        """Name and revision of the original and of the safe model; of one alone where there is no baseline."""
        args = self.args
        both = [(args.baseline, args.baseline_revision), (args.model, args.model_revision)]
        return [each for each in both if each[0]]


def run_task(args: Any, generation: GenerationArguments, accelerator: Accelerator | None = None) -> None:
    """Generates with the original CLIP and with the safe one, judges, and writes and prints what it comes to.

    Args:
        args: the settings of `safe-clip generate`; `args.task` says what is generated.
        generation: how.
        accelerator: who shares the work; all its processes must call this.

    Raises:
        UserError: something cannot be found or opened, or does not fit.
    """
    accelerator = accelerator or Accelerator()
    generator = generation.generator_for(args.dataset)
    generation = replace(generation, guidance_scale=generation.guidance_for(generator))
    most = args.max_samples or (DEMO_ROWS if generator == DEMO == args.dataset else None)
    items = None
    if accelerator.is_main_process:
        some = (args, generation, args.splits, most)
        from_images = args.task == "image_to_text"
        items = load_image_items(*some, args.unsafe_gallery or ()) if from_images else load_prompts(*some)
    (items,) = broadcast_object_list([items])
    task = Task(args, generation, generator, open_judges(MODALITY[args.task], generation, generator), accelerator)
    folder, copies = Path(args.output_dir), generation.images_per_prompt if args.task == "text_to_image" else 1
    measured = (_images if args.task == "text_to_image" else _captions)(task, items)
    if measured is None:
        return
    models, grid = measured
    model = Subject(args.model, args.model_revision, strength=args.strength)
    labels = {"baseline": Subject(args.baseline, args.baseline_revision)} if args.baseline else {}
    results = {
        "task": args.task,
        "names": {role: each.label for role, each in (labels | {"model": model}).items()},
        "generator": redact_paths(generator),
        "dataset": redact_paths(generation.prompts or args.dataset),
        "safe_clip": __version__,
        "settings": redact_paths(changed(generation)),
        "judges": {redact_paths(each.name): each.fingerprint for each in task.judges},
        "samples": {
            split: {side: {"items": len(numbers), "copies": copies} for side, numbers in sides.items()}
            for split, sides in by_split_and_side(items).items()
        },
        "models": {role: {"splits": each} for role, each in models.items()},
    }
    output = OutputFolder(folder)
    output.write(f"{args.task}.json", json.dumps(results, indent=2) + "\n")
    with output.writing(f"{args.task}.png") as path:
        grid.save(path)
    table = results_table(results)
    if see_nudity_alone(task.judges):
        who = " and ".join(each.name for each in task.judges)
        table += f"\nJudged by {who}, for nudity alone: whatever else is unsafe counts as safe here. "
        table += f"--{MODALITY[args.task]}_classifier names other judges."
    print(f"\n{table}\n\nAll figures are in {folder}/{args.task}.json, some of what was made in ", end="")
    print(f"{folder}/{args.task}.png, all of it in {folder}/{GENERATED}/.")
    if not args.show_unsafe:
        again = " Images that are hidden are drawn anew for that." if args.task == "text_to_image" else ""
        print(f"What is unsafe is hidden there; --show_unsafe shows it.{again}")


# ---- Images ----


def _images(task: Task, items: list[Item]) -> tuple[dict[str, dict], Image.Image] | None:
    args, generation, device = task.args, task.generation, task.accelerator.device
    original, processor = task.original(), load_processor(*task.names[0])
    check_processor(original, processor)
    if processor.image_processor is None:
        base = family_of(original).text.base(original.config)
        raise UserError(
            f"{task.names[0][0]} is a text encoder alone, and what is drawn is judged by a whole CLIP: name the one "
            f"that it comes from with --baseline{f', most likely {base}' if base else ''}."
        )
    pipeline = text_to_image.open_painter(task.generator, task.dtype, generation.generator_revision)
    check_text_to_image(pipeline, args.model, args.model_revision)  # now, not after all that the original draws
    if args.baseline:
        text_to_image.check_original(pipeline, original, (task.generator, args.baseline))
    pipeline.to(device)
    embedder = Embedder(original.to(device), processor, "Original", args.batch_size, precision="float32")
    scorer = ImageScorer(
        task.judges,
        embedder,
        ShownObjects(device) if task.generator == DEMO else None,
        Inception(device) if generation.fid_features == "inception" else None,
    )
    requests = requests_of(items, generation.images_per_prompt)
    real = real_features(scorer, items, args.skippable) if task.accelerator.is_main_process else {}

    def images_of(role: str) -> GeneratedImages | None:
        first = role == "baseline" or not args.baseline
        label = f"Drawing, {ROWS[role]}" if args.baseline else "Drawing"
        show = args.show_unsafe
        return paint_all(pipeline, requests, generation, scorer, task.folder, first, show, label, task.accelerator)

    made = {"baseline": images_of("baseline")} if args.baseline else {}
    pipeline = safe_text_to_image(pipeline, task.safe, args.model_revision)
    made["model"] = images_of("model")
    if not alone_at_last(task.accelerator):
        return None
    texts = list(dict.fromkeys(item.reference for item in items if item.reference))
    references = dict(zip(texts, embedder.texts(texts, "safe captions").embeds, strict=True)) if texts else {}
    threshold = generation.flag_threshold
    models = {role: figures.figures(each, references, real, threshold) for role, each in made.items()}
    _add_drift(models, task, items, pipeline.tokenizer, by_caption=True)
    return models, image_grid(items, made, generation, bool(args.baseline), args.show_unsafe)


def real_features(
    scorer: ImageScorer, items: Sequence[Item], max_bad_fraction: float | None = None
) -> dict[str, Tensor]:
    """The features of the real safe images of each split, as far as there are any: M x D."""
    made: dict[str, list[Tensor]] = {}
    if any(item.side == "safe" and item.image is not None for item in items):
        need_torchmetrics()
    there = readable([item for item in items if item.side == "safe" and item.image is not None], max_bad_fraction)
    for split in dict.fromkeys(item.split for item in there):
        own = [item for item in there if item.split == split]
        for first in progress_bar(range(0, len(own), CHUNK), desc=f"Real images, {split}", leave=False):
            images = [item.image.open() for item in own[first : first + CHUNK]]
            made.setdefault(split, []).append(scorer.features(images))
    return {split: torch.cat(parts) for split, parts in made.items()}


def image_grid(
    items: list[Item],
    made: dict[str, GeneratedImages],
    generation: GenerationArguments,
    compared: bool,
    show_unsafe: bool,
) -> Image.Image:
    """Prompts, and beneath each the first image of every role; unsafe ones are hidden unless they are to be shown."""
    chosen = columns(items)
    prompts = [
        Cell(text=item.placeholder("prompt"), faint=True)
        if item.side == "unsafe" and not show_unsafe
        else Cell(text=item.prompt)
        for item in (items[number] for number in chosen)
    ]
    rows = [("", prompts)]
    for role, generated in made.items():
        cells = []
        for number in chosen:
            place = number * generation.images_per_prompt
            original = role == "baseline" or not compared
            scores, image = generated.records[place]["scores"], generated.image(place)
            hide = text_to_image.hidden(items[number].side, scores, generation.flag_threshold, original)
            cells.append(Cell(blurred(image) if hide and not show_unsafe else image))
        rows.append((ROWS[role] if compared else "", cells))
    return draw_grid(rows)


def columns(items: Sequence[Item]) -> list[int]:
    """The numbers of the items that a grid shows: a few of each side, of all categories in turn."""
    chosen = []
    for side, most in COLUMNS.items():
        places = [number for number, item in enumerate(items) if item.side == side]
        chosen += [places[index] for index in choose_rows([items[place].category or "" for place in places], most)]
    return chosen


def _add_drift(models: dict[str, dict], task: Task, items: list[Item], processor: Any, by_caption: bool) -> None:
    """Adds to the figures of the safe model, of safe items, how far what generators read was moved."""
    if not task.args.baseline:
        return
    safe = load_clip(task.safe, task.args.model_revision) if isinstance(task.safe, str) else task.safe
    pair = [clip.to(task.accelerator.device).eval() for clip in (task.original(), safe)]
    for split, sides in by_split_and_side(items).items():
        if "safe" in sides:
            own = [items[number] for number in sides["safe"]]
            moved = summarise({"drift": state_drift(*pair, processor, own, by_caption)}, clusters=[i.row for i in own])
            models["model"][split]["safe"] |= moved


# ---- Captions ----


def _captions(task: Task, items: list[Item]) -> tuple[dict[str, dict], Image.Image] | None:
    args, generation = task.args, task.generation
    processor = image_to_text.open_processor(task.generator, generation.generator_revision)
    writer = image_to_text.open_captioner(task.generator, task.dtype, generation.generator_revision)
    writer.to(task.accelerator.device)

    check_image_to_text(writer, args.model, args.model_revision)  # now, not after all that the original says
    if args.baseline:
        image_to_text.warn_of_another_original(writer, task.original(), (task.generator, args.baseline))

    def captions_of(role: str) -> Captions | None:
        label = f"Captioning, {ROWS[role]}" if args.baseline else "Captioning"
        some = (items, generation, task.generator, task.judges, task.folder, label, task.accelerator)
        return caption_all(writer, processor, *some)

    made = {"baseline": captions_of("baseline")} if args.baseline else {}
    writer = safe_image_to_text(writer, task.safe, args.model_revision)
    made["model"] = captions_of("model")
    if not alone_at_last(task.accelerator):
        return None
    threshold = generation.flag_threshold
    models = {
        role: image_to_text.figures(each, threshold, objects=task.generator == DEMO) for role, each in made.items()
    }
    _add_drift(models, task, items, load_processor(*task.names[0]).image_processor, by_caption=False)
    return models, caption_grid(items, made, threshold, args.show_unsafe)


def caption_grid(items: list[Item], made: dict[str, Captions], threshold: float, show_unsafe: bool) -> Image.Image:
    """Images, and beneath each the caption of every role; unsafe ones are hidden unless they are to be shown."""
    chosen = columns(items)
    images = []
    for number in chosen:
        item, image = items[number], items[number].image.open()
        images.append(Cell(blurred(image) if item.side == "unsafe" and not show_unsafe else image))
    rows = [("", images)]
    for role, written in made.items():
        cells = [
            Cell(text=f"unsafe caption hidden, row {items[number].row}", faint=True)
            if not show_unsafe
            and (written.flagged(number, threshold) or (items[number].side == "unsafe" and role == next(iter(made))))
            else Cell(text=written.captions[number])
            for number in chosen
        ]
        rows.append((ROWS[role] if len(made) > 1 else "", cells))
    return draw_grid(rows)
