import math

import pytest
import torch
from torch.nn.functional import normalize

from safe_clip import SafeRankingLoss, UserError
from safe_clip.items import ItemBatch, Layout, Quadruplets
from safe_clip.objectives.base import BatchTargets

EYE = torch.eye(2)


def reference_of(text, image, anchor_text=None, anchor_image=None):
    """Safe items by the original, and anchors."""
    anchors = {"text": anchor_text, "image": anchor_image} if anchor_text is not None else {}
    anchors = {name: ItemBatch(embeds, torch.arange(len(embeds))) for name, embeds in anchors.items()}
    return BatchTargets(Quadruplets.packed([text, None, image, None], Layout.whole(len(text))), anchors)


def draw(generator, *shape):
    return normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_terms_by_hand():
    """Two rows, logit scale 1: a safe caption scores its image 1 and the other 0, and the unsafe images 0 and 1."""
    flipped = EYE.flip(0)
    objective = SafeRankingLoss(1.0, anchors=0, unsafe_per_safe=1.0)
    loss, terms = objective(EYE, flipped, EYE, flipped, reference=(EYE, EYE))
    e = math.e
    own, other = e / (e + 1), 1 / (e + 1)  # what the original gives the two safe images
    pool = 2 * (e + 1)  # e, 1 from the safe images and 1, e from the unsafe ones
    kept = own * math.log(own * pool / e) + other * math.log(other * pool / 1)
    redirected = own * math.log(own * pool / 1) + other * math.log(other * pool / e)
    assert kept == pytest.approx(math.log(2))  # half of the pool's mass went to unsafe items
    expected = {
        "preservation_text_cosine": 0.0,
        "preservation_image_cosine": 0.0,
        "preservation_text_ranking": kept,
        "preservation_image_ranking": kept,
        "redirection_text_ranking": redirected,
        "redirection_image_ranking": redirected,
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-6)
    assert loss.item() == pytest.approx(2 * (2 * kept) + 2 * redirected, abs=1e-5)  # preservation weighs twice


def dense(queries, counterparts, before, safe, unsafe, scale, per_safe):
    """A ranking term written out with loops, in double precision."""
    total = 0.0
    for query, original in zip(queries, counterparts, strict=True):
        wanted = [math.exp(scale * float(original @ item)) for item in before]
        wanted = [value / sum(wanted) for value in wanted]
        weight = per_safe * len(safe) / len(unsafe)
        scores = [math.exp(scale * float(query @ item)) for item in safe]
        pool = sum(scores) + weight * sum(math.exp(scale * float(query @ item)) for item in unsafe)
        total += sum(w * math.log(w / (score / pool)) for w, score in zip(wanted, scores, strict=True))
    return total / len(queries)


