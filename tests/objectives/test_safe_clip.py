import math

import numpy as np
import pytest
import torch

from safe_clip import SafeCLIPLoss, UserError
from safe_clip.objectives.base import contrastive, cosine_distance

PAPER_WEIGHTS = SafeCLIPLoss.WEIGHTS
EYE = torch.eye(2)
SWAPPED = EYE.flip(0)


def test_terms_and_total_by_hand():
    # Safe items sit where the original put them; unsafe ones sit on the other row's place.
    loss, terms = SafeCLIPLoss(logit_scale=1.0)(EYE, SWAPPED, EYE, SWAPPED, reference=(EYE, EYE))
    right = math.log(math.e + 1) - 1  # -log(e^1 / (e^1 + e^0))
    wrong = math.log(math.e + 1)  # -log(e^0 / (e^1 + e^0))
    expected = {
        "preservation_text_cosine": 0.0,
        "redirection_text_cosine": 1.0,
        "preservation_image_cosine": 0.0,
        "redirection_image_cosine": 1.0,
        "preservation_text_contrastive": right,
        "redirection_text_contrastive": wrong,
        "preservation_image_contrastive": right,
        "redirection_image_contrastive": wrong,
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-6)
    # 0.1 + 0.2 + 0.5 * right + 0.75 * wrong over the weights' sum 1.75 and the 8 terms.
    assert loss.item() == pytest.approx((0.3 + 0.5 * right + 0.75 * wrong) / 1.75 / 8, abs=1e-6)
    assert loss.item() == pytest.approx(0.10297, abs=1e-5)


def test_cosine_distance_ignores_length():
    a, b = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, -5.0]])
    assert cosine_distance(a, b).tolist() == pytest.approx([1 - math.sqrt(0.5), 2])


def test_contrastive_is_symmetric_in_rows_and_columns():
    # Both queries sit on the first target: rows see (1, 0), (1, 0); columns see (1, 1), (0, 0).
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    right, wrong, even = math.log(math.e + 1) - 1, math.log(math.e + 1), math.log(2)
    assert contrastive(queries, EYE, 1.0, torch.arange(2)).tolist() == pytest.approx(
        [(right + even) / 2, (wrong + even) / 2], abs=1e-6
    )
    # Of some positions alone, the same: all rows are still what they are compared with.
    assert contrastive(queries, EYE, 1.0, torch.tensor([1])).tolist() == pytest.approx([(wrong + even) / 2], abs=1e-6)


def dense_loss(embeds, reference, scale, weights):
    """The objective written out with loops over rows, in double precision."""

    def cos(a, b):
        return float(a @ b / math.sqrt((a @ a) * (b @ b)))

    def nce(queries, targets):
        n, total = len(queries), 0.0
        for i in range(n):
            row = [math.exp(scale * cos(queries[i], targets[j])) for j in range(n)]
            column = [math.exp(scale * cos(queries[j], targets[i])) for j in range(n)]
            total += -math.log(row[i] / sum(row)) - math.log(column[i] / sum(column))
        return total / (2 * n)

    def distance(a, b):
        return sum(1 - cos(a[i], b[i]) for i in range(len(a))) / len(a)

    t, t_star, v, v_star = (tensor.double().numpy() for tensor in embeds)
    t0, v0 = (tensor.double().numpy() for tensor in reference[:2])
    values = [
        ("preservation_text_cosine", distance(t, t0)),
        ("redirection_text_cosine", distance(t_star, t0)),
        ("preservation_image_cosine", distance(v, v0)),
        ("redirection_image_cosine", distance(v_star, v0)),
        ("preservation_text_contrastive", nce(t, v0)),
        ("redirection_text_contrastive", nce(t_star, v0)),
        ("preservation_image_contrastive", nce(v, t0)),
        ("redirection_image_contrastive", nce(v_star, t0)),
    ]
    return dict(values), sum(weights[name] * value for name, value in values) / sum(weights.values()) / 8


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_against_an_independent_dense_implementation(scale):
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.nn.functional.normalize(torch.randn(7, 12, generator=generator), dim=-1)  # noqa: E731
    embeds, reference = [draw(), draw(), draw(), draw()], (draw(), draw())
    weights = PAPER_WEIGHTS | {"redirection_text_cosine": 0.7, "preservation_image_contrastive": 0.0}
    loss, terms = SafeCLIPLoss(scale, weights)(*embeds, reference=reference)
    expected_terms, expected = dense_loss(embeds, reference, scale, weights)
    assert "preservation_image_contrastive" not in terms
    for name, term in terms.items():
        assert term.item() == pytest.approx(expected_terms[name], rel=1e-5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_single_term_moves_only_what_it_names():
    embeds = [torch.randn(4, 6, requires_grad=True) for _ in range(4)]
    reference = torch.randn(4, 6, requires_grad=True), torch.randn(4, 6, requires_grad=True)
    only = dict.fromkeys(PAPER_WEIGHTS, 0.0) | {"redirection_image_cosine": 0.2}
    loss, terms = SafeCLIPLoss(weights=only)(*embeds, reference=reference)
    assert list(terms) == ["redirection_image_cosine"]
    assert loss.item() == pytest.approx(terms["redirection_image_cosine"].item() / 8)
    loss.backward()
    assert embeds[3].grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in embeds[:3])


def test_half_precision_embeddings_are_compared_in_float32():
    embeds = [torch.randn(5, 16).bfloat16() for _ in range(4)]
    reference = [torch.randn(5, 16).bfloat16() for _ in range(2)]
    loss, _ = SafeCLIPLoss()(*embeds, reference=reference)
    expected, _ = SafeCLIPLoss()(*(e.float() for e in embeds), reference=[r.float() for r in reference])
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = SafeCLIPLoss()(*embeds, reference=reference)
    assert inside.item() == expected.item()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"redirection": 1}, "names 'redirection'; the terms are preservation_text_cosine"),
        ({"redirection_text_cosine": -1}, "'redirection_text_cosine' to -1; a weight is a number of at least 0"),
        ({"redirection_text_cosine": "high"}, "to 'high'"),
        ({"redirection_text_cosine": float("nan")}, "to nan"),
        (dict.fromkeys(PAPER_WEIGHTS, 0), "switches every term off"),
    ],
)
def test_bad_weights(weights, message):
    with pytest.raises(UserError, match=message):
        SafeCLIPLoss(weights=weights)


def test_collapse_is_not_free():
    """A model that maps everything to one point pays log(B) in every contrastive term."""
    constant = torch.zeros(8, 4)
    constant[:, 0] = 1
    reference = [torch.nn.functional.normalize(torch.randn(8, 4), dim=-1) for _ in range(2)]
    _, terms = SafeCLIPLoss(100.0)(*[constant] * 4, reference=reference)
    assert terms["preservation_text_contrastive"].item() >= np.log(8) - 1e-5
