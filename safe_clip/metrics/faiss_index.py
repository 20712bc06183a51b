"""Approximate search, for galleries beyond what exact search can do in the time there is."""

from collections.abc import Iterator

import torch
from datasets import Dataset
from torch import Tensor

from ..errors import UserError
from .ranking import ExactIndex
from .tensors import as_embeddings

DEPTH = 100  # results that ranks are looked up in; a right item beyond them counts as not found
BATCH = 1024


class FaissIndex:
    """A FAISS index through `datasets.Dataset.add_faiss_index`.

    Args:
        gallery: G x dimension embeddings; they are scaled to length 1.
        factory: a FAISS index factory string, searched by inner product, such as `"HNSW32"` or `"IVF1024,Flat"`.

    Raises:
        UserError: FAISS is not installed, or does not know the factory string.
    """

    def __init__(self, gallery: Tensor, factory: str = "HNSW32"):
        try:
            import faiss
        except ImportError as error:
            raise UserError("--index faiss requires FAISS: `pip install 'safe-clip[faiss]'`.") from error
        gallery = as_embeddings(gallery).cpu()
        self.size = len(gallery)
        self.rows = Dataset.from_dict({"embeds": gallery.numpy()})
        try:
            self.rows.add_faiss_index(
                "embeds", string_factory=factory, metric_type=faiss.METRIC_INNER_PRODUCT, train_size=self.size
            )
        except RuntimeError as error:  # FAISS's own, for factory strings and for too few rows to train on
            reason = str(error).rpartition("Error: ")[2] or str(error)
            raise UserError(f"--faiss_factory {factory} cannot index {self.size} items: {reason}") from error

    def chunks(self, queries: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        depth = min(DEPTH, self.size)
        for start in range(0, len(queries), BATCH):
            found = self.rows.search_batch("embeds", queries[start : start + BATCH].cpu().numpy(), k=depth)
            scores, rows = torch.as_tensor(found.total_scores), torch.as_tensor(found.total_indices)
            # An index may come back with fewer; its fillers must neither rank nor be right.
            yield (
                start,
                scores.masked_fill(rows < 0, -torch.inf).to(queries.device),
                rows.masked_fill(rows < 0, self.size).to(queries.device),
            )


def index_recall(queries: Tensor, index: FaissIndex, gallery: Tensor, k: int = 10) -> float:
    """Share of the exact first k that the index has among its first k, over Q queries."""
    queries = as_embeddings(queries)
    k = min(k, index.size)
    exact = torch.cat([scores.topk(k, dim=1).indices.cpu() for _, scores, _ in ExactIndex(gallery).chunks(queries)])
    found = torch.cat([rows[:, :k].cpu() for _, _, rows in index.chunks(queries)])
    return (exact[:, :, None] == found[:, None, :]).any(dim=2).double().mean().item()
