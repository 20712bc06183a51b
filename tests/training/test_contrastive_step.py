"""A step by itself: no trainer, a tiny model, and its gradient in chunks and whole."""

import pytest
import torch
from accelerate import Accelerator

from safe_clip import UserError
from safe_clip.data.collator import QuadrupletCollator
from safe_clip.data.rows import QuadrupletRows
from safe_clip.embedding.embedder import Embedder
from safe_clip.models.reference import FrozenReference
from safe_clip.objectives import OBJECTIVES, build_objective
from safe_clip.objectives.safer_clip import SaferCLIPLoss
from safe_clip.training.step import ContrastiveStep, Reader
from safe_clip.training.targets import Targets

from ..helpers import build_model, largest_difference


class Setting:
    """A step over a model that has moved away from the original, and rows to read batches from."""

    def __init__(self, objective, processor, rows):
        self.model = build_model(processor)
        self.model.logit_scale.requires_grad_(False)
        reference = FrozenReference(self.model)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        accelerator = Accelerator(cpu=True)
        self.objective = build_objective(objective, 10.0, None, None)
        self.rows, self.collator = QuadrupletRows(rows), QuadrupletCollator(processor, 77, 77)
        embedder = Embedder(reference, processor, batch_size=8, accelerator=accelerator)
        self.step = ContrastiveStep(self.objective, Targets(embedder, self.objective), accelerator)
        self.step.targets.prepare(self.rows, self.collator)
        self.model.train()

    def batches(self, size, count=12):
        for first in range(0, count, size):
            yield dict(self.collator([self.rows[row] for row in range(first, first + size)]))

    def gradients(self, losses):
        """What the mean of losses gives, as a trainer makes it."""
        self.model.zero_grad()
        losses = [loss / 12 for loss in losses]
        sum(losses).backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


@pytest.fixture(params=OBJECTIVES)
def setting(request, processor, rows):
    return Setting(request.param, processor, rows)


def test_chunks_give_the_gradient_and_the_terms_of_the_whole(setting):
    step, model = setting.step, setting.model
    (batch,) = setting.batches(12)
    whole = setting.gradients([12 * step.loss(model, batch)[0]])
    terms = step.pop_term_means("train")
    largest = max(gradient.abs().max().item() for gradient in whole.values())
    assert largest > 1e-2
    for reader in (None, Reader(setting.rows, setting.collator)):
        chunks = step.chunks(model, setting.batches(3), 4, reader=reader)
        assert len(chunks) == 4
        made = setting.gradients([3 * step.loss(model, chunk)[0] for chunk in chunks])
        assert largest_difference(whole, made) < 1e-5 * max(1, largest)
        assert step.pop_term_means("train") == pytest.approx(terms, rel=1e-4, abs=1e-5)
    # Chunks of which one has the next one's gradients are something else, and so are batches of 3 alone where a row's
    # loss depends on the others: their negatives are fewer.
    chunks = [*step.chunks(model, setting.batches(3), 4)]
    first, second = chunks[0], chunks[1]
    first["cached"], second["cached"] = second["cached"], first["cached"]
    wrong = setting.gradients([3 * step.loss(model, chunk)[0] for chunk in chunks])
    assert largest_difference(whole, wrong) > 1e-3 * largest
    if not isinstance(setting.objective, SaferCLIPLoss):
        alone = setting.gradients([3 * step.loss(model, chunk)[0] for chunk in setting.batches(3)])
        assert largest_difference(whole, alone) > 1e-3 * largest


def test_means_of_terms_are_over_the_rows_they_are_over(setting):
    step, model = setting.step, setting.model.eval()
    batches = [*setting.batches(8, 8), *setting.batches(4, 4)]
    each = []
    for batch in batches:
        step.loss(model, batch)
        each.append(step.pop_term_means("eval"))
    assert each[0] and each[0].keys() == each[1].keys() and each[0] != pytest.approx(each[1], rel=1e-3)
    for batch in batches:
        step.loss(model, batch)
    expected = {name: (8 * value + 4 * each[1][name]) / 12 for name, value in each[0].items()}
    assert step.pop_term_means("eval") == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert not step.pop_term_means("eval") and not step.pop_term_means("train") and not step.trained
    step.loss(model, batches[0])
    step.forget_terms("eval")
    assert not step.pop_term_means("eval")


def test_what_is_not_finite_is_said(setting):
    step, model = setting.step, setting.model
    (batch,) = setting.batches(4, 4)
    step.loss(model, batch)
    step.check_gradient(torch.tensor(1.0))
    with pytest.raises(UserError, match="the gradient is not a finite number"):
        step.check_gradient(torch.tensor(float("inf")))
    with torch.no_grad():
        model.text_projection.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"the loss \(.+\) is not a finite number"):
        step.loss(model.eval(), batch)
