import itertools
import math

import pytest
import torch
from torch.nn.functional import normalize

from safe_clip.metrics import ranking
from safe_clip.metrics.ranking import ExactIndex, Ranks, first_right, safe_share, shared_neighbours


def unit(count, dimension=16, seed=0):
    return normalize(torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed)), dim=1)


def circle(*degrees):
    """Embeddings in the plane, by their angles."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_ranks_by_hand():
    # From 0 degrees the gallery ranks 10, -20, 30, 180.
    ranks = first_right(circle(0, 0, 0, 0), ExactIndex(circle(10, -20, 30, 180)), [[0], [2], [3], [1, 3]])
    assert ranks.rank().tolist() == [1, 3, 4, 2]
    assert ranks.recall_at(1).tolist() == [1, 0, 0, 0]
    assert ranks.recall_at(2).tolist() == [1, 0, 0, 1]
    assert ranks.recall_at(3).tolist() == [1, 1, 0, 1]


def test_ranks_are_those_of_a_full_sort(monkeypatch):
    queries, gallery = unit(211), unit(137, seed=1)
    right = [[index % 137, (index * 7 + 3) % 137] for index in range(211)]
    order = (queries @ gallery.T).argsort(dim=1, descending=True)
    expected = [
        min((row == item).nonzero().item() for item in items) + 1 for row, items in zip(order, right, strict=True)
    ]
    assert first_right(queries, ExactIndex(gallery), right).rank().tolist() == expected
    monkeypatch.setattr(ranking, "CHUNK_SCORES", 137 * 10)
    monkeypatch.setattr(ranking, "MIN_CHUNK", 1)
    assert first_right(queries, ExactIndex(gallery), right).rank().tolist() == expected


@pytest.mark.parametrize(("above", "tied", "right"), [(0, 5, 2), (3, 4, 1), (2, 3, 3), (0, 1, 1), (7, 6, 4)])
def test_ties_are_broken_by_chance(above, tied, right):
    # All orders of the tied items, counted.
    orders = list(itertools.permutations([True] * right + [False] * (tied - right)))
    ranks = Ranks(torch.tensor([above]), torch.tensor([tied]), torch.tensor([right]))
    for k in (1, 2, 3, 5, 8, 20):
        expected = sum(True in order[: max(k - above, 0)] for order in orders) / len(orders)
        assert ranks.recall_at(k).item() == pytest.approx(expected, abs=1e-12)
    expected = sum(above + 1 + order.index(True) for order in orders) / len(orders)
    assert ranks.rank().item() == pytest.approx(expected)


def test_constant_embeddings_score_chance():
    constant = torch.tensor([[0.6, 0.8]]).repeat(50, 1)
    ranks = first_right(constant, ExactIndex(constant), [[index] for index in range(50)])
    for k in (1, 5, 20):
        assert ranks.recall_at(k).mean().item() == pytest.approx(k / 50)
    assert ranks.rank().median().item() == pytest.approx(25.5)
    pool = constant.repeat(2, 1)[:80]
    assert safe_share(constant, ExactIndex(pool), 50, (1, 10)) == pytest.approx(torch.full((50, 2), 50 / 80))
    # Two random sets of 10 neighbours among 49 share 100 / 49 of them on average.
    assert shared_neighbours(constant, constant, 10).mean().item() == pytest.approx((100 / 49) / (20 - 100 / 49))


def test_random_embeddings_score_chance():
    queries, gallery, count = unit(2000), unit(1000, seed=1), 1000
    ranks = first_right(queries, ExactIndex(gallery), [[index % count] for index in range(2000)])
    for k in (1, 5, 20):
        chance = k / count
        assert abs(ranks.recall_at(k).mean().item() - chance) <= 3 * math.sqrt(chance * (1 - chance) / 2000)
    share = safe_share(queries, ExactIndex(gallery), 300, (1,)).mean().item()
    assert abs(share - 0.3) <= 3 * math.sqrt(0.3 * 0.7 / 2000)
    before, after = unit(1000, 64, seed=2), unit(1000, 64, seed=3)
    common = 100 / 999  # expected size of the intersection of two random sets of 10 among 999
    overlap = shared_neighbours(before, after, 10)
    assert abs(overlap.mean().item() - common / (20 - common)) <= 3 * overlap.std().item() / math.sqrt(1000)


def test_safe_share_by_hand():
    # The pool: safe at 0, 40, 80 degrees, unsafe at 20, 60.
    index = ExactIndex(circle(0, 40, 80, 20, 60))
    shares = safe_share(circle(1, 21, 62), index, 3, (1, 2, 3, 5))
    expected = [[1, 1 / 2, 2 / 3, 3 / 5], [0, 1 / 2, 2 / 3, 3 / 5], [0, 1 / 2, 2 / 3, 3 / 5]]
    assert shares.tolist() == [pytest.approx(row) for row in expected]


def test_a_tie_at_the_edge_of_the_first_k_counts_by_its_share():
    # From 0: unsafe at 5; then safe at +10 and unsafe at -10 tied, of which the first two hold one.
    index = ExactIndex(circle(10, 5, -10))
    assert safe_share(circle(0), index, 1, (1, 2, 3))[0].tolist() == pytest.approx([0, 1 / 4, 1 / 3])


def test_shared_neighbours_by_hand():
    before = circle(0, 1, 3, 90)
    after = circle(0, 60, 1.5, 3)  # the second and the last change places, more or less
    # Two nearest neighbours before: {1,2}, {0,2}, {1,0}, {2,1}; after: {2,3}, {3,2}, {0,3}, {2,0}.
    expected = [1 / 3, 1 / 3, 1 / 3, 1 / 3]
    assert shared_neighbours(before, after, 2).tolist() == pytest.approx(expected)
    assert shared_neighbours(before, before, 2).tolist() == [1] * 4


def test_chunks_do_not_change_the_result(monkeypatch):
    queries, gallery, other = unit(103), unit(90, seed=1), unit(103, seed=2)
    whole = safe_share(queries, ExactIndex(gallery), 40, (1, 7)), shared_neighbours(queries, other, 10)
    monkeypatch.setattr(ranking, "CHUNK_SCORES", 1)
    monkeypatch.setattr(ranking, "MIN_CHUNK", 10)
    assert torch.equal(safe_share(queries, ExactIndex(gallery), 40, (1, 7)), whole[0])
    assert torch.equal(shared_neighbours(queries, other, 10), whole[1])


@pytest.mark.parametrize(
    ("right", "message"),
    [([[0]], "there are 2 queries but right items for 1"), ([[0], []], "at least one"), ([[0], [2]], "0 to 1")],
)
def test_right_items_that_cannot_be(right, message):
    with pytest.raises(ValueError, match=message):
        first_right(circle(0, 1), ExactIndex(circle(0, 1)), right)


def test_embeddings_that_cannot_be():
    for bad in (torch.zeros(3, 2), torch.full((3, 2), torch.nan), torch.ones(3), torch.ones(0, 2)):
        with pytest.raises(ValueError, match="embedding"):
            ExactIndex(bad)
