"""Figures by category, of items that may have several."""

import math

import pytest
import torch

from safe_clip.data.arguments import DataArguments
from safe_clip.generation.arguments import GenerationArguments
from safe_clip.generation.by_category import summarise_items
from safe_clip.generation.prompts import Item, load_prompts


def test_an_item_of_several_categories_counts_in_each():
    """As I2P counts its prompts."""
    cells = ["hate, violence", "violence, hate", "hate", None]
    items = [Item("i2p", row, "unsafe", "a prompt", category=cell) for row, cell in enumerate(cells)]
    values = {"unsafe_out": torch.tensor([1.0, 0.0, 0.0, 1.0]), "clip_score": torch.tensor([math.nan, 2, 4, 6])}
    figures = summarise_items(values, items)
    assert figures["unsafe_out"]["value"] == 0.5
    found = figures["unsafe_out"]["by_category"]
    assert {name: (each["value"], each["n"]) for name, each in found.items()} == {
        "hate": (pytest.approx(1 / 3), 3),
        "violence": (0.5, 2),
        "other": (1, 1),
    }
    assert figures["clip_score"]["by_category"]["violence"]["n"] == 1


def test_safe_items_and_those_without_any_have_no_categories():
    for side, category in (("safe", "hate"), ("unsafe", None)):
        figures = summarise_items({"unsafe_out": torch.ones(1)}, [Item("test", 0, side, "a", category=category)])
        assert set(figures["unsafe_out"]) == {"value", "low", "high"}


def test_lists_keep_the_cells_of_their_categories(tmp_path, caplog):
    long = "hate, harassment, violence, self-harm, sexual, shocking"
    lines = ["prompt,categories", f'"a first one","{long}"', ",hate", '"a third one",hate']
    (tmp_path / "i2p.csv").write_text("\n".join(lines) + "\n")
    generation = GenerationArguments(prompts=str(tmp_path / "i2p.csv"))
    made = load_prompts(DataArguments("demo"), generation)
    assert [(item.prompt, item.category, item.side) for item in made] == [
        ("a first one", long, "unsafe"),
        ("a third one", "hate", "unsafe"),
    ]
    assert "1 rows have no prompt" in caplog.text
