"""Batches in which items are missing."""

import pytest
import torch
from torch.nn.functional import normalize

from safe_clip.objectives import OBJECTIVES, SafeRankingLoss
from safe_clip.objectives.base import ITEMS, Makeup, QuadrupletEmbeds, ReferenceEmbeds

WHOLE, TEXT, IMAGE, SAFE = (
    [True] * 4,
    [True, True, False, False],
    [False, False, True, True],
    [True, False, True, False],
)


def batch(present, seed=0, anchors=0):
    """Random embeddings with NaN where nothing is."""
    generator = torch.Generator().manual_seed(seed)
    present = torch.tensor(present)

    def draw(column=None, count=None):
        items = normalize(torch.randn(count or len(present), 8, generator=generator), dim=-1)
        return items if column is None else torch.where(present[:, column, None], items, torch.nan)

    embeds = QuadrupletEmbeds(*(draw(column).requires_grad_() for column in range(4)))
    safe_text, unsafe_text, safe_image, unsafe_image = (draw(column) for column in range(4))
    makeup = Makeup.whole(len(present))._replace(present=present)
    reference = ReferenceEmbeds(safe_text, safe_image, unsafe_text, unsafe_image, makeup=makeup)
    if anchors:
        reference = reference._replace(anchor_text=draw(count=anchors), anchor_image=draw(count=anchors))
    return embeds, reference


def take(rows, embeds, reference):
    """Some rows of a batch, anchors as they are."""
    makeup = Makeup(*(part[rows] for part in reference.makeup))
    cut = {name: getattr(reference, name)[rows] for name in ITEMS}
    return QuadrupletEmbeds(*(items[rows] for items in embeds)), reference._replace(makeup=makeup, **cut)


@pytest.mark.parametrize("name", ["safe_clip", "shield_clip", "safer_clip"])
def test_each_term_is_that_of_the_rows_that_have_what_it_needs(name):
    """A mixed batch against separate batches of the rows that feed each term."""
    objective = OBJECTIVES[name](7.0)
    embeds, reference = batch([WHOLE, TEXT, SAFE, IMAGE, WHOLE, TEXT, WHOLE], anchors=6)
    loss, terms = objective(embeds, reference)
    feeds = objective.feeds(reference.makeup, reference)
    assert len({int(feeds[term].sum()) for term in terms}) > 1
    for term, value in terms.items():
        rows = feeds[term].nonzero().flatten()
        alone = objective(*take(rows, embeds, reference))[1][term]
        assert value.item() == pytest.approx(alone.item(), rel=1e-5), term
    assert loss.item() == pytest.approx(objective.total(terms).item())
    loss.backward()
    for column, items in enumerate(embeds):
        there = reference.makeup.present[:, column]
        assert torch.isfinite(items.grad).all() and not items.grad[~there].any() and items.grad[there].any()


def test_rankings_of_a_mixed_batch_search_all_that_is_there():
    """Rows of captions alone rank the pictures of the others, so that leaving these rows out changes no pool."""
    objective = SafeRankingLoss(7.0, unsafe_per_safe=3.0)
    present = [WHOLE, TEXT, SAFE, IMAGE, WHOLE]
    embeds, reference = batch(present, anchors=6)
    terms = objective(embeds, reference)[1]
    assert set(terms) == set(objective.WEIGHTS) - {"redirection_text_cosine", "redirection_image_cosine"}
    text = [row for row, has in enumerate(present) if has[0] and has[1]]  # what redirection_text_ranking asks for
    safe = torch.cat([embeds.safe_image[[0, 2, 3, 4]], reference.anchor_image])
    before = torch.cat([reference.safe_image[[0, 2, 3, 4]], reference.anchor_image])
    unsafe = embeds.unsafe_image[[0, 3, 4]]
    wanted = 7.0 * reference.safe_text[text] @ before.T
    expected = objective.ranking(embeds.unsafe_text[text], safe, unsafe, wanted).mean()
    assert terms["redirection_text_ranking"].item() == pytest.approx(expected.item(), rel=1e-5)
    # And a pool with no unsafe picture at all is a ranking of the safe ones.
    none = objective.ranking(embeds.unsafe_text[text], safe, unsafe[:0], wanted).mean()
    assert torch.isfinite(none) and none < expected


@pytest.mark.parametrize(("kind", "modality"), [(TEXT, "text"), (IMAGE, "image")])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_modality_is_trained_alone(name, kind, modality):
    embeds, reference = batch([kind] * 5)
    nothing = torch.full((3, 8), torch.nan)
    anchors = {
        "anchor_text": nothing,
        "anchor_image": nothing,
        f"anchor_{modality}": embeds[0 if kind is TEXT else 2][:3],
    }
    loss, terms = OBJECTIVES[name](7.0)(embeds, reference._replace(**{n: a.detach() for n, a in anchors.items()}))
    expected = {f"preservation_{modality}_cosine", f"redirection_{modality}_cosine"}
    assert set(terms) == ({"real", "redirect"} if name == "shield_clip" else expected)
    loss.backward()
    moved = [items.grad is not None and bool(items.grad.any()) for items in embeds]
    assert moved == kind and torch.isfinite(loss)


def test_a_batch_that_feeds_no_term_costs_nothing_and_can_be_gone_back_from():
    embeds, reference = batch([[False, True, False, False]] * 3)
    loss, terms = OBJECTIVES["safe_clip"]()(embeds, reference)
    assert loss.item() == 0 and not terms
    loss.backward()
    assert not embeds.unsafe_text.grad.any()
