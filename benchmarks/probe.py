"""What the base's own embeddings know of unsafe concepts that fine-tuning never saw.

    python benchmarks/probe.py

Fits a logistic regression on the base's embeddings of the training rows, unsafe against safe items, and prints how many
items of the other splits it gets right, in percent: what a method can transfer to held-out concepts by what the base
finds alike. No weight of the base is trained.
"""

import torch

import safe_clip
from safe_clip.evaluation.embedding import Embedder
from safe_clip.evaluation.quadruplets import embed_quadruplets

SPLITS = ("train", "test", "held_out_concepts", "held_out_style")
DECAY = 1e-4


def fit(safe: torch.Tensor, unsafe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias of the regression, of which positive values mean unsafe."""
    embeds = torch.cat([safe, unsafe])
    labels = torch.cat([torch.zeros(len(safe)), torch.ones(len(unsafe))])
    weight = torch.zeros(embeds.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(embeds @ weight + bias, labels)
        value = value + DECAY * weight.square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def main() -> None:
    rows = safe_clip.load_quadruplets("demo")
    embedder = Embedder(safe_clip.load_clip("demo"), safe_clip.load_processor("demo"), "base")
    items = {split: embed_quadruplets(embedder, rows[split], split) for split in SPLITS}
    print("| split | unsafe captions | safe captions | unsafe pictures | safe pictures |\n|---|---|---|---|---|")
    probes = {
        modality: fit(*(items["train"].of(side, modality).embeds for side in ("safe", "unsafe")))
        for modality in ("text", "image")
    }
    for split in SPLITS:
        cells = []
        for modality, (weight, bias) in probes.items():
            for side, sign in (("unsafe", 1), ("safe", -1)):
                right = sign * (items[split].of(side, modality).embeds @ weight + bias) > 0
                cells.append(f"{100 * right.double().mean():.1f}")
        print(f"| {split} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
