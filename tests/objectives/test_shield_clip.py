import math

import pytest
import torch

from safe_clip import ShieldCLIPLoss
from safe_clip.objectives.base import QuadrupletEmbeds, ReferenceEmbeds

EYE = torch.eye(2)
FLIPPED = EYE.flip(0)
RIGHT = math.log(math.e + 1) - 1  # InfoNCE of two rows at scale 1, each on its own target
ONE_ROW = 0.0  # InfoNCE of a single row


def terms(text_is_safe=None, image_is_safe=None):
    """Safe items unmoved; unsafe items on the other row's safe place; their own original places are the axes'."""
    reference = ReferenceEmbeds(
        EYE,
        EYE,
        unsafe_text=EYE,
        unsafe_image=EYE,
        unsafe_text_is_safe=None if text_is_safe is None else torch.tensor(text_is_safe),
        unsafe_image_is_safe=None if image_is_safe is None else torch.tensor(image_is_safe),
    )
    loss, made = ShieldCLIPLoss(1.0)(QuadrupletEmbeds(EYE, FLIPPED, EYE, FLIPPED), reference)
    assert loss.item() == pytest.approx(sum(ShieldCLIPLoss.WEIGHTS[name] * term.item() for name, term in made.items()))
    return {name: term.item() for name, term in made.items()}


def test_without_labels_all_of_the_unsafe_side_is_unsafe():
    expected = {"real": 2 * RIGHT, "safe": 0.0, "redirect": 2.0, "mixed": 0.0, "coherence": RIGHT}
    assert terms() == pytest.approx(expected, abs=1e-6)


def test_each_term_takes_the_rows_that_it_concerns():
    """Row 0: harmless in both. Row 1: a harmless picture under an unsafe caption."""
    made = terms([True, False], [True, True])
    # Row 0 should be where the original put it, and is a quarter turn away in both; a single row is its own InfoNCE.
    assert made["safe"] == pytest.approx(2.0 + 2 * ONE_ROW, abs=1e-6)
    assert made["mixed"] == pytest.approx(1.0, abs=1e-6)  # the caption alone
    assert made["redirect"] == made["coherence"] == 0.0
    assert made["real"] == pytest.approx(2 * RIGHT, abs=1e-6)
    made = terms([True, False], [False, False])
    assert made["mixed"] == pytest.approx(1.0, abs=1e-6)  # the picture of row 0
    assert made["redirect"] == pytest.approx(2.0, abs=1e-6)  # both items of row 1
