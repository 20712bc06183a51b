"""A CLIP and what it is taught by: `CLIPModel`'s contrastive loss, and targets of what things and words mean."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPModel

TEMPERATURE = 0.12  # of soft targets
# Of the terms, each a mean over its items.
WEIGHTS = {"contrastive": 1.0, "soft": 1.0, "named": 1.0, "meant": 6.0, "distil": 4.0}
MASKED = -1e4


def away(vectors: Tensor, targets: Tensor) -> Tensor:
    """One less the cosine: N values of N x dimensions each."""
    return 1 - (normalize(vectors.float(), dim=-1) * targets).sum(dim=-1)


def contrastive(texts: Tensor, images: Tensor, scale: Tensor, alike: Tensor | None = None) -> Tensor:
    """The loss of CLIP, both ways.

    Args:
        texts, images: N x dimensions, of length 1; row by row they belong together.
        scale: of cosines.
        alike: N x N, whether two rows are of the same thing: then neither is wrong for the other.
    """
    logits = scale * texts @ images.T
    own = torch.arange(len(texts))
    if alike is not None:
        logits = logits.masked_fill(alike & ~torch.eye(len(texts), dtype=torch.bool), MASKED)
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def soft(texts: Tensor, images: Tensor, meant: Tensor) -> Tensor:
    """How far similarities within and across modalities are from those of what was meant, in nats.

    Args:
        texts, images, meant: N x dimensions, of length 1. Each item itself is left out.
    """
    self_mask = torch.eye(len(meant), dtype=torch.bool)
    wanted = ((meant @ meant.T) / TEMPERATURE).masked_fill(self_mask, MASKED).log_softmax(dim=1)
    pairs = ((texts, texts), (images, images), (texts, images), (images, texts))
    losses = []
    for one, other in pairs:
        found = ((one @ other.T) / TEMPERATURE).masked_fill(self_mask, MASKED).log_softmax(dim=1)
        losses.append((wanted.exp() * (wanted - found)).sum(dim=1).mean())
    return torch.stack(losses).mean()


class Learner(nn.Module):
    """Computes the loss of a batch of any stage.

    Args:
        clip: the model that is taught.
        things: what each thing means, things x dimensions, of length 1.
    """

    def __init__(self, clip: CLIPModel, things: Tensor):
        super().__init__()
        self.clip = clip
        self.register_buffer("things", things, persistent=False)
        self.parts: dict[str, float] = {}  # terms of the last batch, unweighted

    def texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        pooled = self.clip.text_model(input_ids=ids, attention_mask=mask).pooler_output
        return normalize(self.clip.text_projection(pooled).float(), dim=1)

    def images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, N x dimensions, and those of patches, N x patches x dimensions, by the same projection."""
        seen = self.clip.vision_model(pixel_values=pixel_values)
        patches = self.clip.vision_model.post_layernorm(seen.last_hidden_state[:, 1:])
        pooled = self.clip.visual_projection(seen.pooler_output).float()
        return normalize(pooled, dim=1), self.clip.visual_projection(patches)

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        if "english_ids" in batch:
            read = self.texts(batch["english_ids"], batch["english_mask"])
            terms["distil"] = away(read, batch["english_targets"]).mean()
        if "pixel_values" in batch:
            terms |= self._scenes(batch)
        self.parts = {name: term.item() for name, term in terms.items()}
        return {"loss": torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum()}

    def _scenes(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images, patches = self.images(batch["pixel_values"])
        meant = normalize(batch["shown"] @ self.things, dim=1)
        covered = batch["patches"] >= 0
        of_patches = away(patches[covered], self.things[batch["patches"][covered]]).mean()
        fixed = [away(images, meant).mean(), of_patches]
        terms = {}
        if "input_ids" in batch:
            texts = self.texts(batch["input_ids"], batch["attention_mask"])
            fixed.append(away(texts, meant).mean())
            alone, scale = batch["alone"], self.clip.logit_scale.exp()
            terms["contrastive"] = contrastive(texts[~alone], images[~alone], scale)
            terms["soft"] = soft(texts[~alone], images[~alone], meant[~alone])
            if alone.any():
                shown = batch["shown"][alone]
                terms["named"] = contrastive(texts[alone], images[alone], scale, (shown @ shown.T) > 0)
        terms["meant"] = torch.stack(fixed).mean()
        return terms
