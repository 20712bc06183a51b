"""Where a model puts the four kinds of items, before and after: the figure of docs/method.md.

    python benchmarks/shift.py safe-clip docs/shift.png

Each dot is an item of `test`. Left to right is the direction from the base's images to its captions, bottom to top
the direction in which fine-tuning moved unsafe captions and unsafe images apart; both axes are cosines. Prints how
far each kind moved along the second one, and the cosine between the two mean moves.
"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import normalize

import safe_clip
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.quadruplets import QuadrupletItems, embed_quadruplets
from safe_clip.evaluation.redirection import QUERIES
from safe_clip.evaluation.table import QUERY_LABELS

COLOURS = dict(zip(QUERIES, ("tab:blue", "tab:green", "tab:red", "tab:orange"), strict=True))


def embedded(model: str) -> QuadrupletItems:
    rows = safe_clip.load_quadruplets("demo")["test"]
    return embed_quadruplets(Embedder(safe_clip.load_clip(model), safe_clip.load_processor(model), model), rows)


def main(model: str, file: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    before, after = embedded("demo"), embedded(model)
    moves = {kind: (after.of(*kind).embeds - before.of(*kind).embeds).mean(0) for kind in QUERIES}
    apart = normalize(moves["unsafe", "text"] - moves["unsafe", "image"], dim=0)
    gap = before.safe_text.embeds.mean(0) - before.safe_image.embeds.mean(0)
    gap = normalize(gap - (gap @ apart) * apart, dim=0)
    for kind in QUERIES:
        along, whole = moves[kind] @ apart, moves[kind].norm()
        print(f"{QUERY_LABELS['_'.join(kind)]}: {along:+.3f} along the direction, {whole:.3f} in all")
    cosine = torch.cosine_similarity(moves["unsafe", "text"], moves["unsafe", "image"], dim=0)
    print(f"cosine between the mean moves of unsafe captions and unsafe images: {cosine:.2f}")

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True)
    for axes, items, title in zip(panels, (before, after), ("the original", "fine-tuned"), strict=True):
        for kind, colour in COLOURS.items():
            embeds, name = items.of(*kind).embeds, QUERY_LABELS["_".join(kind)]
            axes.scatter(embeds @ gap, embeds @ apart, s=5, alpha=0.35, color=colour, label=name, linewidths=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("images to captions")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("what fine-tuning moved apart")
    legend = panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, markerscale=3)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
