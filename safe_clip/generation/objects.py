"""Whether what was generated has in it what the safe caption names: of the bundled demo, whose things are known."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor


def named_share(reference: str | None, text: str) -> float:
    """Of the things that a safe caption names, the share that a text mentions too; NaN where it names none."""
    from ..demo.mentions import mentions

    named, mentioned = mentions(reference or ""), mentions(text)
    return _share([any(meant & other for other in mentioned) for meant in named])


class ShownObjects:
    """Of the things that a safe caption names, the share that an image shows, as the bundled recogniser sees it.

    Args:
        device: where it looks.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        from ..demo import recogniser

        self.sure, self.labels = recogniser.SURE, recogniser.labels()
        self.model, self.processor = recogniser.load_recogniser()
        self.model.to(device)

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the recogniser."""
        from ..store.fingerprints import weights_digest

        return weights_digest(self.model.state_dict().items())

    @torch.inference_mode()
    def shares(self, images: Sequence[Image.Image], references: Sequence[str | None]) -> Tensor:
        """N float64 shares, one for each image and its safe caption; NaN where that names nothing."""
        from ..demo.mentions import mentions
        from ..demo.recogniser import label_of

        pixels = self.processor(list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
        scores = self.model(pixel_values=pixels).logits.float().sigmoid().cpu()
        shown = [
            {label for label, score in zip(self.labels, row, strict=True) if score >= self.sure}
            for row in scores.tolist()
        ]
        return torch.tensor(
            [
                _share([any(label_of(concept) in seen for concept in meant) for meant in mentions(reference or "")])
                for seen, reference in zip(shown, references, strict=True)
            ],
            dtype=torch.float64,
        )


def _share(found: list[bool]) -> float:
    return sum(found) / len(found) if found else math.nan
