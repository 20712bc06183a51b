"""How far a query was redirected: a score of the safe and the original embedding, and what it means.

A score alone says little, since training moves safe queries too. It is calibrated on safe items of a split that no
weight was trained on: the false-alarm rate of a score is the share of them that was moved at least as far.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .. import __version__
from ..embedding.embedder import Embedder
from ..embedding.index import index_settings
from ..embedding.items import figure
from ..errors import UserError
from ..items import MODALITIES
from ..models.reference import FrozenCLIP
from .intervals import DIGITS, RESAMPLES, SEED, summarise
from .quadruplets import QuadrupletItems

FILE = "calibration.json"
SCORE = "1 - cosine of safe and original"
RATES = (0.01, 0.05, 0.1)  # of false alarms, that figures are given at
KEPT = 2000  # safe scores that a calibration holds
FEWEST = 30  # safe items that it is made of


def redirection_score(safe: Tensor, original: Tensor) -> Tensor:
    """How far the safe encoder puts each of N texts, or of N images, from where the original does.

    It is no content filter: what training did not move has a low score, however unsafe it is.

    Args:
        safe: N x dimension embeddings by the safe model, of any length.
        original: N x dimension embeddings of the same items by the model that it was trained from.

    Returns:
        N scores, float32: one minus the cosine, from 0 (not moved) to 2.

    Raises:
        UserError: the two are not embeddings of one shape.
    """
    if safe.shape != original.shape or safe.ndim != 2:
        raise UserError(
            f"a redirection score compares embeddings of one shape, not {tuple(safe.shape)} with "
            f"{tuple(original.shape)}: embed the same items with the safe model and with its original."
        )
    a, b = (normalize(embeds.detach().float().cpu(), dim=1) for embeds in (safe, original))
    return (1 - (a * b).sum(dim=1)).clamp(0, 2)


@dataclass(frozen=True)
class Calibration:
    """What scores mean for one safe model and its original.

    Attributes:
        facts: what `calibration.json` holds: names and digests of both models, the data, and for `"text"` and
            `"image"` the safe `scores` in order, `thresholds` at some false-alarm rates, and what was found in each
            split.
    """

    facts: Mapping[str, Any]

    def false_alarm_rate(self, scores: Tensor, modality: str = "text") -> Tensor:
        """The share of safe queries that is moved at least as far as each of N.

        Args:
            scores: N, of `redirection_score`.
            modality: `"text"` or `"image"`.

        Returns:
            N float64 rates in (0, 1]. Of N safe queries like those of the calibration, a share of about r gets a rate
            of r or less.

        Raises:
            UserError: the calibration has no such items.
        """
        safe = torch.tensor(self._of(modality)["scores"], dtype=torch.float64)
        above = len(safe) - torch.searchsorted(safe, scores.double().cpu().contiguous())
        return (above + 1) / (len(safe) + 1)

    def threshold(self, rate: float, modality: str = "text") -> float:
        """The least score whose false-alarm rate is no more than `rate`.

        Raises:
            UserError: the calibration has no such items, or too few for so small a rate.
        """
        return threshold(self._of(modality)["scores"], rate, modality)

    def check(self, safe: nn.Module, original: nn.Module) -> None:
        """Raises `UserError` where it was made for another safe model or another original."""
        self.check_made_for({"model": FrozenCLIP(safe).weights, "baseline": FrozenCLIP(original).weights})

    def check_made_for(self, weights: Mapping[str, str], **settings: Any) -> None:
        """Raises `UserError` where it was made for other weights, by their digests, or in other settings."""
        for role, name in (("model", "safe model"), ("baseline", "original")):
            if self.facts["weights"][role] != weights[role]:
                raise UserError(
                    f"the calibration is of another {name} ({self.facts['names'][role]}, as it was then): make it anew "
                    "with safe-clip monitor --calibrate."
                )
        for name, value in settings.items():
            if self.facts[name] != value:
                raise UserError(
                    f"the calibration was made with another {name}: make it anew with safe-clip monitor --calibrate."
                )

    def _of(self, modality: str) -> Mapping[str, Any]:
        if modality not in self.facts["modalities"]:
            raise UserError(
                f"the calibration is of {' and '.join(self.facts['modalities'])} alone: calibrate with data that have "
                f"safe items of the kind {modality}."
            )
        return self.facts["modalities"][modality]


def open_calibration(path: str | Path) -> Calibration:
    """Opens what `safe-clip monitor --calibrate` wrote.

    Args:
        path: the file, or the folder that holds `calibration.json`.

    Returns:
        The calibration, with `false_alarm_rate(scores)`, `threshold(rate)` and `check(safe, original)`.

    Raises:
        UserError: there is no calibration, or it is of a version with another score.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        parts = [facts["weights"]["model"], facts["weights"]["baseline"], facts["names"], facts["score"]]
        parts += [each["scores"][0] for each in facts["modalities"].values()]
    except FileNotFoundError:
        raise UserError(f"{file} is not there: safe-clip monitor --calibrate writes it.") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{file} is no calibration: safe-clip monitor --calibrate writes one.") from None
    if facts["score"] != SCORE:
        raise UserError(f"{file} is of another score: make it anew with safe-clip monitor --calibrate.")
    return Calibration(facts)


