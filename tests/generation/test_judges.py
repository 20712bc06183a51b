"""Who judges, and how their scores are counted."""

import pytest
from PIL import Image

from safe_clip import UserError
from safe_clip.demo.vocabulary import load_vocabulary
from safe_clip.generation.arguments import GenerationArguments
from safe_clip.generation.judges import MentionJudge, flags, judge, open_judges, see_nudity_alone

from .conftest import FakeJudge


def test_an_item_is_flagged_where_either_judge_is_sure_enough():
    sure = {"a": (0.9, 0.1), "b": (0.1, 0.5), "c": (0.1, 0.49), "d": (0.7, 0.8)}
    judges = [FakeJudge("first", lambda item: sure[item][0]), FakeJudge("second", lambda item: sure[item][1])]
    scores = judge(judges, list(sure))
    assert scores[1] == {"first": 0.1, "second": 0.5}
    counted = {name: values.tolist() for name, values in flags(scores, 0.5).items()}
    assert counted == {
        "unsafe_out": [1, 1, 0, 1],
        "unsafe_out_first": [1, 0, 0, 1],
        "unsafe_out_second": [0, 1, 0, 1],
    }
    assert flags(scores, 0.75)["unsafe_out"].tolist() == [1, 0, 0, 1]
    assert set(flags(judge(judges[:1], ["a"]), 0.5)) == {"unsafe_out"}  # which one judge alone would only repeat
    assert judge(judges, []) == []


def test_judges_on_this_machine_are_called_by_the_last_part_of_their_path():
    path = FakeJudge("/home/me/judges/red", lambda item: 0.0)
    assert judge([path], ["a"]) == [{"red": 0.0}]
    both = [path, FakeJudge("/home/you/red", lambda item: 1.0)]
    assert judge(both, ["a"]) == [{"/home/me/judges/red": 0.0, "/home/you/red": 1.0}]


def test_a_caption_of_the_world_is_unsafe_where_a_wording_can_only_mean_stand_ins():
    everyday = next(concept for concept in load_vocabulary() if concept.category is None)
    unsafe = next(concept for concept in load_vocabulary() if concept.category is not None)
    texts = [f"a {everyday.names[0]}", f"a {everyday.names[0]} beside a {unsafe.names[0]}", "nothing at all"]
    assert MentionJudge().score(texts) == [(0.0, 0.0), (1.0, 0.0), (0.0, 0.0)]
    (opened,) = open_judges("text", GenerationArguments(), "demo")
    assert isinstance(opened, MentionJudge) and opened.fingerprint == MentionJudge().fingerprint


def test_named_models_judge_in_place_of_the_defaults(red_judge, word_judge):
    (opened,) = open_judges("image", GenerationArguments(image_classifier=[red_judge]), "demo")
    (red,), (green,) = (opened.score([Image.new("RGB", (32, 32), colour)]) for colour in ("red", "lime"))
    assert red[0] > 0.9 > 0.6 > green[0]
    assert open_judges("text", GenerationArguments(text_classifier=[word_judge]), "demo")[0].name == word_judge


def test_nudenet_judges_images_where_none_is_named():
    pytest.importorskip("nudenet")
    (opened,) = open_judges("image", GenerationArguments(), "you/diffusion")
    assert opened.name == "nudenet" and see_nudity_alone([opened])


def test_judges_that_see_nudity_alone_are_known(red_judge):
    (nsfw,) = open_judges("image", GenerationArguments(image_classifier=[red_judge]), "demo")
    (demo,) = open_judges("image", GenerationArguments(), "demo")
    assert see_nudity_alone([nsfw])
    assert not any(map(see_nudity_alone, ([demo], [nsfw, demo], [MentionJudge()])))


def test_what_is_missing_is_told(red_judge, monkeypatch):
    with pytest.raises(UserError, match="requires a judge of captions: name one with --text_classifier; https://"):
        open_judges("text", GenerationArguments(), "you/llava")
    with pytest.raises(UserError, match="--unsafe_labels rude: no classifier has such a label"):
        open_judges("image", GenerationArguments(image_classifier=[red_judge], unsafe_labels=["rude"]), "demo")
    monkeypatch.setitem(__import__("sys").modules, "nudenet", None)
    with pytest.raises(UserError, match=r"--image_classifier requires nudenet: pip install 'safe-clip\[audit\]'"):
        open_judges("image", GenerationArguments(), "you/diffusion")
