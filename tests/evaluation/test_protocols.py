import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from safe_clip.embedding.items import IdentifiedItems
from safe_clip.evaluation.geometry import effective_rank, geometry, modality_gap, spread
from safe_clip.evaluation.quadruplets import QuadrupletItems
from safe_clip.evaluation.redirection import redirection
from safe_clip.evaluation.retrieval import retrieval
from safe_clip.evaluation.robustness import robustness
from safe_clip.evaluation.unsafe_gallery import unsafe_gallery
from safe_clip.evaluation.zero_shot import class_embeddings, zero_shot
from safe_clip.objectives.base import ITEMS


def items(embeds, ids=None):
    embeds = torch.as_tensor(embeds, dtype=torch.float32)
    row = torch.arange(len(embeds))
    ids = row if ids is None else torch.tensor(ids)
    return IdentifiedItems(normalize(embeds, dim=1), row, ids=ids, count=len(embeds))


def quadruplets(safe_text, unsafe_text, safe_image, unsafe_image):
    return QuadrupletItems(*map(items, (safe_text, unsafe_text, safe_image, unsafe_image)))


def drawn(count=200, dimension=32, noise=0.3, seed=0):
    """Captions near their own images; unsafe items near their safe counterparts, on one side of them."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(count, dimension, generator=generator)  # noqa: E731
    scene, danger = draw(), torch.zeros(dimension).index_fill(0, torch.tensor(0), 4.0)
    return quadruplets(*(scene + side + noise * draw() for side in (0, danger, 0, danger)))


EYE = torch.eye(4)


def means(values):
    return {name: value.mean().item() for name, value in values.items()}


def test_a_model_that_keeps_safe_and_unsafe_apart():
    apart = quadruplets(EYE, -EYE, EYE, -EYE)
    figures = means(retrieval(apart, ks=(1, 2)))
    assert figures["safe_t2i_recall_at_1"] == figures["safe_i2t_recall_at_1"] == 1
    assert figures["safe_union_t2i_recall_at_1"] == 1 and figures["safe_union_t2i_rank"] == 1
    # An unsafe query finds its own kind first, then the other unsafe items and the other safe ones in a tie of six.
    assert figures["unsafe_union_t2i_recall_at_1"] == 0 and figures["unsafe_union_t2i_rank"] == 8
    rates = means(redirection(apart, ks=(1,)))
    assert rates["safe_text_safe_rate_at_1"] == rates["safe_image_safe_rate_at_1"] == 1
    assert rates["unsafe_text_safe_rate_at_1"] == rates["unsafe_image_safe_rate_at_1"] == 0
    assert rates["unsafe_text_harmful_at_1"] == rates["unsafe_image_harmful_at_1"] == 1
    assert rates["mean_safe_rate_at_1"] == 0.5


def test_the_gallery_of_the_original_model():
    # The new model sends unsafe queries to their safe counterparts; its own pool has unsafe items there too.
    moved, original = quadruplets(EYE, EYE, EYE, EYE), quadruplets(EYE, -EYE, EYE, -EYE)
    assert means(redirection(moved, ks=(1,)))["unsafe_text_safe_rate_at_1"] == 0.5
    assert means(redirection(moved, original, ks=(1,)))["unsafe_text_safe_rate_at_1"] == 1
    assert means(redirection(moved, original, ks=(1,)))["safe_image_safe_rate_at_1"] == 1


def test_a_search_of_images_by_an_unsafe_image_leaves_out_the_image_itself():
    def rates(safe, unsafe, safe_ids, unsafe_ids, gallery=None):
        made = QuadrupletItems(items(EYE), items(EYE), items(safe, safe_ids), items(unsafe, unsafe_ids))
        return redirection(made, gallery, ks=(1,))["unsafe_image_among_images_safe_rate_at_1"].tolist()

    # Pairs of unsafe images lie together; then each beside its safe counterpart.
    turned = -EYE[[0, 0, 1, 1]]
    assert rates(EYE, turned, [0, 1, 2, 3], [4, 5, 6, 7]) == [0, 0, 0, 0]
    assert rates(EYE, EYE, [0, 1, 2, 3], [4, 5, 6, 7]) == [1, 1, 1, 1]
    # The third unsafe image is the fourth again, so neither finds the other: three safe ones and two unsafe ones tie.
    assert rates(EYE, turned, [0, 1, 2, 3], [4, 5, 6, 6]) == pytest.approx([0, 0, 0.6, 0.6])
    # One that stands on both sides does not find itself on the safe side either.
    assert rates(turned, turned, [4, 1, 2, 3], [4, 5, 6, 7])[0] == 0.5
    # In an index of the original's embeddings.
    original = QuadrupletItems(items(EYE), items(EYE), items(EYE, [0, 1, 2, 3]), items(-EYE, [4, 5, 6, 7]))
    assert rates(EYE, EYE, [0, 1, 2, 3], [4, 5, 6, 7], original) == [1, 1, 1, 1]
    assert rates(EYE, -EYE, [0, 1, 2, 3], [4, 5, 6, 7], original) == [0.5, 0.5, 0.5, 0.5]  # three of each tie
    assert "unsafe_image_among_images_safe_rate_at_1" not in redirection(quadruplets(EYE, EYE, EYE, EYE[:0]))


def test_a_hit_of_an_unsafe_query_is_the_paired_safe_item():
    turned = EYE[[1, 2, 3, 0]]
    # Unsafe captions look like the next row's safe image: safe, but not the pair.
    figures = means(retrieval(quadruplets(EYE, turned, EYE, -EYE), settings=("unsafe_union",), ks=(1,)))
    assert figures["unsafe_union_t2i_recall_at_1"] == 0
    assert means(redirection(quadruplets(EYE, turned, EYE, -EYE), ks=(1,)))["unsafe_text_safe_rate_at_1"] == 1
    figures = means(retrieval(quadruplets(EYE, EYE, EYE, -EYE), settings=("unsafe_union",), ks=(1,)))
    assert figures["unsafe_union_t2i_recall_at_1"] == 1


def test_five_captions_of_an_image_are_five_queries_and_all_right_for_it():
    text = torch.eye(6)
    image = normalize(torch.stack([text[:3].sum(0), text[3:].sum(0)]), dim=1)
    five = QuadrupletItems(
        items(text), items(-text), items(image[[0, 0, 0, 1, 1, 1]], [7, 7, 7, 8, 8, 8]), items(-text)
    )
    figures = retrieval(five, settings=("safe",), ks=(1, 2))
    assert figures["safe_t2i_recall_at_1"].tolist() == [1] * 6  # of two images, not of six
    assert figures["safe_i2t_recall_at_1"].tolist() == [1] * 6
    assert "safe_t2i_recall_at_5" not in figures


def test_a_caption_of_two_images_is_right_for_both():
    same = QuadrupletItems(items(EYE[[0, 0, 2, 3]], [1, 1, 2, 3]), items(-EYE), items(EYE), items(-EYE))
    figures = retrieval(same, settings=("safe",), ks=(1,))
    assert figures["safe_t2i_recall_at_1"].tolist() == [1, 1, 1, 1]
    # The second image resembles no caption: three tie, of which one is its own.
    assert figures["safe_i2t_recall_at_1"].tolist() == pytest.approx([1, 1 / 3, 1, 1])


def test_constant_embeddings_score_chance_everywhere():
    constant = quadruplets(*[torch.ones(40, 8)] * 4)
    figures = means(retrieval(constant))
    assert figures["safe_t2i_recall_at_1"] == pytest.approx(1 / 40)
    assert figures["safe_union_i2t_recall_at_10"] == pytest.approx(10 / 80)
    assert figures["unsafe_union_t2i_recall_at_1"] == pytest.approx(1 / 80)
    rates = means(redirection(constant))
    assert {name: rate for name, rate in rates.items() if rate != pytest.approx(0.5)} == {}
    images = items(torch.ones(10, 8))
    by_caption, by_image = unsafe_gallery(constant, images)
    assert means(by_caption)["unsafe_text_safe_rate_at_1"] == pytest.approx(40 / 50)
    assert means(by_image)["unsafe_image_safe_rate_at_10"] == pytest.approx(0.5)
    assert means(zero_shot(images, [0] * 10, constant.safe_text.embeds))["top_5"] == pytest.approx(5 / 40)


def test_unsafe_images_from_elsewhere():
    # Two strange images, near the first three unsafe captions; the first is as near to a safe caption.
    near = quadruplets(EYE, torch.diag(torch.tensor([-1.0, -1, -1, 1])), EYE + 0.4, -EYE)
    strange = items(torch.stack([EYE[0] - EYE[1], -EYE[2]]))
    by_caption, by_image = unsafe_gallery(near, strange, ks=(1,))
    assert by_caption["safe_text_safe_rate_at_1"].tolist() == [1, 1, 1, 1]
    assert by_caption["unsafe_text_safe_rate_at_1"].tolist() == [0, 0, 0, 1]
    assert by_image["unsafe_image_safe_rate_at_1"].tolist() == pytest.approx([0.5, 0])


def test_zero_shot_by_hand():
    classes = normalize(torch.eye(7), dim=1)
    figures = zero_shot(items(torch.eye(7)[[0, 1, 2, 3]]), [0, 1, 3, 3], classes)
    assert figures["top_1"].tolist() == [1, 1, 0, 1]
    # The third image's true class ties with five others for the second to fifth place.
    assert figures["top_5"].tolist() == pytest.approx([1, 1, 4 / 6, 1])
    assert set(zero_shot(items(torch.eye(7)), [0] * 7, classes[:5])) == {"top_1"}


def test_class_embeddings_are_means_over_the_prompts(model, processor):
    from safe_clip.embedding.embedder import Embedder

    embedder = Embedder(model, processor)
    classes = class_embeddings(embedder, ["red", "blue"], ["a {} square", "one {}"], "prompts")
    prompts = embedder.texts(["a red square", "one red", "a blue square", "one blue"]).embeds
    expected = normalize((prompts[0::2] + prompts[1::2]) / 2, dim=1)
    assert torch.allclose(classes, expected, atol=1e-6)


def test_spread_and_effective_rank_by_hand():
    corners = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert spread(corners) == pytest.approx(1)
    assert effective_rank(corners) == pytest.approx(2)
    line = torch.tensor([[0.6, 0.8], [-0.6, 0.8]])
    assert spread(line) == pytest.approx(0.36)
    assert effective_rank(line) == pytest.approx(1)
    # Singular values 3 and 1: the entropy of 3/4 and 1/4.
    uneven = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(uneven) == pytest.approx(math.exp(entropy))
    assert modality_gap(line, corners) == pytest.approx(0.8)


def test_geometry_of_what_did_not_move():
    before = drawn()
    per_item, numbers = geometry(before, before)
    for name in ("text_cosine_to_original", "image_neighbour_overlap", "text_neighbour_overlap"):
        assert per_item[name].mean().item() == pytest.approx(1)
    assert numbers["text_spread_ratio"] == numbers["image_spread_ratio"] == 1
    assert per_item["text_unsafe_to_safe_cosine"].mean() < 0.9


def test_geometry_shows_collapse_that_is_hidden_from_preference_rates():
    before = drawn()
    # Everything moves nearly all the way to one point; every preference rate then looks better than it is.
    point = torch.zeros(32).index_fill(0, torch.tensor(5), 1.0)
    shrink = lambda each: replace(each, embeds=normalize(0.02 * each.embeds + point, dim=1))  # noqa: E731
    after = QuadrupletItems(*(shrink(getattr(before, name)) for name in ITEMS))
    per_item, numbers = geometry(after, before)
    assert numbers["text_spread_ratio"] < 0.01 and numbers["image_spread_ratio"] < 0.01
    assert per_item["text_cosine_to_original"].mean() < 0.3
    constant = quadruplets(*[torch.ones(200, 32)] * 4)
    per_item, numbers = geometry(constant, before)
    assert numbers["text_spread"] == pytest.approx(0, abs=1e-9) and numbers["text_effective_rank"] == 0
    chance = 10 / 199 * 10
    assert per_item["text_neighbour_overlap"].mean().item() == pytest.approx(chance / (20 - chance))


def test_a_turn_of_the_whole_space_keeps_the_neighbours():
    before = drawn()
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(1))).Q
    moved = lambda each: replace(each, embeds=each.embeds @ turn)  # noqa: E731
    after = QuadrupletItems(*(moved(getattr(before, name)) for name in ITEMS))
    per_item, numbers = geometry(after, before)
    assert per_item["text_neighbour_overlap"].min() == 1
    assert numbers["text_spread_ratio"] == pytest.approx(1, abs=1e-5)
    assert abs(per_item["text_cosine_to_original"].mean()) < 0.3


def test_models_of_other_dimensions_are_compared_where_they_can_be():
    per_item, numbers = geometry(drawn(dimension=16), drawn(dimension=32))
    assert "text_cosine_to_original" not in per_item and "text_unsafe_to_safe_cosine" not in per_item
    assert "text_neighbour_overlap" in per_item and "image_spread_ratio" in numbers


def test_robustness_reports_mean_and_worst_case():
    apart = quadruplets(EYE, EYE, EYE, -EYE)  # unsafe captions find safe images
    variants = {"text": {"one": items(torch.cat([-EYE[:1], EYE[1:]])), "two": items(torch.cat([EYE[:3], -EYE[3:]]))}}
    figures = robustness(apart, variants)
    assert figures["unsafe_text_unchanged"].tolist() == [1, 1, 1, 1]
    assert figures["unsafe_text_one"].tolist() == [0, 1, 1, 1]
    assert figures["unsafe_text_mean"].tolist() == [0.5, 1, 1, 0.5]
    assert figures["unsafe_text_worst_case"].tolist() == [0, 1, 1, 0]


def test_the_worst_case_counts_the_unchanged_query_too():
    apart = quadruplets(EYE, -EYE, EYE, -EYE)  # unsafe captions find unsafe images
    figures = robustness(apart, {"text": {"one": items(EYE)}})
    assert figures["unsafe_text_mean"].tolist() == [1, 1, 1, 1]
    assert figures["unsafe_text_worst_case"].tolist() == [0, 0, 0, 0]


def test_pools_of_different_depth_have_a_mean_where_all_are_deep_enough():
    wide = torch.eye(12)
    one, two = (items(wide[[place] * 6], [place] * 6) for place in (0, 1))  # one image each
    rates = redirection(QuadrupletItems(items(wide[:6]), items(wide[6:]), one, two))
    assert "safe_image_safe_rate_at_10" in rates and "safe_text_safe_rate_at_10" not in rates
    assert "mean_safe_rate_at_1" in rates and "mean_safe_rate_at_10" not in rates
