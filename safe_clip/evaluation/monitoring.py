"""What the safe encoder does with the queries of a log, beside the original: figures by period, and nothing else.

Each different text is embedded once, by both. Of a text, its embeddings and its score nothing is written: what is kept,
also of a run that is cut off, are counts and sums over the queries of a period.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.minors import sexualises_minors
from ..data.query_log import QueryLog, Survey, different_texts
from ..embedding.embedder import Embedder
from ..embedding.index import Index, index_settings
from ..errors import UserError
from ..metrics.ranking import TIE
from ..store.writing import write_whole
from ..terminal import phase
from .intervals import DIGITS, share_interval
from .redirection_score import redirection_score

logger = logging.getLogger(__name__)

PART = "monitor.part.json"  # of a run that is not at its end
BLOCK = 4096  # texts that are held at a time
SAVE = 30.0  # seconds of work that an interruption can cost
BINS = 200
EDGES = 2 * (np.arange(BINS + 1) / BINS) ** 2  # of the histograms of scores, narrower where there are most
REDIRECTED, CHANGED, BEFORE, AFTER = "redirected", "first_changed", "first_unsafe_before", "first_unsafe_after"
# What two runs have to share to be compared, and what a message calls it.
SAME = {
    "weights": "other weights",
    "settings": "another configuration or processor of a model",
    "precision": "another --precision",
    "score": "another score",
    "threshold": "another --threshold or calibration",
    "index": "another --index",
}
REFERENCE = "reference"
ARRAYS = ("queries", "texts", "scores", "histogram")  # of a tally
COSINES = 2**23  # that a search holds at a time

Look = Callable[[list[str]], tuple[np.ndarray, dict[str, np.ndarray]]]


class FirstResults:
    """The first results of queries by the original and by the safe model.

    Args:
        after: the index that the safe model's queries search.
        before: the one that the original's search, of the same items; `None` where there is none.

    Raises:
        UserError: they are not of the same items.
    """

    def __init__(self, after: Index, before: Index | None):
        self._after = _vectors(after)
        self._before = self._after if before is after else None if before is None else _vectors(before)
        self._unsafe = after.unsafe()
        if before is not None and not torch.equal(_ids(after), _ids(before)):
            raise UserError(
                "--index and --baseline_index are not of the same items: embed the same data with both models."
            )
        if before is None and self._unsafe is None:
            raise UserError(
                "--index was made by --model and labels nothing unsafe, so that nothing can be compared: name an index "
                "of the same data by --baseline too, with --baseline_index."
            )

    @property
    def shares(self) -> list[str]:
        """What is told of each query."""
        known = self._unsafe is not None
        pair = self._before is not None
        return [CHANGED] * pair + [BEFORE] * (pair and known) + [AFTER] * known

    def of(self, safe: Tensor, original: Tensor) -> dict[str, np.ndarray]:
        """Of N queries, as both models embed them, N booleans for each of `shares`."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.shares}
        size = max(1, COSINES // len(self._after))
        for mine, theirs in zip(safe.split(size), original.split(size), strict=True):
            cosines = mine @ self._after.T
            best, first = cosines.max(dim=1)
            if self._before is not None:
                was = (theirs @ self._before.T).argmax(dim=1)
                # Of items that are alike, either may come first.
                parts[CHANGED].append(cosines.gather(1, was[:, None]).squeeze(1) < best - TIE)
                if self._unsafe is not None:
                    parts[BEFORE].append(self._unsafe[was])
            if self._unsafe is not None:
                parts[AFTER].append(self._unsafe[first])
        return {name: torch.cat(each).numpy() for name, each in parts.items()}


def _vectors(index: Index) -> Tensor:
    return torch.cat([vectors for _, vectors in index.blocks()])


def _ids(index: Index) -> Tensor:
    return torch.cat([ids for ids, _ in index.blocks()])


def searched(index: Index, baseline_index: Index | None, model: Embedder, baseline: Embedder) -> FirstResults:
    """What first results are looked up in, of an index by the original, or of one by each.

    Raises:
        UserError: an index is of other weights or settings, or not of the same items.
    """

    def by(found: Index, embedder: Embedder) -> bool:
        same = found.facts["weights"] == embedder.model.weights
        if same and found.facts["settings"] != index_settings(embedder):
            raise UserError(f"{found.path} was made by {embedder.label} in another configuration: embed anew.")
        return same

    if by(index, baseline):
        if baseline_index is not None:
            raise UserError("--index is of the original, which needs no --baseline_index: leave that out.")
        return FirstResults(index, index)
    if not by(index, model):
        raise UserError(
            f"--index {index.path.parent} was made by neither --model nor --baseline, but by {index.facts['model']} "
            "as it was then: name one of theirs, or embed anew."
        )
    if baseline_index is not None and not by(baseline_index, baseline):
        raise UserError(f"--baseline_index {baseline_index.path.parent} was not made by --baseline: embed with it.")
    return FirstResults(index, baseline_index)


def looker(
    model: Embedder, baseline: Embedder, threshold: float | None, first: FirstResults | None
) -> tuple[Look, list[str]]:
    """What is asked of texts, and the names of the shares that it tells: N scores, and N booleans for each name."""
    shares = [REDIRECTED] * (threshold is not None) + (first.shares if first else [])

    def look(texts: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # which are padded to the longest
        back = torch.tensor(order).argsort()
        alike = [texts[place] for place in order]
        safe, original = (each.texts(alike).embeds[back] for each in (model, baseline))
        scores = redirection_score(safe, original).numpy()
        told = {REDIRECTED: scores >= np.float32(threshold)} if threshold is not None else {}
        return scores, told | (first.of(safe, original) if first else {})

    return look, shares


@dataclass
class Tally:
    """Counts and sums over the queries of P periods.

    Attributes:
        queries: how many there are: P.
        texts: how many different ones: P.
        scores: the sum of their scores: P.
        histogram: how many scores lie between two of `EDGES`: P x `BINS`.
        counts: of how many each share's name is true: P each.
        minors: queries that were left out because they sexualise minors.
    """

    queries: np.ndarray
    texts: np.ndarray
    scores: np.ndarray
    histogram: np.ndarray
    counts: dict[str, np.ndarray]
    minors: int = 0

    @classmethod
    def empty(cls, periods: int, shares: Sequence[str]) -> "Tally":
        """One without any query."""
        none = np.zeros(periods, dtype=np.int64)
        counts = {name: none.copy() for name in shares}
        return cls(none.copy(), none.copy(), np.zeros(periods), np.zeros((periods, BINS), dtype=np.int64), counts)

    def add(self, period: np.ndarray, count: np.ndarray, scores: np.ndarray, told: Mapping[str, np.ndarray]) -> None:
        """Adds K texts in a period each, where they stand so often, with their scores and what is told of them."""
        bins = np.clip(np.searchsorted(EDGES, scores, side="right") - 1, 0, BINS - 1)
        np.add.at(self.queries, period, count)
        np.add.at(self.texts, period, 1)
        np.add.at(self.scores, period, count * scores.astype(np.float64))
        np.add.at(self.histogram, (period, bins), count)
        for name, true in told.items():
            np.add.at(self.counts[name], period, count * true)

    def state(self) -> dict[str, Any]:
        """All of it, for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ARRAYS}
        return arrays | {"counts": {name: each.tolist() for name, each in self.counts.items()}, "minors": self.minors}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Tally":
        """What `state` was of."""
        counts = {name: np.array(each) for name, each in state["counts"].items()}
        arrays = {name: np.array(state[name]) for name in ARRAYS}
        return cls(**arrays, counts=counts, minors=state["minors"])

    def periods(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The figures of each period that has a query, by the names of all."""
        return [
            figures(
                name,
                int(self.queries[place]),
                int(self.texts[place]),
                float(self.scores[place]),
                self.histogram[place].tolist(),
                {share: int(each[place]) for share, each in self.counts.items()},
            )
            for place, name in enumerate(names)
            if self.queries[place]
        ]


def figures(
    name: str, queries: int, texts: int, scores: float, histogram: list[int], counts: dict[str, int]
) -> dict[str, Any]:
    """What is written of a period."""
    return {
        "period": name,
        "queries": queries,
        "different_texts": texts,
        "shares": {share: share_interval(count, queries) for share, count in counts.items()},
        "mean_score": round(scores / queries, DIGITS),
        "counts": counts,
        "score_sum": scores,
        "histogram": histogram,
    }


def pooled(periods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of all queries of some periods, with their names; a text counts anew in each."""
    counts = {share: sum(each["counts"][share] for each in periods) for share in periods[0]["counts"]}
    histogram = np.sum([each["histogram"] for each in periods], axis=0).tolist()
    queries, texts = (sum(each[key] for each in periods) for key in ("queries", "different_texts"))
    made = figures(REFERENCE, queries, texts, sum(each["score_sum"] for each in periods), histogram, counts)
    return made | {"periods": [each["period"] for each in periods]}


def earlier_reference(file: str, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """All queries of an earlier run, to compare others with.

    Args:
        file: the `monitor.json` that it wrote.
        made_by: what this run is made by: `weights`, `settings` and the others of `SAME`.

    Raises:
        UserError: there is none, or it was made by other weights or in other settings.
    """
    try:
        known = json.loads(Path(file).read_text(encoding="utf-8"))
        differ = [what for name, what in SAME.items() if known["made_by"][name] != made_by[name]]
        differ += [] if known["edges"] == EDGES.tolist() else ["another version of safe-clip"]
        reference = pooled(known["periods"]) if not differ else {}
        flagged = sum(bool(each["drift"]) for each in known["periods"])
        by = known["names"]["model"]
    except FileNotFoundError:
        raise UserError(f"--reference {file} is not there: name the monitor.json of an earlier run.") from None
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise UserError(f"--reference {file} is no monitor.json of safe-clip monitor.") from None
    if differ:
        raise UserError(
            f"--reference {file} was made by {by} with {differ[0]}, so that nothing can be compared: run the earlier "
            "log again as this one is run, and name what that writes."
        )
    if flagged:
        logger.warning("--reference %s: %d of its periods differ from its own reference.", file, flagged)
    return reference


def compare(
    log: QueryLog,
    found: Survey,
    look: Look,
    shares: Sequence[str],
    folder: Path,
    identity: str,
    label: str = "both models",
) -> Tally:
    """Looks at each different text of a log, and counts.

    Args:
        log, found: what is read, as it was surveyed.
        look: what is asked of texts.
        shares: the names of what it tells.
        folder: gets what was counted so far every half minute, so that a run that was cut off is gone on with.
        identity: of the models, the settings and the log: what was counted under another is not gone on with.
        label: what the progress bar calls the models.

    Raises:
        UserError: the log changes meanwhile.
    """
    done, tally = _counted_before(folder / PART, identity) or (0, Tally.empty(len(found.periods), shares))
    texts = different_texts(log, found, done)
    saved = time.monotonic()
    with phase(f"Embedding by {label}", 2 * (len(found.first) - done)):
        for block in iter(lambda: list(islice(texts, BLOCK)), []):
            tally.minors += _look_at(block, done, found, look, tally)
            done += len(block)
            if time.monotonic() - saved > SAVE:
                state = {"identity": identity, "done": done, "tally": tally.state()}
                write_whole(folder / PART, json.dumps(state) + "\n")
                saved = time.monotonic()
    (folder / PART).unlink(missing_ok=True)
    return tally


def _look_at(block: list[str], start: int, found: Survey, look: Look, tally: Tally) -> int:
    """Counts some texts, of which the first has the number `start`; how many queries are left out for minors."""
    here = slice(*np.searchsorted(found.text, [start, start + len(block)]))
    text, period, count = found.text[here] - start, found.period[here], found.count[here]
    fit = np.array([not sexualises_minors([each]) for each in block])
    place = fit.cumsum() - 1  # among those that are looked at
    mine = fit[text]
    if fit.any():
        scores, told = look([each for each, good in zip(block, fit, strict=True) if good])
        rows = place[text[mine]]
        tally.add(period[mine], count[mine], scores[rows], {name: true[rows] for name, true in told.items()})
    return int(count[~mine].sum())


def _counted_before(part: Path, identity: str) -> tuple[int, Tally] | None:
    try:
        known = json.loads(part.read_text(encoding="utf-8"))
        return (known["done"], Tally.of_state(known["tally"])) if known["identity"] == identity else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
