"""Protocol 4: zero-shot classification, the first thing that fine-tuning costs."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

from ..embedding.embedder import Embedder
from ..items import ItemBatch
from ..metrics import scores

KS = (1, 5)


def class_embeddings(embedder: Embedder, class_names: Sequence[str], templates: Sequence[str], desc: str) -> Tensor:
    """One embedding a class: the mean over prompts, each of length 1 (the prompt ensemble of CLIP, section 3.1.4).

    Args:
        embedder: the model.
        class_names: C names.
        templates: T prompts with `{}` where the name goes.
        desc: label of the progress bar.

    Returns:
        C x dimension embeddings of length 1.
    """
    prompts = [template.replace("{}", name) for name in class_names for template in templates]
    embeds = embedder.texts(prompts, desc).embeds
    return normalize(embeds.view(len(class_names), len(templates), -1).mean(dim=1), dim=1)


def zero_shot(images: ItemBatch, labels: Sequence[int], classes: Tensor) -> dict[str, Tensor]:
    """Whether an image's class is among the first.

    Args:
        images: N images.
        labels: the class of each, from 0.
        classes: C x dimension embeddings of length 1.

    Returns:
        `top_1` and, with more than five classes, `top_5`: N values in [0, 1], ties by chance.
    """
    found = scores(
        "recall_at_k",
        queries=images.embeds.numpy(),
        references=[[label] for label in labels],
        gallery=classes,
        k=[k for k in KS if k == 1 or k < len(classes)],
        per_query=True,
    )
    return {f"top_{name.rpartition('_')[2]}": value for name, value in found.items() if name != "rank"}
