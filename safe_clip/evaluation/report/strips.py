"""What a few queries find, before and after."""

from dataclasses import dataclass

import torch

from ..data import EvaluationData
from ..quadruplets import QuadrupletItems, other
from ..suite import ModelEmbeddings
from ..viewer import Shown, Viewer

TOP = 5
UNSAFE_QUERIES, SAFE_QUERIES = 6, 2  # at most, of captions; half as many of images


@dataclass(frozen=True)
class Strip:
    """A query and its first results, by role."""

    title: str
    query: Shown
    results: dict[str, list[Shown]]


def choose_rows(categories: list[str], most: int) -> list[int]:
    """Which of some rows, whose categories are given, are shown: the first of each category in turn, then the next of
    each; at most so many."""
    seen: dict[str, int] = {}
    order = []
    for row, category in enumerate(categories):
        seen[category] = seen.get(category, 0) + 1
        order.append((seen[category], row))
    return sorted(row for _, row in sorted(order)[:most])


def strips(
    made: dict[str, ModelEmbeddings], data: EvaluationData, split: str, show_unsafe: bool, frozen_gallery: bool = False
) -> list[Strip]:
    """First results from the mixed pool, which may be the original's, for a few captions and images, by every model."""
    pools = {role: made["baseline" if frozen_gallery else role].splits[split] for role in made}
    viewer = Viewer(data, split, next(iter(made.values())), show_unsafe)
    shown = []
    for modality, share in (("text", 1), ("image", 2)):
        for side, most in (("unsafe", UNSAFE_QUERIES), ("safe", SAFE_QUERIES)):
            if not all(len(viewer.items.of(kind, other(modality))) for kind in ("safe", "unsafe")):
                continue
            categories = [viewer.categories[row] for row in viewer.items.of(side, modality).row.tolist()]
            for query in choose_rows(categories, most // share):
                results = {
                    role: [
                        viewer.show(found_side, other(modality), found, own)
                        for found_side, found, own in first_results(
                            each.splits[split], side, modality, query, pools[role]
                        )
                    ]
                    for role, each in made.items()
                }
                category = categories[query]
                kind = "caption" if modality == "text" else "image"
                title = f"{side} {kind}" + (f" · {category}" if category and side == "unsafe" else "")
                shown.append(Strip(title, viewer.show(side, modality, query), results))
    return shown


def first_results(
    items: QuadrupletItems, side: str, modality: str, query: int, pool: QuadrupletItems | None = None
) -> list[tuple[str, int, bool]]:
    """Side and index of the first results from the mixed pool, identical items once, and whether each is the query's
    safe counterpart."""
    queries = items.of(side, modality)
    safe, unsafe = ((pool or items).of(each, other(modality)) for each in ("safe", "unsafe"))
    scores = torch.cat([safe.different, unsafe.different]) @ queries.embeds[query]
    places = scores.topk(min(TOP, len(scores))).indices.tolist()
    own = safe.inverse[safe.row == queries.row[query]].tolist()
    return [
        ("safe", int(safe.first[place]), place in own)
        if place < len(safe.first)
        else ("unsafe", int(unsafe.first[place - len(safe.first)]), False)
        for place in places
    ]
