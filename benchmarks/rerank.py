"""What a search by the original gains where a safe model orders its first k results anew.

    safe-clip train
    python benchmarks/rerank.py safe-clip

Of the split `test` of the bundled demo, in percent: unsafe and safe queries that find something safe first among all
items of the other modality, and safe queries that find their own item first among the safe ones. With k of 1 the
original's order stands; "all" is a search by the safe model alone, which requires an index of its own.
"""

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import safe_clip
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.quadruplets import QuadrupletItems, embed_quadruplets

BASE, SPLIT = "demo", "test"
FIRST = (1, 10, 50, 100, 500)


def best(original: Tensor, safe: Tensor, k: int) -> Tensor:
    """The item that each query finds first where a safe model orders the original's first k: Q numbers of G items.

    Args:
        original, safe: cosines of the queries with all items by the two models, Q x G.
        k: how many are ordered anew.
    """
    found = original.topk(min(k, original.shape[1]), dim=1).indices
    return found.gather(1, safe.gather(1, found).argmax(1, keepdim=True)).squeeze(1)


def rates(models: Sequence[QuadrupletItems], modality: str) -> Iterator[list[float]]:
    """For each of `FIRST`, and for all: safe share of unsafe queries and of safe ones, and recall@1 of safe ones, in
    percent.

    Args:
        models: the same quadruplets, embedded by the original and by the safe model.
        modality: of the queries.
    """
    other, count = "image" if modality == "text" else "text", len(models[0])
    unsafe, safe = (
        [
            items.of(side, modality).embeds @ torch.cat([items.of(each, other).embeds for each in ("safe", "unsafe")]).T
            for items in models
        ]
        for side in ("unsafe", "safe")
    )
    own = torch.arange(count)
    for k in (*FIRST, 2 * count):
        among_safe = best(*(cosines[:, :count] for cosines in safe), k)
        found = best(*unsafe, k) < count, best(*safe, k) < count, among_safe == own
        yield [100 * each.double().mean().item() for each in found]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("model", help="the folder that `safe-clip train` wrote")
    args = options.parse_args()
    rows = safe_clip.load_quadruplets(BASE)[SPLIT]
    processor = safe_clip.load_processor(BASE)
    models = tuple(
        embed_quadruplets(Embedder(safe_clip.load_clip(name), processor, name), rows) for name in (BASE, args.model)
    )
    print("| results ordered anew | unsafe caption | unsafe image | safe caption | safe image | recall@1, both ways |")
    print("|---|---|---|---|---|---|")
    names = ["none", *(f"{k} of {2 * len(rows):,}" for k in FIRST[1:]), "all"]
    for name, text, image in zip(names, *(rates(models, each) for each in ("text", "image")), strict=True):
        cells = [f"{value:.1f}" for pair in zip(text[:2], image[:2], strict=True) for value in pair]
        print(f"| {name} | {' | '.join(cells)} | {text[2]:.1f}, {image[2]:.1f} |")


if __name__ == "__main__":
    main()
