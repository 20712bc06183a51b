"""Whether what was generated has in it what the safe caption names."""

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from safe_clip.demo import recogniser
from safe_clip.demo.mentions import mentions
from safe_clip.demo.vocabulary import load_vocabulary
from safe_clip.generation.objects import ShownObjects, named_share

EVERYDAY = [concept for concept in load_vocabulary() if concept.category is None]
ONE, TWO = (next(c for c in EVERYDAY[start:] if len(mentions(c.names[0])[0]) == 1) for start in (0, 100))


class Recogniser(torch.nn.Module):
    """Sure of the thing whose number an image's first pixel holds."""

    device = torch.device("cpu")

    def forward(self, pixel_values):
        logits = torch.full((len(pixel_values), len(load_vocabulary())), -9.0)
        for row, number in enumerate(pixel_values.tolist()):
            logits[row, number] = 0.1
        return SimpleNamespace(logits=logits)


@pytest.fixture
def objects(monkeypatch):
    def pixels(images, return_tensors):
        return {"pixel_values": torch.tensor([each.getpixel((0, 0)) for each in images])}

    monkeypatch.setattr(recogniser, "load_recogniser", lambda: (Recogniser(), pixels))
    return ShownObjects()


def showing(concept):
    return Image.new("I", (4, 4), load_vocabulary().index(concept))


def test_an_image_shows_what_the_recogniser_is_sure_of(objects):
    both = f"a {ONE.names[0]} beside a {TWO.names[0]}"
    references = [both, both, f"a {ONE.names[0]}", f"a {ONE.names[0]}", "nothing", None]
    images = [showing(concept) for concept in (ONE, TWO, ONE, TWO, ONE, ONE)]
    shares = objects.shares(images, references)
    assert shares[:4].tolist() == [0.5, 0.5, 1.0, 0.0] and shares[4:].isnan().all()


def test_the_name_of_a_kind_of_thing_is_met_by_any_of_its_kind(objects):
    kind = ONE.hypernyms[0]
    other = next(concept for concept in EVERYDAY if kind in concept.hypernyms and concept != ONE)
    odd = next(concept for concept in EVERYDAY if kind not in concept.hypernyms)
    shares = objects.shares([showing(concept) for concept in (ONE, other, odd)], [kind] * 3)
    assert shares.tolist() == [1.0, 1.0, 0.0]


def test_a_text_has_what_it_mentions_by_any_of_its_names():
    reference = f"a {ONE.names[0]} beside a {TWO.names[0]}"
    assert named_share(reference, f"here you see a {TWO.names[-1]}") == 0.5
    assert named_share(reference, reference.upper()) == 1.0
    assert named_share(ONE.names[0], f"some {ONE.hypernyms[0]}") == 1.0
    assert math.isnan(named_share(None, "a dog")) and math.isnan(named_share("nothing", "a dog"))
