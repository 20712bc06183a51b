import math
import shutil
import sys

import pytest

from safe_clip import UserError
from safe_clip.metrics import load_metric

pytest.importorskip("pycocoevalcap")

SAME = ["a red dog sits here", "two big buses on roads"]
BLEU = ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]


def score(predictions, references, meteor=False, **options):
    return load_metric("caption_quality").compute(
        predictions=predictions, references=references, meteor=meteor, **options
    )


def words(caption: str) -> str:
    return sys.modules[type(load_metric("caption_quality")).__module__].words(caption)


def test_captions_as_people_wrote_them():
    figures = score(SAME, [["A red dog sits here.", "nothing alike"], ["Two big buses, on roads!"]])
    assert figures == pytest.approx(
        {**dict.fromkeys(BLEU, 1), "rouge_l": 1, "cider": 7.5}
    )  # of one reference of two, 0
    assert score(SAME, SAME)["cider"] == pytest.approx(10)


def test_bleu_by_hand():
    # All six words are right, but ten were wanted: exp(1 - 10/6).
    figures = score(["a red dog sits here", "two"], SAME, per_item=True)
    assert figures["bleu_1"] == pytest.approx(math.exp(-2 / 3))
    assert figures["per_item"]["bleu_1"].tolist() == pytest.approx([1, math.exp(-4)])
    # "the" counts twice at most; pairs: "the cat" of five.
    figures = score(["the the the the the cat"], [["the cat on the mat is it"]])
    shorter = math.exp(1 - 7 / 6)
    assert figures["bleu_1"] == pytest.approx(shorter * 3 / 6)
    assert figures["bleu_2"] == pytest.approx(shorter * math.sqrt(3 / 6 * 1 / 5))


def test_the_reference_of_the_nearest_length_counts():
    assert score(["a dog"], [["a dog sits in the road", "a dog runs"]])["bleu_1"] == pytest.approx(math.exp(1 - 3 / 2))


def test_rouge_by_hand():
    # Of four words each, "police the gunman" and "the gunman" come in the same order.
    assert score(["police kill the gunman"], ["police killed the gunman"])["rouge_l"] == pytest.approx(3 / 4)
    assert score(["the gunman kill police"], ["police killed the gunman"])["rouge_l"] == pytest.approx(2 / 4)
    # Precision 1, recall 1/2, beta 1.2.
    figure = score(["a dog"], ["a dog sits here"])["rouge_l"]
    assert figure == pytest.approx((1 + 1.44) * 0.5 / (0.5 + 1.44))


def test_the_order_of_words_matters():
    figures = score(["here sits dog red a", SAME[1]], SAME, per_item=True)["per_item"]
    assert figures["bleu_1"].tolist() == pytest.approx([1, 1]) and figures["bleu_2"][0] < 1e-3
    assert figures["rouge_l"].tolist() == pytest.approx([0.2, 1])
    assert figures["cider"].tolist() == pytest.approx([2.5, 10])  # its single words alone, of four lengths


def test_cider_passes_over_what_all_references_have():
    # "a" is in both: of single words one in two counts, and no longer run is shared.
    figures = score(["a dog", "a bus"], ["a dog", "a bus"], per_item=True)
    assert figures["per_item"]["cider"].tolist() == pytest.approx([5, 5])
    assert score(["a"], ["a dog"])["cider"] == 0
    assert score(["a bus", "a bus"], ["a dog", "a bus"], per_item=True)["per_item"]["cider"].tolist() == [
        pytest.approx(0),
        pytest.approx(5),
    ]


def test_figures_of_all_and_of_each():
    predictions = ["a red dog", "two buses on roads", ""]
    references = [["a red dog sits"], [SAME[1], "buses"], ["a bird"]]
    figures = score(predictions, references, per_item=True)
    values = figures.pop("per_item")
    assert set(values) == set(figures) == {*BLEU, "rouge_l", "cider"}
    assert all(each.shape == (3,) for each in values.values())
    for name in ("rouge_l", "cider"):
        assert values[name].mean().item() == pytest.approx(figures[name])
    assert all(each[2] == pytest.approx(0, abs=1e-6) for each in values.values())
    metric = load_metric("caption_quality")
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add_batch(predictions=[prediction], references=[reference])
    assert metric.compute(meteor=False) == figures


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR requires Java")
def test_meteor_where_there_is_java():
    figures = score(SAME, [["A red dog sits here."], ["two red dogs"]], meteor=None, per_item=True)
    first, second = figures["per_item"]["meteor"].tolist()
    assert first == pytest.approx(1) and 0 < second < figures["meteor"] < 1


def test_no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(score(SAME, SAME, meteor=None)) == {*BLEU, "rouge_l", "cider"}
    with pytest.raises(UserError, match="METEOR requires Java, and no `java` is found"):
        score(SAME, SAME, meteor=True)


def test_a_java_that_does_not_work(monkeypatch, tmp_path):
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho 'Could not reserve enough space' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Java program failed: Could not reserve enough space.*pass meteor=False"):
        score(SAME, SAME, meteor=None)


def test_the_scorer_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"require pycocoevalcap: pip install 'safe-clip\[generation\]'"):
        score(SAME, SAME)


@pytest.mark.parametrize("references", [[SAME, []], [SAME, ["", "..."]], [SAME[0], "!"]])
def test_an_item_with_nothing_to_compare_with(references):
    with pytest.raises(UserError, match="item 1 has no reference with a word in it"):
        score(SAME, references)


def test_nothing_to_score_and_inputs_of_different_length():
    with pytest.raises(UserError, match="no captions to score"):
        score([], [])
    with pytest.raises(ValueError, match="differ in length"):
        score(SAME, SAME[:1])


# As pycocoevalcap's own tokenizer, in Java, cuts them.
CUT = {
    "A dog's bone, isn't it? (yes) [no] {x}": "a dog 's bone is n't it -lrb- yes -rrb- -lsb- no -rsb- -lcb- x -rcb-",
    'He said "hello there" - well-known -- and...': "he said hello there well-known and",
    "I can't; they'll cannot gonna wanna": "i ca n't they 'll can not gon na wan na",
    "3.5 apples, 1,000 cars & $5 at 10:30 50% off": "3.5 apples 1,000 cars & $ 5 at 10:30 50 % off",
    "black/white U.S. Mr. Smith etc.": "black/white u.s. mr. smith etc.",
    "the dogs' house 'quoted' o'clock": "the dogs house quoted o'clock",
    "a café in São Paulo – naïve — ok…": "a café in são paulo naïve ok",
    "“curly” ‘single’ it’s": "curly single it 's",
    "two\ttabs  spaces \n": "two tabs spaces",
    "t-shirt a- -b x-ray's e.g. i.e. Dr.": "t-shirt a b x-ray 's e.g. i.e. dr.",
    "a dog,a cat and a bird.": "a dog a cat and a bird",
    "two men; one woman: running!": "two men one woman running",
    "St. Louis vs. them, a.m. to p.m.": "st. louis vs. them a.m. to p.m.",
    "wow!! what?": "wow !! what",
    "...": "",
}


@pytest.mark.parametrize("caption", CUT)
def test_words(caption):
    assert words(caption) == CUT[caption]
