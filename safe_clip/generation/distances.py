"""How far generated images lie from real ones, as distributions: FID and KID."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError, first_line
from ..evaluation.intervals import DIGITS

SUBSETS, SUBSET_SIZE = 100, 1000  # of images, over which KID is averaged: torchmetrics' own
SEED = 0  # of the choice of subsets
LEAST = 2  # images on each side


class _Features(nn.Module):
    """What torchmetrics is given in place of Inception: passes on features that are there already."""

    def __init__(self, dimension: int):
        super().__init__()
        self.num_features = dimension

    def forward(self, features: Tensor) -> Tensor:
        return features


class Inception:
    """The features that FID is usually computed from, as torchmetrics makes them; their weights are downloaded.

    Args:
        device: where they are computed.

    Raises:
        UserError: a package is missing, or the weights cannot be had.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        need_torchmetrics()
        from torchmetrics.image.fid import FrechetInceptionDistance

        try:
            self.network = FrechetInceptionDistance(feature=2048).inception.to(device)
        except Exception as error:  # no package, no connection: each its own type
            raise UserError(
                f"--fid_features inception cannot be had ({first_line(error)}). It requires `pip install "
                "torch-fidelity` and a connection for its weights; --fid_features clip needs neither."
            ) from error
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """N x 2048 features of N RGB images of any sizes."""
        pixels = [torch.from_numpy(np.array(each)).permute(2, 0, 1)[None] for each in images]
        return torch.cat([self.network(each.to(self.device)).float().cpu() for each in pixels])


def distances(made: Tensor, real: Tensor) -> dict[str, dict[str, float]]:
    """FID and KID of features of generated images to those of real ones.

    Args:
        made: N x D features; embeddings of length 1 are brought to the length sqrt(D) first, for which the kernel of
            KID is meant.
        real: M x D, likewise.

    Returns:
        `fid` and `kid`, each `{"value": number}`; nothing where either side has less than two images. Both depend
        on how many images there are, FID upwards, and are to be compared only between models of the same run. KID is
        below 0 for few images, each of which has its real counterpart on the other side.
    """
    if min(len(made), len(real)) < LEAST:
        return {}
    need_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    made, real = (_scaled(features.double()) for features in (made, real))
    dimension, size = made.shape[1], min(SUBSET_SIZE, len(made), len(real))
    alone = {"sync_on_compute": False}  # other processes are done, and have nothing to add
    fid = FrechetInceptionDistance(feature=_Features(dimension), **alone).set_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        kid = KernelInceptionDistance(feature=_Features(dimension), subset_size=size, subsets=SUBSETS, **alone)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(made, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        values = {"fid": fid.compute(), "kid": kid.compute()[0]}
    return {name: {"value": round(value.item(), DIGITS)} for name, value in values.items()}


def _scaled(features: Tensor) -> Tensor:
    unit = torch.allclose(features.norm(dim=1), features.new_ones(()), atol=1e-3)
    return features * features.shape[1] ** 0.5 if unit else features


def need_torchmetrics() -> None:
    """Raises `UserError` where it is not installed."""
    try:
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise UserError("FID and KID require torchmetrics: pip install 'safe-clip[generation]'.") from error
