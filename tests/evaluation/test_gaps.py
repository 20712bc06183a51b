"""Figures of data in which items are missing, or stand where their labels say."""

import math

import pytest
import torch
from datasets import Dataset, DatasetDict

from safe_clip import evaluate_quadruplets
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.data import load_evaluation_data
from safe_clip.evaluation.intervals import summarise
from safe_clip.evaluation.quadruplets import embed_quadruplets
from safe_clip.evaluation.redirection import redirection
from safe_clip.evaluation.report import write_report
from safe_clip.evaluation.retrieval import counterparts, retrieval
from safe_clip.evaluation.run import Subject, evaluate
from safe_clip.evaluation.suite import ModelEmbeddings
from safe_clip.evaluation.table import before_after_table, results_table
from safe_clip.evaluation.verdict import SplitFigures

from ..helpers import FEATURES, make_rows


def gappy(count=24, **gaps):
    table = Dataset.from_dict(make_rows(count), features=FEATURES).with_format("arrow")[:].to_pylist()
    for column, rows in gaps.items():
        for row in rows:
            table[row][column] = None
    return Dataset.from_list(table, features=FEATURES)


@pytest.fixture
def embedder(model, processor):
    return Embedder(model, processor)


def same(a, b):
    assert a.keys() == b.keys()
    for name, values in a.items():
        assert torch.allclose(values.double(), b[name].double(), equal_nan=True), name


def test_rows_that_have_all_are_measured_as_without_the_others(embedder):
    """Rows 20 to 23 have an unsafe caption alone, which no other query searches here."""
    gaps = gappy(**dict.fromkeys(["safe_caption", "safe_image", "unsafe_image"], range(20, 24)))
    items, whole = embed_quadruplets(embedder, gaps), embed_quadruplets(embedder, gappy().select(range(20)))
    assert len(items.unsafe_text) == 24 and len(items.safe_image) == 20
    found, expected = retrieval(items, settings=("safe",)), retrieval(whole, settings=("safe",))
    same({name: values[:20] for name, values in found.items()}, expected)
    assert all(values[20:].isnan().all() for values in found.values())
    rates = redirection(items, ks=(1,))
    assert not rates["unsafe_text_safe_rate_at_1"].isnan().any()  # they search the images that there are
    assert rates["safe_text_safe_rate_at_1"][20:].isnan().all()


def test_missing_figures_count_for_nothing_in_means_and_intervals():
    values = torch.tensor([1.0, 0.0, math.nan, 1.0, math.nan])
    made = summarise(
        {"rate": values, "some_rank": values, "none": torch.full((5,), math.nan)}, ["a", "a", "b", "b", "c"]
    )
    known = summarise({"rate": values[[0, 1, 3]]})
    assert made.keys() == {"rate", "some_median_rank"} and made["some_median_rank"]["value"] == 1
    assert made["rate"]["value"] == pytest.approx(2 / 3, abs=1e-6) == known["rate"]["value"]
    assert 0 <= made["rate"]["low"] <= made["rate"]["value"] <= made["rate"]["high"] <= 1
    assert {name: each["n"] for name, each in made["rate"]["by_category"].items()} == {"a": 2, "b": 1}


def test_items_are_measured_where_their_labels_put_them(embedder):
    rows = gappy(8)
    labelled = rows.add_column("unsafe_caption_is_safe", [True] + [None] * 7)
    labelled = labelled.add_column("safe_image_is_safe", [None] * 7 + [False])
    labelled = labelled.add_column("unsafe_image_is_safe", [None] * 7 + [True])
    items, plain = embed_quadruplets(embedder, labelled), embed_quadruplets(embedder, rows)
    assert len(items) == 9 and items.layout.row.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7]
    at = lambda each, row: each.embeds[each.row == row]  # noqa: E731
    assert torch.equal(at(items.safe_text, 1), at(plain.unsafe_text, 0)) and 0 not in items.unsafe_text.row
    assert torch.equal(at(items.safe_image, 8), at(plain.unsafe_image, 7))  # the two changed places
    assert torch.equal(at(items.unsafe_image, 8), at(plain.safe_image, 7))


@pytest.mark.parametrize(("lacking", "modality"), [("image", "text"), ("caption", "image")])
def test_data_of_one_modality_are_measured_within_it(lacking, modality, model, processor):
    rows = gappy().remove_columns([f"safe_{lacking}", f"unsafe_{lacking}"])
    figures = evaluate_quadruplets(model, processor, rows)
    assert set(figures) == {f"counterpart_{modality}"}
    items = embed_quadruplets(Embedder(model, processor), rows)
    queries, answers = (items.of(side, modality).embeds for side in ("unsafe", "safe"))
    first = [
        {tuple(answer.tolist()) for answer in answers[(answers @ query) >= (answers @ query).max() - 1e-6]}
        for query in queries
    ]
    right = [
        (tuple(answer.tolist()) in found) / len(found) for answer, found in zip(answers, first, strict=True)
    ]  # captions that occur twice are one
    assert figures[f"counterpart_{modality}"] == pytest.approx(sum(right) / len(right), abs=1e-6)
    assert counterparts(items).keys() >= {f"{modality}_recall_at_1", f"{modality}_rank"}
    table = before_after_table([SplitFigures("test", figures, figures, len(rows))])
    value = f"{100 * figures[f'counterpart_{modality}']:.1f}"
    assert "their safe counterpart first" in table.splitlines()[-1] and table.count(value) == 2


@pytest.mark.parametrize("lacking", [[], ["safe_image", "unsafe_image"], ["safe_caption", "unsafe_caption"]])
def test_all_protocols_take_what_there_is(lacking, model_dir, tmp_path):
    """With labels and gaps in every column, tables and page included."""
    gaps = {"safe_caption": [1], "unsafe_caption": [2], "safe_image": [1, 3], "unsafe_image": [4]}
    rows = gappy(**gaps).remove_columns(lacking).add_column("category", ["a", "b"] * 12)
    for column in ("unsafe_caption", "unsafe_image"):
        if column not in lacking:
            rows = rows.add_column(f"{column}_is_safe", [True] * 6 + [None] * 18)
    DatasetDict(test=rows).save_to_disk(tmp_path / "data")
    data = load_evaluation_data(str(tmp_path / "data"))
    model = Subject(model_dir)
    results, made = evaluate(
        model, model, data, facts={"dataset": "data", "index": "exact", "settings": {}}, cache_dir=tmp_path / "cache"
    )
    assert isinstance(made["model"], ModelEmbeddings)
    figures = results["models"]["model"]["splits"]["test"]
    assert bool(figures["redirection"]) == bool(figures["retrieval"]) == bool(figures["robustness"]) == (not lacking)
    assert ("counterparts" in figures) == bool(lacking)
    write_report(tmp_path / "report.html", results, made, data)
    assert "test" in (tmp_path / "report.html").read_text() and "Geometry" in results_table(results)
    kinds = {name.partition("_")[0] for name in figures["geometry"]}
    assert kinds == (
        {"text", "image", "modality"} if not lacking else {"text"} if "safe_image" in lacking else {"image"}
    )
