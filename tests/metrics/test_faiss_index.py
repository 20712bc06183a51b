import pytest
import torch
from torch.nn.functional import normalize

from safe_clip import UserError
from safe_clip.metrics.faiss_index import DEPTH, FaissIndex, index_recall
from safe_clip.metrics.ranking import ExactIndex, first_right, safe_share

pytest.importorskip("faiss")


def unit(count, dimension=16, seed=0):
    return normalize(torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_flat_index_gives_the_exact_figures_as_far_as_it_looks():
    gallery, queries = unit(300), unit(200, seed=1)
    right = [[index, (index + 7) % 300] for index in range(200)]
    exact = first_right(queries, ExactIndex(gallery), right)
    found = first_right(queries, FaissIndex(gallery, "Flat"), right)
    near = exact.above < DEPTH
    assert 0 < near.sum() < 200
    assert torch.equal(found.above[near], exact.above[near])
    # What lies deeper is not found: it ranks last and counts at no k.
    assert (found.above[~near] == 300).all() and (found.recall_at(20)[~near] == 0).all()
    shares = [safe_share(queries, index, 120, (1, 10)) for index in (ExactIndex(gallery), FaissIndex(gallery, "Flat"))]
    assert torch.equal(*shares)
    assert index_recall(queries, FaissIndex(gallery, "Flat"), gallery) == 1


def test_an_approximate_index_says_how_much_it_finds():
    gallery, queries = unit(3000, 32), unit(200, 32, seed=1)
    rough = index_recall(queries, FaissIndex(gallery, "IVF50,Flat"), gallery)
    assert 0.05 < rough < 0.9  # one list of fifty is searched
    assert index_recall(queries, FaissIndex(gallery), gallery) > 0.9


def test_a_gallery_smaller_than_the_depth_and_a_factory_that_does_not_exist():
    gallery = unit(5)
    assert first_right(gallery, FaissIndex(gallery), [[row] for row in range(5)]).rank().tolist() == [1] * 5
    with pytest.raises(UserError, match="--faiss_factory HNWS32 cannot index 5 items"):
        FaissIndex(gallery, "HNWS32")
