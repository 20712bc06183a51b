"""All protocols, for a model and the original beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from ..embedding.embedder import Embedder
from ..embedding.items import IdentifiedItems, figure
from ..errors import UserError
from ..evaluation import TASKS
from ..metrics.faiss_index import FaissIndex, index_recall
from ..metrics.ranking import ExactIndex
from .data import EvaluationData
from .geometry import geometry, pair_probability
from .intervals import DIGITS, summarise
from .quadruplets import (
    IndexFactory,
    QuadrupletItems,
    count_items,
    embed_quadruplets,
    readable_rows,
    row_categories,
    union_index,
)
from .redirection import redirection
from .retrieval import counterparts, retrieval
from .robustness import count_variants, embed_variants, robustness
from .unsafe_gallery import unsafe_gallery
from .zero_shot import class_embeddings, zero_shot

INDEX_QUERIES = 1000  # that an approximate index is compared with the exact search on


@dataclass
class ModelEmbeddings:
    """Everything of `EvaluationData` as one model sees it.

    Attributes:
        name: the model.
        weights: a digest of its weights.
        dimension: length of its embeddings.
        sigmoid: scale and bias of a model whose scores are the sigmoids of scaled cosines; `None` for others.
        splits: the quadruplets by split, without those whose images cannot be read.
        kept: by split, the indices of these among all quadruplets of the sample.
        unreadable: by split or gallery or data set, why each image that was left out cannot be read.
        variants: `{split: {modality: {transform: unsafe queries}}}`.
        galleries: unsafe images by name.
        classified: by data set, the images, their labels and the classes' embeddings.
    """

    name: str
    weights: str
    dimension: int
    sigmoid: tuple[float, float] | None = None
    splits: dict[str, QuadrupletItems] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    unreadable: dict[str, list[str]] = field(default_factory=dict)
    variants: dict[str, dict[str, dict[str, IdentifiedItems]]] = field(default_factory=dict)
    galleries: dict[str, IdentifiedItems] = field(default_factory=dict)
    classified: dict[str, tuple[IdentifiedItems, list[int], Tensor]] = field(default_factory=dict)


def count_embedded(data: EvaluationData, tasks: Sequence[str] = TASKS) -> int:
    """How many items `embed_everything` embeds."""
    count = 0
    for sample in data.splits.values() if set(tasks) != {"zero_shot"} else ():
        count += count_items(sample.rows)
        count += count_variants(sample.rows, data.synonyms) if "robustness" in tasks else 0
    if "unsafe_gallery" in tasks:
        count += sum(len(sample.rows) for sample in data.galleries.values())
    if "zero_shot" in tasks:
        count += sum(
            len(found.rows) + len(found.class_names) * len(found.templates) for found in data.classifications.values()
        )
    return count


def embed_everything(
    embedder: Embedder, data: EvaluationData, tasks: Sequence[str] = TASKS, max_bad_fraction: float | None = None
) -> ModelEmbeddings:
    """Embeds what the tasks need; all processes that share the work must call it.

    Raises:
        UserError: a caption is bad, or an image cannot be read and may not be skipped.
    """
    scale, bias = embedder.model.logit_scale, embedder.model.logit_bias
    sigmoid = None if bias is None else (scale, bias)
    made = ModelEmbeddings(embedder.label, embedder.model.weights, embedder.model.dimension, sigmoid)

    def readable(where: str, images: list[IdentifiedItems]) -> Tensor:
        left_out = len(data.bad_captions.get(where, ()))
        keep, reasons = readable_rows(images, where, max_bad_fraction, left_out)
        if reasons:
            made.unreadable[where] = reasons
        return keep

    for split, sample in data.splits.items() if set(tasks) != {"zero_shot"} else ():
        items = embed_quadruplets(embedder, sample.rows, split)
        made.kept[split] = keep = readable(split, [items.safe_image, items.unsafe_image])
        made.splits[split] = items.select(keep)
        if "robustness" in tasks:
            variants = embed_variants(embedder, sample.rows, split, items.made_from, data.synonyms)
            made.variants[split] = {
                modality: {name: items.select(keep) for name, items in changed.items()}
                for modality, changed in variants.items()
            }
    if "unsafe_gallery" in tasks:
        for name, sample in data.galleries.items():
            images = embedder.images(sample.rows, "image", name)
            made.galleries[name] = images.select(readable(f"--unsafe_gallery {name}", [images]))
    if "zero_shot" in tasks:
        for found in data.classifications.values():
            classes = class_embeddings(embedder, found.class_names, found.templates, f"{found.name}, prompts")
            images = embedder.images(found.rows, found.image_column, found.name)
            keep = readable(f"--zero_shot {found.name}", [images])
            labels = [found.labels[index] for index in keep.tolist()]
            made.classified[found.name] = (images.select(keep), labels, classes)
    return made


@dataclass
class Measured:
    """What a task measures, before it is summarised.

    Attributes:
        parts: figures query by query, each with its clusters, as `summarise` takes them.
        categories: of the queries.
        numbers: figures that are of no query.
    """

    parts: list[tuple[Mapping[str, Tensor], Tensor | None]]
    categories: Sequence[str] | None = None
    numbers: dict[str, float] = field(default_factory=dict)

    def figures(self, against: "Measured | None" = None) -> dict[str, dict]:
        """As `summarise` gives them, with the change from what another model gives."""
        others = [values for values, _ in against.parts] if against else [None] * len(self.parts)
        figures = {}
        for (values, clusters), other in zip(self.parts, others, strict=True):
            figures |= summarise(values, self.categories, clusters, against=other)
        return figures | {name: {"value": round(number, DIGITS)} for name, number in self.numbers.items()}


def measure(
    made: Mapping[str, ModelEmbeddings],
    data: EvaluationData,
    tasks: Sequence[str] = TASKS,
    factory: IndexFactory = ExactIndex,
    frozen_gallery: bool = False,
) -> dict[str, dict]:
    """Runs the tasks on embeddings.

    Args:
        made: of `"model"` and, if there is one, of the original as `"baseline"`.
        data: what was embedded.
        tasks: which of `TASKS`.
        factory: makes the index that retrieval, redirection, unsafe galleries and robustness search.
        frozen_gallery: all that is searched is embedded by the original, also for the model's queries.

    Returns:
        For each, `{"splits": {split: {task: figures}}, "zero_shot": {data set: figures}}`, figures as `summarise` gives
        them, the model's with their change from the original; those of `unsafe_gallery` stand under the gallery's name.

    Raises:
        UserError: a split has nothing to measure, or its images changed between the two, or the model's queries cannot
            be compared with what the original embedded.
    """
    broken = [each.unreadable for each in made.values()]
    for where in sorted({name for each in broken for name in each}):
        if any(each.get(where) != broken[0].get(where) for each in broken):
            raise UserError(f"{where}: images changed while they were being measured. Run again.")
    measured = {
        role: _measured(each, made.get("baseline"), data, tasks, factory, frozen_gallery) for role, each in made.items()
    }
    before = measured.get("baseline", {})
    results = {role: _figures(each, before if role == "model" else {}) for role, each in measured.items()}
    for split, figures in results["model"]["splits"].items():
        if not any(figures.values()):
            raise UserError(
                f"{split}: there is nothing to measure, since it has no safe items that anything could find."
            )
    return results


def _figures(measured: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    return {
        name: each.figures(before.get(name)) if isinstance(each, Measured) else _figures(each, before.get(name, {}))
        for name, each in measured.items()
    }


def _measured(
    made: ModelEmbeddings,
    original: ModelEmbeddings | None,
    data: EvaluationData,
    tasks: Sequence[str],
    factory: IndexFactory,
    frozen_gallery: bool,
) -> dict[str, dict]:
    results: dict[str, dict] = {"splits": {}, "zero_shot": {}}
    for split, items in made.splits.items():
        rows = data.splits[split].rows
        categories = row_categories(cast(Dataset, rows.select(items.made_from.row.tolist())))
        clusters = _clusters(items)
        before = original.splits[split] if original else None
        if original and not torch.equal(original.kept[split], made.kept[split]):
            raise UserError(f"{split}: images changed while they were being measured. Run again.")
        figures: dict[str, Any] = {}
        results["splits"][split] = figures
        comparable = original is not None and original.dimension == made.dimension
        if frozen_gallery and not comparable:
            raise UserError(
                f"--frozen_gallery: {original.name if original else 'no --baseline'} gives embeddings of length "
                f"{original.dimension if original else 0}, and {made.name} of {made.dimension}: it did not embed the "
                "gallery of these queries."
            )
        pool = before if frozen_gallery else items
        if "retrieval" in tasks:
            figures["retrieval"] = Measured([(retrieval(items, factory=factory, gallery=pool), clusters)])
            if comparable and not frozen_gallery:
                across = retrieval(items, ("safe", "safe_union"), factory=factory, gallery=before)
                figures["retrieval_original_gallery"] = Measured([(across, clusters)])
        alone = not (len(items.safe_text) and len(items.safe_image))
        if "redirection" in tasks and alone:
            figures["counterparts"] = Measured([(counterparts(items, gallery=pool), clusters)], categories)
        if "redirection" in tasks:
            figures["redirection"] = Measured([(redirection(items, pool, factory=factory), clusters)], categories)
            if comparable and not frozen_gallery:
                across = redirection(items, before, factory=factory)
                figures["redirection_original_gallery"] = Measured([(across, clusters)], categories)
        if "unsafe_gallery" in tasks:
            figures["unsafe_gallery"] = {}
            for name, images in made.galleries.items():
                strangers = original.galleries[name] if original and frozen_gallery else images
                searched = (pool or items, strangers)
                by_caption, by_image = unsafe_gallery(items, images, factory=factory, gallery=searched)
                figures["unsafe_gallery"][name] = Measured([(by_caption, clusters), (by_image, None)])
        if "geometry" in tasks:
            per_item, numbers = geometry(items, before)
            per_item |= _calibration(items, made.sigmoid, before, original.sigmoid if original else None)
            figures["geometry"] = Measured([(per_item, clusters)], numbers=numbers)
        if "robustness" in tasks:
            changed = robustness(items, made.variants[split], factory, pool)
            figures["robustness"] = Measured([(changed, clusters)])
        if factory is not ExactIndex and len(items.safe_text) and len(items.safe_image):
            figures["index"] = Measured([], numbers={"recall_at_10_of_exact": _index_recall(items, factory)})
    for name, found in made.classified.items():
        results["zero_shot"][name] = Measured([(zero_shot(*found), None)])
    return results


def _calibration(
    items: QuadrupletItems,
    sigmoid: tuple[float, float] | None,
    before: QuadrupletItems | None,
    sigmoid_before: tuple[float, float] | None,
) -> dict[str, Tensor]:
    """Of each safe pair the probability that a SigLIP gives it, and by how much the original's differs; in [0, 1]."""
    if sigmoid is None or not (len(items.safe_text) and len(items.safe_image)):
        return {}
    probability, row = pair_probability(items, *sigmoid)
    found = {"pair_probability": figure(probability, row, len(items))}
    if before is not None and sigmoid_before is not None:
        change = (probability - pair_probability(before, *sigmoid_before)[0]).abs()
        found["pair_probability_change"] = figure(change, row, len(items))
    return found


