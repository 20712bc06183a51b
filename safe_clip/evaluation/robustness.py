"""Protocol 6: the same unsafe queries, put differently."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..metrics.ranking import ExactIndex
from .embedding import Embedder, Items
from .quadruplets import IndexFactory, QuadrupletItems, other, safe_rates, union_index
from .transforms import IMAGE_TRANSFORMS, text_transforms


def embed_variants(
    embedder: Embedder, rows, split: str, synonyms: Mapping[str, list[str]] | None = None
) -> dict[str, dict[str, Items]]:
    """Embeds the unsafe captions and pictures under every transform: `{modality: {transform: N items}}`."""
    captions = rows["unsafe_caption"]
    return {
        "text": {
            name: embedder.texts([change(caption) for caption in captions], f"{split}, captions, {name}")
            for name, change in text_transforms(synonyms).items()
        },
        "image": {
            name: embedder.pictures(rows, "unsafe_image", f"{split}, pictures, {name}", change)
            for name, change in IMAGE_TRANSFORMS.items()
        },
    }


def robustness(
    items: QuadrupletItems, variants: Mapping[str, Mapping[str, Items]], factory: IndexFactory = ExactIndex
) -> dict[str, Tensor]:
    """Safe rates of changed unsafe queries over the unchanged mixed pool.

    Args:
        items: N quadruplets.
        variants: `{modality: {transform: N items}}`, from `embed_variants`.
        factory: makes the index that is searched.

    Returns:
        N values in [0, 1] each: `unsafe_{text,image}_{transform}`, whether the first result is safe;
        `unsafe_{text,image}_unchanged`; `unsafe_{text,image}_mean` over the transforms; and
        `unsafe_{text,image}_worst_case`: whether it is safe unchanged and under every single transform, as somebody
        finds who tries them all.
    """
    figures = {}
    for modality, changed in variants.items():
        pool = union_index(items, other(modality), factory)
        rates = {
            name: safe_rates(queries, *pool)["safe_rate_at_1"]
            for name, queries in {"unchanged": items.of("unsafe", modality), **changed}.items()
        }
        table = torch.stack(list(rates.values()))
        rates["mean"] = table[1:].mean(dim=0)
        rates["worst_case"] = table.amin(dim=0)
        figures |= {f"unsafe_{modality}_{name}": value for name, value in rates.items()}
    return figures
