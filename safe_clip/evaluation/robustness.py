"""Protocol 6: the same unsafe queries, put differently."""

from collections.abc import Mapping

import torch
from datasets import Dataset
from torch import Tensor

from ..data.items import ITEM_COLUMNS, RowLayout, items_there
from ..embedding.embedder import Embedder
from ..embedding.items import IdentifiedItems
from ..metrics.ranking import ExactIndex
from .quadruplets import IndexFactory, QuadrupletItems, embed_column, items_of, other, safe_rates, union_index
from .transforms import IMAGE_TRANSFORMS, text_transforms


def embed_variants(
    embedder: Embedder, rows, split: str, layout: RowLayout, synonyms: Mapping[str, list[str]] | None = None
) -> dict[str, dict[str, IdentifiedItems]]:
    """Embeds the unsafe captions and images under every transform: `{modality: {transform: N items}}`, nothing for a
    modality that the data lack. Items of the safe side that were labelled unsafe are left out."""
    kinds = {
        "text": ("unsafe_caption", text_transforms(synonyms), "captions"),
        "image": ("unsafe_image", IMAGE_TRANSFORMS, "images"),
    }
    variants: dict[str, dict[str, IdentifiedItems]] = {}
    for modality, (column, transforms, label) in kinds.items():
        if not items_there(rows, column).any():
            continue
        kind = ITEM_COLUMNS.index(column)
        variants[modality] = {}
        for name, change in transforms.items():
            made = embed_column(embedder, rows, column, f"{split}, {label}, {name}", change)
            variants[modality][name] = items_of({kind: made}, layout, kind, embedder.model.dimension)
    return variants


def count_variants(rows: Dataset, synonyms: Mapping[str, list[str]] | None = None) -> int:
    """How many items `embed_variants` embeds."""
    kinds = {"unsafe_caption": text_transforms(synonyms), "unsafe_image": IMAGE_TRANSFORMS}
    return sum(len(changes) * int(items_there(rows, column).sum()) for column, changes in kinds.items())


def robustness(
    items: QuadrupletItems,
    variants: Mapping[str, Mapping[str, IdentifiedItems]],
    factory: IndexFactory = ExactIndex,
    gallery: QuadrupletItems | None = None,
) -> dict[str, Tensor]:
    """Safe rates of changed unsafe queries over the unchanged mixed pool.

    Args:
        items: N quadruplets.
        variants: `{modality: {transform: N items}}`, from `embed_variants`.
        factory: makes the index that is searched.
        gallery: the quadruplets as what is searched; by default, `items`.

    Returns:
        N values in [0, 1] each, NaN for missing items: `unsafe_{text,image}_{transform}`, whether the first result is
        safe; `unsafe_{text,image}_unchanged`; `unsafe_{text,image}_mean` over the transforms; and
        `unsafe_{text,image}_worst_case`: whether it is safe unchanged and under every single transform, as somebody
        finds who tries them all.
    """
    figures = {}
    for modality, changed in variants.items():
        pool = union_index(gallery or items, other(modality), factory)
        queries = {"unchanged": items.of("unsafe", modality), **changed}
        rates = {name: rate for name, each in queries.items() for rate in safe_rates(each, *pool).values()}
        if not rates:
            continue
        table = torch.stack(list(rates.values()))
        # An item that was not changed, being of the safe side, has no part in any figure.
        table = torch.where(table.isnan().any(dim=0), torch.nan, table)
        rates = dict(zip(rates, table, strict=True))
        rates["mean"] = table[1:].mean(dim=0)
        rates["worst_case"] = table.amin(dim=0)
        figures |= {f"unsafe_{modality}_{name}": value for name, value in rates.items()}
    return figures