def threshold(safe: Sequence[float], rate: float, modality: str = "text") -> float:
    """The least score that no more than a share `rate` of N safe items, and one more, reaches.

    Args:
        safe: their scores, increasing.

    Raises:
        UserError: there are too few for so small a rate.
    """
    allowed = int(rate * (len(safe) + 1) + 1e-9) - 1  # as `false_alarm_rate` counts
    if allowed < 0:
        raise UserError(
            f"a false-alarm rate of {rate:g} requires {int(np.ceil(1 / rate)) - 1:,} safe items of kind {modality}, "
            f"and the calibration has {len(safe):,}: calibrate with more, or name a larger rate."
        )
    if allowed >= len(safe):
        return 0.0
    return float(np.nextafter(np.float32(safe[len(safe) - 1 - allowed]), np.float32(np.inf)))


def auc(safe: Tensor, unsafe: Tensor, safe_row: Tensor, unsafe_row: Tensor) -> dict[str, float]:
    """The area under the ROC curve: how often an unsafe item has a higher score than a safe one, ties half.

    Args:
        safe, unsafe: N and M scores.
        safe_row, unsafe_row: the row of each, of which a bootstrap draws all items together.

    Returns:
        `{"value", "low", "high"}`, the interval as of `summarise`.
    """
    order = safe.argsort()
    ordered, own = safe[order].numpy(), safe_row[order].numpy()
    low, high = (np.searchsorted(ordered, unsafe.numpy(), side=side) for side in ("left", "right"))

    def area(weights: np.ndarray) -> float:
        below = np.concatenate([[0.0], weights[own].cumsum()])
        mine = weights[unsafe_row.numpy()]
        total = mine.sum() * below[-1]
        return float((mine * (below[low] + below[high])).sum() / 2 / total) if total else np.nan

    rows, rng = 1 + int(max(safe_row.max(), unsafe_row.max())), np.random.default_rng(SEED)
    drawn = [area(np.bincount(rng.integers(rows, size=rows), minlength=rows)) for _ in range(RESAMPLES)]
    bounds = np.nanpercentile(drawn, [2.5, 97.5])
    values = (area(np.ones(rows)), *bounds)
    return {name: round(float(value), DIGITS) for name, value in zip(("value", "low", "high"), values, strict=True)}


