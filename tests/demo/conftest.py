"""Art for the second world, made up, and the folder of its modules."""

import importlib
import io
import sys

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from ..helpers import ROOT

sys.path.append(str(ROOT / "tools" / "second_world"))
things, scenery, rows = map(importlib.import_module, ("things", "scenery", "rows"))


@pytest.fixture(scope="session")
def colour():
    """The colour that stands for an emoji's art."""
    return lambda emoji: tuple(np.frombuffer(emoji.encode()[-3:], dtype=np.uint8).tolist())


@pytest.fixture(scope="session")
def sprites_file(tmp_path_factory, colour):
    """Squares of a colour of their own in place of all art."""
    made = []
    for thing in things.load_things():
        buffer = io.BytesIO()
        PILImage.new("RGBA", (4, 4), (*colour(thing.emoji), 255)).save(buffer, "PNG")
        for style in (*scenery.TRAINING_STYLES, *scenery.HELD_OUT_STYLES):
            made.append({"emoji": thing.emoji, "style": style, "sprite": {"bytes": buffer.getvalue(), "path": None}})
    file = tmp_path_factory.mktemp("art") / "sprites.parquet"
    features = Features({"emoji": Value("string"), "style": Value("string"), "sprite": Image()})
    Dataset.from_list(made, features=features).to_parquet(file)
    return file


@pytest.fixture(scope="session")
def sprites(sprites_file):
    return rows.load_sprites(sprites_file)
