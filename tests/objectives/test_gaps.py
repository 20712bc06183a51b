"""Batches in which items are missing."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from safe_clip.items import ITEMS, ItemBatch, Layout, Quadruplets
from safe_clip.objectives import OBJECTIVES, SafeRankingLoss
from safe_clip.objectives.base import BatchTargets, row_counts

WHOLE, TEXT, IMAGE, SAFE = (
    [True] * 4,
    [True, True, False, False],
    [False, False, True, True],
    [True, False, True, False],
)


def batch(present, seed=0, anchors=0):
    """Random embeddings of what is there, the leaves of which are kept, B x dimension each."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor(present)

    def draw(column=None, count=None):
        items = normalize(torch.randn(count or len(present), 8, generator=generator), dim=-1)
        return items if column is None else torch.where(present[:, column, None], items, torch.nan)

    leaves = [draw(column).requires_grad_() for column in range(4)]
    layout = Layout.of(present.numpy())
    original = Quadruplets.packed([draw(column) for column in range(4)], layout)
    drawn = {name: ItemBatch(draw(count=anchors), torch.arange(anchors)) for name in ("text", "image") if anchors}
    return leaves, Quadruplets.packed(leaves, layout), BatchTargets(original, drawn)


def take(rows, embeds, reference):
    """Some rows of a batch, anchors as they are."""

    def cut(items):
        layout = items.layout
        layout = Layout(layout.present[rows], layout.relabelled[rows], layout.half_unsafe[rows])
        return Quadruplets(*(items[item].take(rows) for item in ITEMS), layout)

    return cut(embeds), replace(reference, items=cut(reference.items))


@pytest.mark.parametrize("name", ["safe_clip", "shield_clip", "safer_clip"])
def test_each_term_is_that_of_the_rows_that_have_what_it_needs(name):
    """A mixed batch against separate batches of the rows that each term is computed over."""
    objective = OBJECTIVES[name](7.0)
    leaves, embeds, reference = batch([WHOLE, TEXT, SAFE, IMAGE, WHOLE, TEXT, WHOLE], anchors=6)
    loss, terms = objective(embeds, reference)
    means = objective.means(embeds, reference)
    having = objective.rows_with_items(embeds.layout)
    assert len(set(row_counts(means).values())) > 1 and terms.keys() == means.keys()
    for term, value in terms.items():
        rows = torch.cat([mean.row for mean in means[term]]).unique()
        assert rows.tolist() == having[term].nonzero()[0].tolist()
        alone = objective(*take(rows, embeds, reference))[1][term]
        assert value.item() == pytest.approx(alone.item(), rel=1e-5), term
    assert loss.item() == pytest.approx(objective.total(terms).item())
    loss.backward()
    for column, items in enumerate(leaves):
        there = embeds.layout.present[:, column]
        assert torch.isfinite(items.grad).all() and not items.grad[~there].any() and items.grad[there].any()


def test_rankings_of_a_mixed_batch_search_all_that_is_there():
    """Rows of captions alone rank the images of the others, so that leaving these rows out changes no pool."""
    objective = SafeRankingLoss(7.0, unsafe_per_safe=3.0)
    present = [WHOLE, TEXT, SAFE, IMAGE, WHOLE]
    (_, unsafe_text, safe_image, unsafe_image), embeds, reference = batch(present, anchors=6)
    terms = objective(embeds, reference)[1]
    assert set(terms) == set(objective.WEIGHTS) - {"redirection_text_cosine", "redirection_image_cosine"}
    text = [row for row, has in enumerate(present) if has[0] and has[1]]  # what redirection_text_ranking asks for
    anchors = reference.anchors["image"].embeds
    safe = torch.cat([safe_image[[0, 2, 3, 4]], anchors])
    before = torch.cat([reference.items.safe_image.dense(5)[[0, 2, 3, 4]], anchors])
    unsafe = unsafe_image[[0, 3, 4]]
    targets = 7.0 * reference.items.safe_text.dense(5)[text] @ before.T
    expected = objective.ranking(unsafe_text[text], safe, unsafe, targets).mean()
    assert terms["redirection_text_ranking"].item() == pytest.approx(expected.item(), rel=1e-5)
    # And a pool with no unsafe image at all is a ranking of the safe ones.
    none = objective.ranking(unsafe_text[text], safe, unsafe[:0], targets).mean()
    assert torch.isfinite(none) and none < expected


@pytest.mark.parametrize(("kind", "modality"), [(TEXT, "text"), (IMAGE, "image")])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_modality_is_trained_alone(name, kind, modality):
    leaves, embeds, reference = batch([kind] * 5)
    nothing = ItemBatch(torch.empty(0, 8), torch.arange(0))
    own = ItemBatch(leaves[0 if kind is TEXT else 2][:3].detach(), torch.arange(3))
    anchors = {"text": nothing, "image": nothing, modality: own}
    loss, terms = OBJECTIVES[name](7.0)(embeds, replace(reference, anchors=anchors))
    expected = {f"preservation_{modality}_cosine", f"redirection_{modality}_cosine"}
    assert set(terms) == ({"real", "redirect"} if name == "shield_clip" else expected)
    loss.backward()
    moved = [items.grad is not None and bool(items.grad.any()) for items in leaves]
    assert moved == kind and torch.isfinite(loss)


def test_a_batch_that_feeds_no_term_costs_nothing_and_can_be_gone_back_from():
    leaves, embeds, reference = batch([[False, True, False, False]] * 3)
    loss, terms = OBJECTIVES["safe_clip"]()(embeds, reference)
    assert loss.item() == 0 and not terms
    loss.backward()
    assert not leaves[1].grad.any()
