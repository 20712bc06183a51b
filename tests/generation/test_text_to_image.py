"""Images: the same noise for every model, work that goes on, what is hidden, and figures worked out by hand."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.nn.functional import normalize

from safe_clip import UserError, safe_text_to_image
from safe_clip.embedding.embedder import Embedder
from safe_clip.generation import text_to_image
from safe_clip.generation.arguments import GenerationArguments
from safe_clip.generation.distances import Inception, distances
from safe_clip.generation.figures import clip_scores, diversity, figures
from safe_clip.generation.prompts import Item
from safe_clip.generation.run import image_grid
from safe_clip.generation.swap import check_text_to_image
from safe_clip.generation.text_to_image import (
    GeneratedImages,
    ImageScorer,
    check_original,
    open_painter,
    paint,
    paint_all,
    pipeline_digest,
    requests_of,
    seed_of,
)

from ..helpers import build_model, make_rows
from .conftest import FakeJudge, build_pipeline, build_safe, redness

ROLES = ("baseline", "model")
FEW = {"num_inference_steps": 2, "images_per_prompt": 2}


@pytest.fixture
def clip(processor):
    return build_model(processor)


@pytest.fixture
def pipeline(processor, clip):
    return build_pipeline(processor, clip)


@pytest.fixture
def scorer(processor, clip):
    return ImageScorer([FakeJudge("red", redness)], Embedder(clip, processor, precision="float32"))


def items(count=3):
    rows = make_rows(count)
    return [
        Item("test", row, side, rows[f"{side}_caption"][row], None, "ab"[row % 2], rows["safe_caption"][row])
        for side in ("unsafe", "safe")
        for row in range(count)
    ]


def pixels(images):
    return [np.asarray(image).astype(int) for image in images]


def near(some, others):
    return all(np.abs(one - other).max() <= 1 for one, other in zip(pixels(some), pixels(others), strict=True))


def test_images_do_not_depend_on_their_batch_and_are_the_same_for_equal_encoders(pipeline, clip):
    requests, settings = requests_of(items(2), 2), GenerationArguments(**FEW)
    together = paint(pipeline, requests, settings)
    assert [image.size for image in together] == [(32, 32)] * 8
    assert near(together, [paint(pipeline, [request], settings)[0] for request in requests])
    assert not near(together[:1], together[1:2])  # another copy
    assert not near(together[:1], paint(pipeline, requests[:1], GenerationArguments(generation_seed=1, **FEW)))
    own = pipeline_digest(pipeline)
    swapped = safe_text_to_image(pipeline, clip)
    assert near(together, paint(swapped, requests, settings)) and pipeline_digest(swapped) == own


def test_another_encoder_draws_otherwise_from_the_same_noise(pipeline, processor):
    requests, settings = requests_of(items(1), 1), GenerationArguments(guidance_scale=30.0, num_inference_steps=8)
    before, digest = paint(pipeline, requests, settings), pipeline_digest(pipeline)
    with torch.no_grad():
        safe = build_safe(processor)
        safe.text_model.final_layer_norm.weight.mul_(-20)
    after = paint(safe_text_to_image(pipeline, safe), requests, settings)
    assert pipeline_digest(pipeline) != digest and not near(before, after)
    seeds = {seed_of(seed, request) for seed in (0, 1) for request in requests_of(items(2)[:2], 2)}
    assert len(seeds) == 8
    # Both sides of a row begin with the same noise.
    assert [seed_of(0, request) for request in requests_of(items(2)[:2], 2)] == [
        seed_of(0, request) for request in requests_of(items(2)[2:], 2)
    ]


def test_interrupted_work_goes_on_at_the_first_missing_chunk(pipeline, scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(text_to_image, "CHUNK", 2)
    requests, settings = requests_of(items(2), 2), GenerationArguments(generation_batch_size=2, **FEW)
    calls, real = [], text_to_image.paint

    def until(most):
        def counting(_, some, __):
            if len(calls) >= most:
                raise KeyboardInterrupt
            calls.append(len(some))
            return real(pipeline, some, settings)

        return counting

    whole = paint_all(pipeline, requests, settings, scorer, tmp_path / "whole")
    monkeypatch.setattr(text_to_image, "paint", until(1))
    with pytest.raises(KeyboardInterrupt):
        paint_all(pipeline, requests, settings, scorer, tmp_path / "parts")
    assert calls == [2]
    monkeypatch.setattr(text_to_image, "paint", until(99))
    parts = paint_all(pipeline, requests, settings, scorer, tmp_path / "parts")
    assert calls == [2] * 4
    assert parts.records == whole.records
    torch.testing.assert_close(parts.tensors, whole.tensors, rtol=0, atol=0)
    monkeypatch.setattr(text_to_image, "paint", until(0))
    again = paint_all(pipeline, requests, settings, scorer, tmp_path / "parts")
    assert again.records == whole.records
    # Other settings are other work; how many are made at a time is not.
    other = GenerationArguments(**FEW | {"num_inference_steps": 3})
    with pytest.raises(KeyboardInterrupt):
        paint_all(pipeline, requests, other, scorer, tmp_path / "parts")
    larger = GenerationArguments(generation_batch_size=3, **FEW)
    assert paint_all(pipeline, requests, larger, scorer, tmp_path / "parts").folder == again.folder


def test_unsafe_images_are_kept_blurred_and_figures_are_those_of_the_clear_ones(pipeline, scorer, tmp_path):
    requests, settings = requests_of(items(2), 2), GenerationArguments(flag_threshold=0.01, **FEW)
    kept = paint_all(pipeline, requests, settings, scorer, tmp_path)
    shown = paint_all(pipeline, requests, settings, scorer, tmp_path, show_unsafe=True)
    assert kept.folder != shown.folder
    torch.testing.assert_close(kept.tensors, shown.tensors)
    assert [record["scores"] for record in kept.records] == [record["scores"] for record in shown.records]
    clear = paint(pipeline, requests, settings)
    for number, image in enumerate(clear):
        assert near([shown.image(number)], [image])
        # Fine detail is gone: neighbouring pixels are nearly alike.
        steps = [np.abs(np.diff(each.astype(int), axis=0)).mean() for each in pixels([kept.image(number), image])]
        assert steps[0] < steps[1] / 2
    # Nothing is flagged: only the original's images of unsafe prompts are hidden.
    settings.flag_threshold = 1.0
    for original in (True, False):
        made = paint_all(pipeline, requests, settings, scorer, tmp_path / str(original), original=original)
        hidden = [not near([made.image(number)], [image]) for number, image in enumerate(clear)]
        assert hidden == [original] * 4 + [False] * 4


def test_the_pipelines_own_safety_checker_hides_nothing_from_the_count(pipeline, scorer, tmp_path):
    pipeline.register_modules(safety_checker=torch.nn.Identity())
    paint_all(pipeline, requests_of(items(1), 1), GenerationArguments(**FEW), scorer, tmp_path)
    assert pipeline.safety_checker is None


def test_figures_worked_out_by_hand():
    embeds = normalize(torch.tensor([[1.0, 0], [1, 1], [0, 1], [-1, 0], [3, 4], [4, 3]]), dim=1)
    captions = {"x": torch.tensor([1.0, 0.0])}
    some = [
        Item("test", 0, "unsafe", "p", None, "gore", "x"),
        Item("test", 1, "unsafe", "q", None, "drugs", None),
        Item("test", 0, "safe", "x", None, "gore", "x"),
    ]
    sure = [0.9, 0.2, 0.5, 0.1, 0.0, 0.7]
    generated = GeneratedImages(
        requests_of(some, 2), {"embeds": embeds}, [{"scores": {"red": score}} for score in sure], None
    )
    made = figures(generated, captions, {"test": embeds[:3]}, 0.5)["test"]
    unsafe, safe = made["unsafe"], made["safe"]
    assert unsafe["unsafe_out"]["value"] == 0.5 and safe["unsafe_out"]["value"] == 0.5
    parts = unsafe["unsafe_out"]["by_category"]
    assert {name: (part["value"], part["n"]) for name, part in parts.items()} == {"gore": (0.5, 2), "drugs": (0.5, 2)}
    assert unsafe["clip_score"]["value"] == pytest.approx((100 + 100 / math.sqrt(2)) / 2, abs=1e-4)
    assert safe["clip_score"]["value"] == pytest.approx((60 + 80) / 2, abs=1e-4)
    assert unsafe["diversity"]["value"] == pytest.approx(((1 - 1 / math.sqrt(2)) + 1) / 2, abs=1e-5)
    assert safe["diversity"]["value"] == pytest.approx(1 - 24 / 25, abs=1e-5)
    assert set(safe) == {"unsafe_out", "clip_score", "diversity", "fid", "kid"} and "by_category" not in safe
    assert "fid" not in unsafe
    # Images of one prompt are drawn together: with both prompts alike, there is nothing to be unsure of.
    assert unsafe["unsafe_out"]["low"] == unsafe["unsafe_out"]["high"] == 0.5


def test_an_image_against_its_caption_counts_for_nothing_and_without_one_not_at_all():
    images = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    scores = clip_scores(images, [torch.tensor([0.6, 0.8]), torch.tensor([0.6, 0.8]), None])
    assert scores.tolist()[:2] == pytest.approx([60, 0], abs=1e-5) and scores[2].isnan()
    three = normalize(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 0]]), dim=1)
    values = diversity(three, [0, 1, 2, 0])
    assert values[0] == pytest.approx((1 + 2 + 1) / 3) and values[1:].isnan().all()


def test_distances_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(60, 3)), rng.normal(1, 2, size=(50, 3))
    made = distances(torch.tensor(one), torch.tensor(other))
    means, covariances = zip(*((each.mean(0), np.cov(each.T)) for each in (one, other)), strict=True)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real).sum()
    fid = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * roots
    assert made["fid"]["value"] == pytest.approx(fid, abs=1e-4)
    assert made["kid"]["value"] > 0.1
    same = distances(torch.tensor(one[:30]), torch.tensor(one[30:]))
    assert same["fid"]["value"] < made["fid"]["value"] / 5 and same["kid"]["value"] < made["kid"]["value"] / 5
    assert distances(torch.tensor(one[:1]), torch.tensor(other)) == {}
    state = torch.random.get_rng_state()
    assert distances(torch.tensor(one), torch.tensor(other)) == made
    assert torch.equal(state, torch.random.get_rng_state())
    # Embeddings of length 1 fill the kernel's range.
    unit = normalize(torch.randn(40, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    assert distances(unit[:20], -unit[20:].abs())["kid"]["value"] > 1e-3


def test_a_baseline_that_the_pipeline_was_not_made_with_is_refused(pipeline, clip, processor):
    check_original(pipeline, clip, ("you/diffusion", "you/clip"))
    for dtype in (torch.bfloat16, torch.float16):
        again = build_pipeline(processor, clip).to(dtype)
        check_original(again, clip, ("you/diffusion", "you/clip"))
    with pytest.raises(UserError, match="--baseline you/clip is not the CLIP that --generator you/diffusion reads"):
        check_original(pipeline, build_safe(processor), ("you/diffusion", "you/clip"))


def test_pipelines_stored_in_half_precision_are_opened_in_one_dtype(pipeline, tmp_path):
    pipeline.to(torch.float16).save_pretrained(tmp_path)
    opened = open_painter(str(tmp_path), torch.float32)
    assert {part.dtype for part in (opened.text_encoder, opened.unet, opened.vae)} == {torch.float32}


def test_what_does_not_fit_is_known_before_anything_is_drawn(pipeline, clip, processor):
    before = pipeline.text_encoder
    check_text_to_image(pipeline, build_safe(processor))
    other = build_safe(processor)
    torch.nn.init.normal_(other.text_model.embeddings.token_embedding.weight)
    with pytest.raises(UserError, match="comes from another CLIP"):
        check_text_to_image(pipeline, other)
    assert pipeline.text_encoder is before


def test_a_grid_hides_what_is_unsafe(pipeline, scorer, tmp_path):
    settings = GenerationArguments(flag_threshold=0.01, **FEW)
    requests = requests_of(items(2), 2)
    roughness = []
    for show in (False, True):
        # The images were kept clear, as by a run that knew of no threshold.
        made = {role: paint_all(pipeline, requests, settings, scorer, tmp_path, show_unsafe=True) for role in ROLES}
        grid = image_grid(items(2), made, settings, True, show)
        columns = [grid.crop((left, 44, left + 192, grid.height - 12)) for left in range(88, grid.width - 12, 204)]
        assert len(columns) == 4
        roughness.append([np.abs(np.diff(np.asarray(each).astype(int), axis=0)).mean() for each in columns])
    assert all(hidden < shown / 1.5 for hidden, shown in zip(*roughness, strict=True))


def test_real_images_are_embedded_as_generated_ones_are(scorer, processor, clip):
    images = make_rows(2)["safe_image"]
    rows = Dataset.from_dict({"image": images})
    wanted = Embedder(clip, processor, precision="float32").images(rows, "image").embeds
    torch.testing.assert_close(scorer.embed(images), wanted, atol=1e-5, rtol=0)


def test_inception_that_cannot_be_had_is_told_of(monkeypatch):
    from torchmetrics.image import fid

    def offline(self, feature):
        raise OSError("no connection\nand more")

    monkeypatch.setattr(fid.FrechetInceptionDistance, "__init__", offline)
    with pytest.raises(UserError, match=r"--fid_features inception cannot be had \(no connection\)\. It requires"):
        Inception()


def test_inception_is_given_images_of_any_size(monkeypatch):
    from torchmetrics.image import fid

    class Fake(torch.nn.Module):
        def forward(self, pixels):
            assert pixels.dtype == torch.uint8 and pixels.shape[:2] == (1, 3)
            return pixels.float().mean((2, 3))

    monkeypatch.setattr(fid.FrechetInceptionDistance, "__init__", lambda self, feature: torch.nn.Module.__init__(self))
    monkeypatch.setattr(fid.FrechetInceptionDistance, "inception", Fake(), raising=False)
    images = [Image.new("RGB", (5, 7), (10, 20, 30)), Image.new("RGB", (4, 4), (1, 2, 3))]
    assert Inception()(images).tolist() == [[10, 20, 30], [1, 2, 3]]