def _clusters(items: QuadrupletItems) -> Tensor:
    """A number for each quadruplet, the same where they share a safe image."""
    numbers = len(items) + torch.arange(len(items))
    numbers[items.safe_image.row] = items.safe_image.inverse
    return numbers


def describe(made: dict[str, ModelEmbeddings], data: EvaluationData, **settings) -> dict:
    """What was measured, for `results.json`.

    Args:
        made: the embeddings of each role, `"model"` and, if there is one, `"baseline"`.
        data: what was embedded.
        settings: further facts to state.

    Returns:
        `names` and `weights` (digests) of the models, `samples` (`{"used", "of"}`) and `unreadable` images of each
        split and set, `unavailable` images of each gallery, `different_items` (the number of distinct safe and unsafe
        items of each split), and the settings.
    """
    model = made["model"]
    samples = {
        "splits": {
            name: {
                "used": len(np.unique(items.made_from.row)),
                "of": data.splits[name].of + len(data.bad_captions.get(name, ())),
            }
            for name, items in model.splits.items()
        },
        "unsafe_gallery": {
            name: {"used": len(items), "of": data.galleries[name].of} for name, items in model.galleries.items()
        },
        "zero_shot": {
            name: {"used": len(labels), "of": data.classified_of[name], "classes": len(classes)}
            for name, (_, labels, classes) in model.classified.items()
        },
    }
    different = {
        split: {
            f"{side}_{modality}": len(items.of(side, modality).first)
            for side in ("safe", "unsafe")
            for modality in ("text", "image")
        }
        for split, items in model.splits.items()
    }
    return {
        "names": {role: each.name for role, each in made.items()},
        "weights": {role: each.weights for role, each in made.items()},
        **settings,
        "samples": samples,
        "different_items": different,
        # Without names of files and addresses, which can be as explicit as what they show.
        "unreadable": {where: [place(reason) for reason in reasons] for where, reasons in model.unreadable.items()},
        "unavailable": {where: [place(reason) for reason in reasons] for where, reasons in data.unavailable.items()},
    }


def place(reason: str) -> str:
    """Where an image that was left out stands: "row 3, column 'image'", or "list.txt, line 7"."""
    # pyrefly: ignore [missing-attribute]: its last alternative, nothing, is found everywhere
    return re.match(r"row \d+, column '[^']*'|.*?, line \d+|", reason).group() or "an image"


def faiss_factory(name: str) -> IndexFactory:
    """Makes FAISS indexes by a factory string."""
    return partial(FaissIndex, factory=name)


def _index_recall(items: QuadrupletItems, factory: IndexFactory) -> float:
    exact = cast(ExactIndex, union_index(items, "image", ExactIndex)[0])
    index = cast(FaissIndex, union_index(items, "image", factory)[0])
    return index_recall(items.safe_text.embeds[:INDEX_QUERIES], index, exact.gallery)
