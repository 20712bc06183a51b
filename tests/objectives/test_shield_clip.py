import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from safe_clip import ShieldCLIPLoss
from safe_clip.items import Layout, Quadruplets
from safe_clip.objectives.base import BatchTargets

EYE = torch.eye(2)
FLIPPED = EYE.flip(0)
RIGHT = math.log(math.e + 1) - 1  # InfoNCE of two rows at scale 1, each on its own target
ONE_ROW = 0.0  # InfoNCE of a single row


def terms(**labels):
    """Safe items unmoved; unsafe items on the other row's safe place."""
    layout = replace(Layout.whole(2), **{name: np.array(value) for name, value in labels.items()})
    reference = BatchTargets(Quadruplets.packed([EYE, None, EYE, None], layout))
    loss, made = ShieldCLIPLoss(1.0)(Quadruplets.packed([EYE, FLIPPED, EYE, FLIPPED], layout), reference)
    assert loss.item() == pytest.approx(sum(ShieldCLIPLoss.WEIGHTS[name] * term.item() for name, term in made.items()))
    return {name: term.item() for name, term in made.items()}


def test_without_labels_all_of_the_unsafe_side_is_unsafe():
    assert terms() == pytest.approx({"real": 2 * RIGHT, "redirect": 2.0, "coherence": RIGHT}, abs=1e-6)


def test_each_term_takes_the_rows_that_it_concerns():
    """Row 0 is a generated pair that came out harmless, as a quadruplet of its own; of row 1 the caption alone is
    unsafe."""
    made = terms(
        present=[[True, False, True, False], [True, True, True, False]],
        relabelled=[True, False],
        half_unsafe=[False, True],
    )
    assert made == pytest.approx({"real": 2 * ONE_ROW, "safe": 2 * ONE_ROW, "mixed": 1.0}, abs=1e-6)
    # Of row 0 the image alone is unsafe, of row 1 both items are.
    made = terms(present=[[True, False, True, True], [True] * 4], half_unsafe=[True, False])
    expected = {"real": 2 * RIGHT, "mixed": 1.0, "redirect": 2.0, "coherence": ONE_ROW}
    assert made == pytest.approx(expected, abs=1e-6)


def test_items_that_are_missing_for_another_reason_are_no_mixed_pairs():
    made = terms(present=[[True, True, False, False]] * 2)
    # Captions alone: d(T(t), T0(t)) = 0 and no InfoNCE; d(T(t*), T0(t)) = 1.
    assert made == pytest.approx({"real": 0.0, "redirect": 1.0}, abs=1e-6)
