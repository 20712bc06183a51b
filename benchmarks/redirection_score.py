"""Which score tells best that a query was redirected, and what it misses.

    safe-clip train
    python benchmarks/redirection_score.py safe-clip

Of the bundled demo, for captions and for images. Scores that might be taken, of a safe and an original embedding of the
same item:

- `moved`: one minus their cosine, which is `safe_clip.redirection_score`;
- `direction`: how much of the direction from safe to unsafe training items, by the original, the safe model took away;
- `spacing`: the angle between them, in angles between the original's embedding and its nearest safe training item;
- `probe`: no score of the two but the plain alternative, a logistic regression on the original's embeddings of the
  training rows, unsafe against safe, as in `benchmarks/probe.py`.

Thresholds are those of the safe items of `validation`, as `safe-clip monitor --calibrate` sets them. For each split, in
percent with 95 % bootstrap intervals over the rows: the area under the ROC curve, and at 1, 5 and 10 % false alarms
the share of unsafe items found / of the split's own safe items that are false alarms. Last, where 1 % of queries are
unsafe, how many of those that are flagged at 1 % are.

A second table has the same captions of `test` put differently, and queries that are unlike captions of the demo: what
share of the unsafe / of the safe ones `moved` flags at 1, 5 and 10 % false alarms among safe captions. And a third what
it flags where the thresholds are of safe queries put alike (for harmless words: of the unsafe captions unchanged).
"""

import argparse
import random
from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from probe import fit_regression
from torch import Tensor

import safe_clip
from safe_clip.demo import vocabulary, world
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.quadruplets import QuadrupletItems, embed_quadruplets
from safe_clip.evaluation.redirection_score import RATES, detection, redirection_score, threshold
from safe_clip.evaluation.transforms import load_synonyms, text_transforms
from safe_clip.store.folders import folder_of

BASE, CALIBRATED = "demo", "validation"
SPLITS = ("train", CALIBRATED, "test", "held_out_concepts", "held_out_style")
BASE_RATE = 0.01  # of unsafe queries
# Of which the demo knows few.
HARMLESS = (
    "invoice meadow violin kettle stairs accordion lighthouse porridge typewriter orchard compass curtain harbour"
)

Score = Callable[[Tensor, Tensor], Tensor]


def candidates(train: QuadrupletItems, modality: str) -> dict[str, Score]:
    """Scores by name, of N x dimension embeddings by the safe model and by the original.

    Args:
        train: the training rows as the original embeds them.
        modality: of the items.
    """
    safe, unsafe = (train.of(side, modality).embeds for side in ("safe", "unsafe"))
    direction = torch.nn.functional.normalize(unsafe.mean(dim=0) - safe.mean(dim=0), dim=0)
    weight, bias = fit_regression(safe, unsafe)

    def angle(cosines: Tensor) -> Tensor:
        return torch.arccos(cosines.clamp(-1, 1))

    def spacing(own: Tensor, original: Tensor) -> Tensor:
        nearest = torch.cat([(part @ safe.T).amax(dim=1) for part in original.split(512)])
        return angle((own * original).sum(dim=1)) / angle(nearest).clamp(min=1e-2)

    return {
        "moved": redirection_score,
        "direction": lambda own, original: (original - own) @ direction,
        "spacing": spacing,
        "probe": lambda _, original: original @ weight + bias,
    }


def scored(score: Score, model: QuadrupletItems, original: QuadrupletItems, side: str, modality: str):
    """The scores of the items of a kind, and their rows."""
    items = model.of(side, modality)
    return score(items.embeds, original.of(side, modality).embeds), items.row


def precision(found: float, false_alarms: float) -> float:
    """The share of flagged queries that are unsafe, where `BASE_RATE` of all are."""
    flagged = BASE_RATE * found + (1 - BASE_RATE) * false_alarms
    return BASE_RATE * found / flagged if flagged else 0.0


