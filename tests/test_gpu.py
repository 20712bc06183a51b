"""On a GPU the package computes what it computes on the CPU.

    pytest -m gpu tests/test_gpu.py

Each comparison writes a line with what was found and what is allowed; with a file named in `SAFE_CLIP_CHECKS`, it is
appended there as JSON too. Differences are relative: the length of the difference by the length of what is expected.
"""

import contextlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from transformers import TrainerCallback

from safe_clip import evaluate_quadruplets, load_clip, load_processor
from safe_clip.embedding.embedder import Embedder
from safe_clip.objectives import OBJECTIVES

from .helpers import make_trainer, weights

DEVICE = os.environ.get("SAFE_CLIP_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else None)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE is None, reason="there is no GPU")]

SAME = 1e-4  # float32 on both, of which a GPU sums in another order
TRAINED = 1e-2  # of what some steps of Adam change, whose first ones are as long for the smallest gradient
HALF = {"bfloat16": 0.05, "float16": 0.01}  # of embeddings and losses; of gradients twice that


@pytest.fixture(autouse=True)
def exact_products():
    """float32 is float32, in convolutions too: no TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def check(request):
    """`check(what, found, allowed)`: writes a line; the test fails at its end if one is not allowed."""
    failed = []

    def check(what: str, found: float, allowed: float) -> None:
        passed = found <= allowed  # which NaN is not
        print(f"{'pass' if passed else 'FAIL'}  {what}: {found:.2e} (at most {allowed:.0e})", flush=True)
        if path := os.environ.get("SAFE_CLIP_CHECKS"):
            line = {"check": what, "found": found, "allowed": allowed, "passed": passed, "device": DEVICE}
            with Path(path).open("a") as file:
                file.write(json.dumps(line) + "\n")
        if not passed:
            failed.append(what)

    yield check
    assert not failed


def apart(found, expected) -> float:
    """How far tensors, or dictionaries of them, are from what is expected."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = (torch.cat([each[name].flatten().cpu() for name in expected]) for each in (found, expected))
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return ((found - expected).norm() / expected.norm()).item()


class Gradients(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self):
        self.first = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.first is None:
            named = ((name, weight.grad) for name, weight in model.named_parameters())
            self.first = {name: grad.detach().float().cpu().clone() for name, grad in named if grad is not None}


def train(processor, rows, folder, device=None, resume=None, **settings):
    """A training that has ended: the first gradients, the logged losses, what it changed of the weights."""
    # Long enough that nothing is clipped, yet with clipping a gradient scaler's factor is taken off before.
    settings = {"max_grad_norm": 1e6, "use_cpu": (device or DEVICE) == "cpu", "dataloader_num_workers": 0} | settings
    trainer = make_trainer(processor, rows, folder, **settings)
    gradients = Gradients()
    trainer.add_callback(gradients)
    before = weights(trainer)
    trainer.train(resume_from_checkpoint=resume)
    after = {name: weight.cpu() for name, weight in weights(trainer).items()}
    moved = {name: weight - before[name].cpu() for name, weight in after.items()}
    assert trainer.args.device.type == (device or DEVICE)
    assert all(weight.isfinite().all() for weight in after.values())
    losses = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    return gradients.first, losses, moved


def test_embeddings_of_the_demo(check):
    from safe_clip import load_quadruplets

    model, processor = load_clip("demo"), load_processor("demo")
    rows = load_quadruplets("demo")["validation"].select(range(128))

    def embed(precision: str) -> dict[str, torch.Tensor]:
        embedder = Embedder(model, processor, precision=precision)
        return {
            "texts": embedder.texts(rows["safe_caption"]).embeds,
            "images": embedder.images(rows, "unsafe_image").embeds,
        }

    on_cpu, figures = embed("float32"), evaluate_quadruplets(model, processor, rows)
    model.to(DEVICE)
    for precision, allowed in {"float32": SAME, **HALF}.items():
        for what, embeds in embed(precision).items():
            check(f"embeddings of {what}, {precision}", apart(embeds, on_cpu[what]), allowed)
    on_device = evaluate_quadruplets(model, processor, rows)
    check("figures of evaluation", max(abs(on_device[name] - figures[name]) for name in figures), 0.02)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses(check, name):
    torch.manual_seed(0)
    embeds, reference = normalize(torch.randn(2, 4, 48, 64), dim=-1)
    reference = normalize(embeds + reference, dim=-1)
    results = {}
    for device, dtype in (("cpu", None), (DEVICE, None), (DEVICE, torch.bfloat16)):
        inputs = embeds.detach().clone().to(device).requires_grad_()
        with torch.autocast(device, dtype) if dtype else contextlib.nullcontext():
            loss, terms = OBJECTIVES[name]()(*inputs, reference=tuple(reference.to(device)))
        loss.backward()
        results[device, dtype] = torch.stack([loss, *terms.values()]), inputs.grad
    expected = results["cpu", None]
    for device, dtype in results:
        for what, found, known in zip(("loss and terms", "gradient"), results[device, dtype], expected, strict=True):
            if (device, dtype) != ("cpu", None):
                check(f"{name}, {what}{', under autocast' if dtype else ''}", apart(found, known), SAME)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_training(check, processor, rows, tmp_path, name):
    expected = train(processor, rows, tmp_path / "cpu", "cpu", objective=name)
    found = train(processor, rows, tmp_path / "device", objective=name)
    for what, one, other, allowed in zip(
        ("gradient", "losses", "trained weights"), found, expected, (SAME * 10, TRAINED, TRAINED), strict=True
    ):
        check(f"{name}, {what}, float32", apart(one, other), allowed)


@pytest.mark.parametrize("name", ["safe_ranking", "safe_clip"])
@pytest.mark.parametrize("precision", HALF)
def test_training_in_half_precision(check, processor, rows, tmp_path, name, precision):
    if precision == "float16" and DEVICE == "cpu":
        pytest.skip("trainers have no float16 on the CPU")
    half = {"bf16": True} if precision == "bfloat16" else {"fp16": True}
    _, expected, _ = train(processor, rows, tmp_path / "float32", objective=name, learning_rate=1e-3, max_steps=8)
    _, losses, moved = train(
        processor, rows, tmp_path / "half", objective=name, learning_rate=1e-3, max_steps=8, **half
    )
    check(f"{name}, first loss, {precision}", apart(losses[:1], expected[:1]), HALF[precision])
    if precision == "bfloat16":  # of float16, the scaler skips the first steps, whose gradients overflow
        check(f"{name}, losses, {precision}", apart(losses, expected), 2 * HALF[precision])
    else:
        assert losses[-1] < losses[0]
    assert any(change.abs().max() > 0 for change in moved.values())


def test_resuming(check, processor, rows, tmp_path):
    common = {"objective": "safe_ranking", "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    _, _, whole = train(processor, rows, tmp_path, **common)
    trained = make_trainer(processor, rows, tmp_path)
    before = weights(trained)
    trainer = make_trainer(processor, rows, tmp_path, **common, max_grad_norm=1e6, use_cpu=DEVICE == "cpu")
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    resumed = {name: weight.cpu() - before[name].cpu() for name, weight in weights(trainer).items()}
    check("weights after resuming", apart(resumed, whole), 1e-3)


@pytest.mark.parametrize("name", ["safe_ranking", "safe_clip"])
def test_contrastive_batch(check, processor, rows, tmp_path, name):
    common = {"objective": name, "max_steps": 3}
    whole = train(processor, rows, tmp_path / "whole", per_device_train_batch_size=12, **common)
    chunks = {"per_device_train_batch_size": 4, "contrastive_batch_size": 12}
    cut = train(processor, rows, tmp_path / "cut", **chunks, **common)
    check(f"{name}, gradient in chunks", apart(cut[0], whole[0]), SAME * 10)
    check(f"{name}, trained weights in chunks", apart(cut[2], whole[2]), TRAINED)


def test_workers(check, processor, rows, tmp_path):
    none = train(processor, rows, tmp_path / "none")
    some = train(processor, rows, tmp_path / "some", dataloader_num_workers=2)
    check("trained weights, rows read by others", apart(some[2], none[2]), TRAINED)
