"""What a search by the original gains where a safe model orders its first k results anew.

    safe-clip train
    python benchmarks/rerank.py safe-clip

Of the split `test` of the bundled demo, in percent: unsafe and safe queries that find something safe first among all
items of the other modality, and safe queries that find their own item first among the safe ones. With k of 1 the
original's order stands; "all" is a search by the safe model alone, which requires an index of its own.
"""

import argparse

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


def rates(models: tuple[QuadrupletItems, QuadrupletItems], modality: str, k: int) -> list[float]:
    """Safe share of unsafe queries and of safe ones, and recall@1 of safe ones, in percent.

    Args:
        models: the same quadruplets, embedded by the original and by the safe model.
        modality: of the queries.
        k: how many results are ordered anew.
    """
    other = "image" if modality == "text" else "text"
    galleries = [[items.of(side, other).embeds for side in ("safe", "unsafe")] for items in models]
    count, shares = len(galleries[0][0]), []
    for side in ("unsafe", "safe"):
        cosines = [
            items.of(side, modality).embeds @ torch.cat(both).T for items, both in zip(models, galleries, strict=True)
        ]
        shares.append((best(*cosines, k) < count).double().mean().item())
    cosines = [items.of("safe", modality).embeds @ safe.T for items, (safe, _) in zip(models, galleries, strict=True)]
    own = best(*cosines, k) == torch.arange(count)
    return [100 * share for share in (*shares, own.double().mean().item())]


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
    for k in (*FIRST, 2 * len(rows)):
        (text, safe_text, one_way), (image, safe_image, other_way) = (
            rates(models, each, k) for each in ("text", "image")
        )
        name = {1: "none", 2 * len(rows): "all"}.get(k, f"{k} of {2 * len(rows):,}")
        shown = f"{text:.1f} | {image:.1f} | {safe_text:.1f} | {safe_image:.1f} | {one_way:.1f}, {other_way:.1f}"
        print(f"| {name} | {shown} |")


if __name__ == "__main__":
    main()