def detection(
    scores: Mapping[str, tuple[Tensor, Tensor]], count: int, thresholds: Mapping[float, float]
) -> dict[str, Any]:
    """What scores tell apart in a split.

    Args:
        scores: of `"safe"` and `"unsafe"` items, their scores and their rows.
        count: how many rows there are.
        thresholds: by false-alarm rate of the calibration.

    Returns:
        `safe` and `unsafe`, how many there are; `auc`; for each rate `found`, the share of unsafe items at the
        threshold or above, and `false_alarms`, that of safe ones; with intervals. Without items of a side, without it.
    """
    found: dict[str, Any] = {side: len(values) for side, (values, _) in scores.items()}
    if all(len(values) for values, _ in scores.values()):
        (safe, safe_row), (unsafe, unsafe_row) = scores["safe"], scores["unsafe"]
        found["auc"] = auc(safe, unsafe, safe_row, unsafe_row)
    for name, side in (("found", "unsafe"), ("false_alarms", "safe")):
        values, row = scores[side]
        if len(values):
            reached = {
                f"{rate:g}": figure((values >= least).double(), row, count) for rate, least in thresholds.items()
            }
            found[name] = summarise(reached)
    return found


def calibrate(
    model: Mapping[str, QuadrupletItems], original: Mapping[str, QuadrupletItems], split: str, **facts: Any
) -> Calibration:
    """Makes a calibration, and measures it.

    Args:
        model, original: quadruplets by split, as each embeds them.
        split: the one whose safe items it is made of; the others are measured.
        facts: further ones for the file.

    Raises:
        UserError: the split has too few safe items.
    """
    modalities: dict[str, Any] = {}
    for modality in MODALITIES:
        safe = scores_of(model[split], original[split], "safe", modality, different=True)[0].sort().values
        if len(safe) < FEWEST:
            continue
        if len(safe) > KEPT:
            safe = safe[torch.linspace(0, len(safe) - 1, KEPT).round().long()]
        known = safe.tolist()
        # Of fewer items, the smaller rates cannot be told.
        thresholds = {rate: threshold(known, rate, modality) for rate in RATES if rate * (len(known) + 1) >= 1}
        modalities[modality] = {
            "safe": len(model[split].of("safe", modality).first),
            "thresholds": {f"{rate:g}": least for rate, least in thresholds.items()},
            "splits": {
                name: detection(
                    {side: scores_of(items, original[name], side, modality) for side in ("safe", "unsafe")},
                    len(items),
                    thresholds,
                )
                for name, items in model.items()
            },
            "scores": known,
        }
    if not modalities:
        raise UserError(
            f"split '{split}' has fewer than {FEWEST} different safe items of each kind: a calibration requires more."
        )
    made = {"safe_clip": __version__, "score": SCORE, "split": split, **facts, "modalities": modalities}
    return Calibration(made)


def scores_of(
    model: QuadrupletItems, original: QuadrupletItems, side: str, modality: str, different: bool = False
) -> tuple[Tensor, Tensor]:
    """The scores of the items of a kind, and their rows; of identical ones once, where `different`."""
    items, before = model.of(side, modality), original.of(side, modality)
    if not len(items):
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    values = redirection_score(items.embeds, before.embeds)
    return (values[items.first], items.row[items.first]) if different else (values, items.row)


def made_with(model: Embedder, baseline: Embedder) -> dict[str, Any]:
    """What scores depend on: digests of both models' weights and of their settings, and the precision.

    Raises:
        UserError: they cannot be compared.
    """
    if model.model.dimension != baseline.model.dimension:
        raise UserError(
            f"--model gives embeddings of dimension {model.model.dimension}, and --baseline of "
            f"{baseline.model.dimension}: name the model that it was trained from."
        )
    roles = {"model": model, "baseline": baseline}
    weights = {role: each.model.weights for role, each in roles.items()}
    if weights["model"] == weights["baseline"]:
        raise UserError("--model and --baseline have the same weights, so that no query is moved: name the original.")
    return {
        "weights": weights,
        "settings": {role: index_settings(each) for role, each in roles.items()},
        "precision": cast(str, model.precision),
    }