def unlike_captions() -> dict[str, tuple[list[str], list[str]]]:
    """Unsafe and safe queries of other kinds than the captions of the demo, by what they are."""
    names = [[concept.names[0] for concept in world.unsafe_concepts(False)]]
    names += [[concept.names[0] for concept in world.everyday_concepts()]]
    rng = random.Random(0)
    unknown = [f"{a} and {b} on {c}" for a, b, c in (rng.sample(HARMLESS.split(), 3) for _ in range(500))]
    return {
        "the names of things alone": (names[0], names[1]),
        "harmless words, most not of the demo": ([], unknown),
    }


def put_differently(embedders: Sequence[Embedder], rows: Dataset, thresholds: dict[float, float]) -> None:
    """Prints what is flagged of the captions of rows under every small change, and of other queries."""
    sides = [list(rows[f"{side}_caption"]) for side in ("unsafe", "safe")]
    table = load_synonyms() | vocabulary.synonyms()
    queries = {"unchanged": sides}
    queries |= {name: [[*map(change, each)] for each in sides] for name, change in text_transforms(table).items()}
    queries |= unlike_captions()
    print(f"\n| captions of test | {' | '.join(f'{100 * rate:g} %' for rate in RATES)} |\n|---|---|---|---|")
    known = {}
    for name, pair in queries.items():
        known[name] = [
            redirection_score(*(each.texts(texts).embeds for each in embedders)) if texts else torch.empty(0)
            for texts in pair
        ]
        print(f"| {name} | {flagged(known[name], thresholds)} |", flush=True)
    # Every other one is what the thresholds are of, and the rest what they are tried on.
    print("\nThe same, with thresholds of safe queries that are like these")
    for name, (unsafe, safe) in known.items():
        own = {rate: threshold(safe[::2].sort().values.tolist(), rate) for rate in RATES if rate * (len(safe) // 2) > 1}
        print(f"| {name} | {flagged([unsafe if len(unsafe) else known['unchanged'][0], safe[1::2]], own)} |")


def flagged(scores: Sequence[Tensor], thresholds: dict[float, float]) -> str:
    """The shares of scores at thresholds or above, in percent: of the unsafe and of the safe ones."""
    pairs = (
        [f"{100 * (each >= least).double().mean():.1f}" for each in scores if len(each)]
        for least in thresholds.values()
    )
    return " | ".join(" / ".join(pair) for pair in pairs)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("model", help="the folder that `safe-clip train` wrote")
    args = options.parse_args()
    rows = safe_clip.load_quadruplets(BASE)
    made, embedders = {}, []
    for name in (args.model, BASE):
        embedder = Embedder(
            safe_clip.load_clip(name), safe_clip.load_processor(name), name, cache_dir=folder_of("embeddings")
        )
        embedders.append(embedder)
        splits = SPLITS if name == BASE else SPLITS[1:]
        made[name] = {split: embed_quadruplets(embedder, rows[split], split) for split in splits}
    model, original = made[args.model], made[BASE]
    rates = " | ".join(f"{100 * rate:g} %" for rate in RATES)
    for modality, called in (("text", "captions"), ("image", "images")):
        print(f"\n| {called} | score | AUC | {rates} | unsafe of flagged |\n|---|---|---|---|---|---|---|")
        for name, score in candidates(original["train"], modality).items():
            known = scored(score, model[CALIBRATED], original[CALIBRATED], "safe", modality)[0].sort().values.tolist()
            thresholds = {rate: threshold(known, rate) for rate in RATES}
            if (modality, name) == ("text", "moved"):
                of_captions = thresholds
            for split, items in model.items():
                sides = {side: scored(score, items, original[split], side, modality) for side in ("safe", "unsafe")}
                told = detection(sides, len(items), thresholds)
                area = "{value:.1f} ({low:.1f} to {high:.1f})".format(
                    **{key: 100 * each for key, each in told["auc"].items()}
                )
                pairs = [[told[kind][f"{rate:g}"]["value"] for kind in ("found", "false_alarms")] for rate in RATES]
                cells = " | ".join(f"{100 * found:.1f} / {100 * alarms:.1f}" for found, alarms in pairs)
                print(f"| {split} | {name} | {area} | {cells} | {100 * precision(*pairs[0]):.0f} |", flush=True)
    put_differently(embedders, rows["test"], of_captions)


if __name__ == "__main__":
    main()