@pytest.mark.parametrize("anchors", [0, 5])
def test_against_an_independent_dense_implementation(anchors):
    generator = torch.Generator().manual_seed(1)
    embeds = [draw(generator, 4, 6) for _ in range(4)]
    text, image = draw(generator, 4, 6), draw(generator, 4, 6)
    extra_text, extra_image = draw(generator, anchors, 6), draw(generator, anchors, 6)
    reference = reference_of(text, image, *([extra_text, extra_image] if anchors else []))
    weights = {"preservation_text_cosine": 3.0, "redirection_image_ranking": 0.5, "preservation_image_ranking": 0.0}
    loss, terms = SafeRankingLoss(7.0, weights, unsafe_per_safe=3.0)(*embeds, reference=reference)
    t, tu, v, vu = (tensor.double() for tensor in embeds)
    extra_text, extra_image = extra_text.double(), extra_image.double()
    images = torch.cat([image.double(), extra_image]), torch.cat([v, extra_image])  # before training and in it
    texts = torch.cat([text.double(), extra_text]), torch.cat([t, extra_text])
    expected = {
        "preservation_text_cosine": float((1 - (t * text.double()).sum(1)).mean()),
        "preservation_image_cosine": float((1 - (v * image.double()).sum(1)).mean()),
        "preservation_text_ranking": dense(t, text.double(), *images, vu, 7.0, 3.0),
        "redirection_text_ranking": dense(tu, text.double(), *images, vu, 7.0, 3.0),
        "redirection_image_ranking": dense(vu, image.double(), *texts, tu, 7.0, 3.0),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    total = sum({**SafeRankingLoss.WEIGHTS, **weights}[name] * value for name, value in expected.items())
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_unsafe_items_out_of_reach_cost_less_than_unmoved_ones():
    """An unsafe caption is its safe one plus a direction that unsafe images have the other way round."""
    generator = torch.Generator().manual_seed(2)
    text, image = (torch.cat([draw(generator, 6, 8), torch.zeros(6, 1)], dim=1) for _ in range(2))
    away = torch.zeros(9)
    away[8] = 1
    moved = lambda embeds, way: normalize(embeds + way * away, dim=-1)  # noqa: E731
    objective = SafeRankingLoss(30.0, anchors=0, unsafe_per_safe=1.0)
    reference = text, image
    apart = objective(text, moved(text, 2.0), image, moved(image, -2.0), reference=reference)[1]
    unmoved = objective(text, text, image, image, reference=reference)[1]
    assert apart["preservation_text_ranking"] < 0.2 * unmoved["preservation_text_ranking"]
    assert apart["redirection_text_ranking"] < unmoved["redirection_text_ranking"]


def test_the_margin_does_not_depend_on_the_number_of_anchors():
    """Anchors that repeat the batch, whose safe items stand where they stood, leave every share as it was."""
    generator = torch.Generator().manual_seed(3)
    text, image = draw(generator, 5, 6), draw(generator, 5, 6)
    embeds = text, draw(generator, 5, 6), image, draw(generator, 5, 6)
    few = SafeRankingLoss(9.0)(*embeds, reference=(text, image))[1]
    repeated = reference_of(text, image, text.repeat(3, 1), image.repeat(3, 1))
    many = SafeRankingLoss(9.0)(*embeds, reference=repeated)[1]
    assert {name: term.item() for name, term in many.items()} == pytest.approx(
        {name: term.item() for name, term in few.items()}, abs=1e-5
    )


def test_gradients_reach_unsafe_items_as_queries_and_as_gallery():
    generator = torch.Generator().manual_seed(4)
    leaves = [draw(generator, 4, 6).requires_grad_() for _ in range(4)]
    reference = draw(generator, 4, 6), draw(generator, 4, 6)
    only = dict.fromkeys(SafeRankingLoss.WEIGHTS, 0.0) | {"preservation_text_ranking": 1.0}
    loss, _ = SafeRankingLoss(5.0, only)(*leaves, reference=reference)
    loss.backward()
    safe_text, unsafe_text, safe_image, unsafe_image = leaves
    assert safe_text.grad.abs().sum() > 0 and unsafe_image.grad.abs().sum() > 0
    assert safe_image.grad.abs().sum() > 0  # in the pool, too
    assert unsafe_text.grad is None
    # As members of the gallery, unsafe images are pushed away from the captions that find them.
    pushed = unsafe_image.detach() - 0.1 * unsafe_image.grad
    moved = (safe_text.detach() @ (pushed - unsafe_image.detach()).T).diagonal()
    assert moved.mean() < 0


def test_a_safe_image_that_moves_is_missed_by_captions_that_stayed():
    generator = torch.Generator().manual_seed(6)
    text, image = draw(generator, 5, 6), draw(generator, 5, 6)
    far = draw(generator, 5, 6)
    reference = text, image
    moved = image.clone()
    moved[2] = -image[2]
    objective = SafeRankingLoss(5.0, unsafe_per_safe=1e-12)  # hardly any unsafe item in the pool
    stayed = objective(text, far, image, far, reference=reference)[1]
    missed = objective(text, far, moved, far, reference=reference)[1]
    assert stayed["preservation_text_ranking"].item() == pytest.approx(0, abs=1e-6)
    assert missed["preservation_text_ranking"] > 0.1


@pytest.mark.parametrize("options", [{"anchors": -1}, {"anchors": 1.5}, {"unsafe_per_safe": 0}, {"anchors": True}])
def test_bad_options(options):
    with pytest.raises(UserError, match="requires a whole number of anchors, at least 0, and unsafe_per_safe above 0"):
        SafeRankingLoss(**options)


def test_a_frozen_gallery_is_the_originals_and_queries_alone_are_moved():
    generator = torch.Generator().manual_seed(0)
    names = ("safe_text", "unsafe_text", "safe_image", "unsafe_image")
    ours = {name: draw(generator, 5, 8).requires_grad_() for name in names}
    theirs = {name: draw(generator, 5, 8) for name in names}
    objective = SafeRankingLoss(10.0, anchors=0, unsafe_per_safe=4.0, frozen_gallery=True)
    assert (objective.weights["redirection_text_ranking"], objective.weights["redirection_image_ranking"]) == (2, 4)
    own = SafeRankingLoss(weights={"redirection_image_ranking": 3.0}, frozen_gallery=True).weights
    assert own["redirection_image_ranking"] == 3 and SafeRankingLoss().weights["redirection_image_ranking"] == 1
    _, terms = objective(*ours.values(), reference=tuple(theirs.values()))
    for modality, other in (("text", "image"), ("image", "text")):
        pool = theirs[f"safe_{other}"], theirs[f"safe_{other}"], theirs[f"unsafe_{other}"]
        for kind, side in (("preservation", "safe"), ("redirection", "unsafe")):
            expected = dense(ours[f"{side}_{modality}"], theirs[f"safe_{modality}"], *pool, 10.0, 4.0)
            assert terms[f"{kind}_{modality}_ranking"].item() == pytest.approx(expected, rel=1e-5)
    terms["redirection_text_ranking"].backward()
    moved = {name for name, embeds in ours.items() if embeds.grad is not None and embeds.grad.any()}
    assert moved == {"unsafe_text"}  # by default also the images that it finds
    _, terms = SafeRankingLoss(10.0, anchors=0)(*ours.values(), reference=tuple(theirs.values()))
    terms["redirection_text_ranking"].backward()
    assert ours["safe_image"].grad.any() and ours["unsafe_image"].grad.any()
    safe_alone = theirs["safe_text"], theirs["safe_image"]
    with pytest.raises(UserError, match="requires the original model's embeddings of unsafe items too"):
        objective(*ours.values(), reference=safe_alone)
