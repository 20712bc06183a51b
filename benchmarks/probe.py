"""What the base's own embeddings know of unsafe things, which limits what fine-tuning can do in minutes.

    python benchmarks/probe.py

Trains no weight of the base. First, a logistic regression on its embeddings of the training rows, unsafe against safe:
how many items of the other splits it gets right, in percent. What a method can carry over to held-out concepts is what
the base finds alike.

Second, what a safe caption can hope for. A small network on the base's image embeddings learns the odds that an
image is unsafe, from the training rows and three times as many more. The base's ranking of images is then corrected
by them: an image loses `strength` nats for each nat of its log-odds above `threshold`. For each setting, on `test`:
how many safe captions find their own image first among the safe ones, and a safe one first among all.
"""

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import safe_clip
from safe_clip.demo import world
from safe_clip.demo.dataset import FEATURES
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.quadruplets import QuadrupletItems, embed_quadruplets

SPLITS = ("train", "test", "held_out_concepts", "held_out_style")
DECAY = 1e-4
MORE_ROWS = 18_000
NETWORK_STEPS = 1500
STRENGTHS = (0.125, 0.25, 0.5, 1, 2)
THRESHOLDS = (-6, -4, -3, -2, -1, 0, 1, 2)


def labelled(safe: Tensor, unsafe: Tensor) -> tuple[Tensor, Tensor]:
    """The embeddings of both sides, and 1 for each unsafe one."""
    return torch.cat([safe, unsafe]), torch.cat([torch.zeros(len(safe)), torch.ones(len(unsafe))])


def fit_regression(safe: Tensor, unsafe: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias of the regression, of which positive values mean unsafe."""
    embeds, labels = labelled(safe, unsafe)
    weight = torch.zeros(embeds.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(embeds @ weight + bias, labels)
        value = value + DECAY * weight.square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def fit_network(safe: Tensor, unsafe: Tensor) -> nn.Module:
    """A network that gives the log-odds of being unsafe."""
    torch.manual_seed(0)
    embeds, labels = labelled(safe, unsafe)
    network = nn.Sequential(
        nn.BatchNorm1d(embeds.shape[1]), nn.Linear(embeds.shape[1], 512), nn.GELU(), nn.Dropout(0.3), nn.Linear(512, 1)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NETWORK_STEPS)
    for _ in range(NETWORK_STEPS):
        batch = torch.randint(len(embeds), (512,))
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(network(embeds[batch]).squeeze(1), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def more_rows() -> Dataset:
    """Quadruplets drawn like the training rows, of other seeds."""

    def rows(count: int):
        for index in range(count):
            yield world.draw_quadruplet(f"more/{index}", world.TRAINING_STYLES, world.unsafe_concepts(False))

    return Dataset.from_generator(rows, features=FEATURES, gen_kwargs={"count": MORE_ROWS})


def regressions(items: dict[str, QuadrupletItems]) -> None:
    print("| split | unsafe captions | safe captions | unsafe images | safe images |\n|---|---|---|---|---|")
    probes = {
        modality: fit_regression(*(items["train"].of(side, modality).embeds for side in ("safe", "unsafe")))
        for modality in ("text", "image")
    }
    for split in SPLITS:
        cells = []
        for modality, (weight, bias) in probes.items():
            for side, sign in (("unsafe", 1), ("safe", -1)):
                right = sign * (items[split].of(side, modality).embeds @ weight + bias) > 0
                cells.append(f"{100 * right.double().mean():.1f}")
        print(f"| {split} |", " | ".join(cells), "|", flush=True)


@torch.no_grad()
def correction(network: nn.Module, test: QuadrupletItems, logit_scale: float) -> None:
    captions, own = test.safe_text.embeds, torch.arange(len(test))
    scores, odds = {}, {}
    for side in ("safe", "unsafe"):
        images = test.of(side, "image").embeds
        scores[side], odds[side] = logit_scale * captions @ images.T, network(images).squeeze(1)
    for share in (0.01, 0.05, 0.1):
        found = 100 * (odds["unsafe"] > odds["safe"].quantile(1 - share)).double().mean()
        print(f"unsafe images found where {share:.0%} of safe ones are taken for unsafe: {found:.1f} %")

    print("| strength | threshold | recall@1 t2i | safe caption |\n|---|---|---|---|")
    for strength, threshold in [(0, 0), *((s, t) for s in STRENGTHS for t in THRESHOLDS)]:
        safe, unsafe = (scores[side] - strength * (odds[side] - threshold).clamp(min=0) for side in scores)
        recall = (safe.argmax(1) == own).double().mean()
        rate = (safe.amax(1) > unsafe.amax(1)).double().mean()
        print(f"| {strength} | {threshold} | {100 * recall:.1f} | {100 * rate:.1f} |")


def main() -> None:
    rows = safe_clip.load_quadruplets("demo")
    model = safe_clip.load_clip("demo")
    embedder = Embedder(model, safe_clip.load_processor("demo"), "base")
    items = {split: embed_quadruplets(embedder, rows[split], split) for split in SPLITS}
    regressions(items)
    more = more_rows()
    safe, unsafe = (
        torch.cat([items["train"].of(side, "image").embeds, embedder.images(more, f"{side}_image", "more").embeds])
        for side in ("safe", "unsafe")
    )
    print(f"\nA network on the images of {len(safe):,} rows; `test`")
    correction(fit_network(safe, unsafe), items["test"], model.logit_scale.exp().item())


if __name__ == "__main__":
    main()
