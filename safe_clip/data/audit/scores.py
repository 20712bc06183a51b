"""What classifiers say of every item. What is there twice is scored once, and scores are cached."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Features, Value
from datasets.fingerprint import Hasher
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ...store.tables import table_in_chunks
from ..rows import read_item
from .classifiers import Classifier
from .reading import ReadColumn

FEATURES = Features({"unsafe": Value("float32"), "nudity": Value("float32")})


def score_items(
    columns: Sequence[ReadColumn], classifier: Classifier, batch_size: int, workers: int = 0, progress: bool = True
) -> list[np.ndarray]:
    """Scores the items of some columns with one classifier.

    Args:
        columns: of captions, or of images, as the classifier takes.
        classifier: scores them.
        batch_size: items at a time.
        workers: processes that read images.
        progress: show a bar.

    Returns:
        For each column, N x 2: how sure the classifier is that an item is unsafe, and that it shows nudity, in [0, 1];
        NaN for items that are not there or cannot be used.
    """
    digests = np.concatenate([each.digest for each in columns])
    known, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(first)  # as they lie in the files
    order = order[known[order] != 0]
    scores = np.full((len(known), 2), np.nan, dtype=np.float32)
    if len(order):
        made = table_in_chunks(
            _Chosen(columns, first[order], known[order]),
            FEATURES,
            lambda chunk, _: {"items": chunk, "classifier": classifier, "batch_size": batch_size, "workers": workers},
            lambda chunk: Hasher.hash([chunk.digests.tobytes(), classifier.fingerprint]),
            _scores,
            f"Scoring with {classifier.name}",
            progress,
            "audit",
        )
        scores[order] = np.stack([made.data.column(name).to_numpy() for name in FEATURES], axis=1)
    return np.split(scores[inverse], np.cumsum([len(each.digest) for each in columns])[:-1])


@dataclass(frozen=True)
class _Chosen(TorchDataset):
    """Some items of some columns, by their places when the columns are laid end to end."""

    columns: Sequence[ReadColumn]
    places: np.ndarray
    digests: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def select(self, numbers: range) -> "_Chosen":
        part = slice(numbers.start, numbers.stop)
        return _Chosen(self.columns, self.places[part], self.digests[part])

    def __getitem__(self, index: int) -> Any:
        row = int(self.places[index])
        for items in self.columns:
            if row < len(items.rows):
                return read_item(items.rows[row][items.column], row, items.column)
            row -= len(items.rows)
        raise IndexError(index)


def _scores(items: _Chosen, classifier: Classifier, batch_size: int, workers: int) -> Iterator[dict[str, float]]:
    for batch in DataLoader(items, batch_size, collate_fn=list, num_workers=workers):
        for unsafe, nudity in classifier.score(batch):
            yield {"unsafe": unsafe, "nudity": nudity}
