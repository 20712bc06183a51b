"""One run through everything, with rows left out, against figures worked out by hand."""

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict

from safe_clip import UserError
from safe_clip.data.classification import ClassificationData
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.data import EvaluationData, Sample, choose_splits, draw, load_evaluation_data
from safe_clip.evaluation.quadruplets import row_categories
from safe_clip.evaluation.suite import embed_everything, measure, place

from ..helpers import FEATURES, build_model, make_rows


@pytest.fixture(scope="module")
def broken(processor):
    """Eight rows, of which the second and the fifth have a broken image, with a category and a label each."""
    table = Dataset.from_dict(make_rows(8), features=FEATURES).with_format("arrow")[:].to_pylist()
    for row, column in ((1, "safe_image"), (4, "unsafe_image")):
        table[row][column] = {"bytes": b"GIF89a broken", "path": "cat.gif"}
    rows = Dataset.from_list(table, features=FEATURES).add_column("category", [0, 1, 0, 1, 1, 0, None, 1])
    data = EvaluationData({"test": Sample(rows.cast_column("category", ClassLabel(names=["gore", "drugs"])), 8)})
    labels = [0, 1, 1, 0, 1, 0, 0, 1]
    data.classifications["kinds"] = ClassificationData("kinds", rows, "safe_image", labels, ["red", "blue"], ["a {}"])
    data.classified_of["kinds"] = 8
    models = {role: build_model(processor, seed) for seed, role in enumerate(("baseline", "model"))}
    made = {
        role: embed_everything(Embedder(model, processor, role), data, max_bad_fraction=1.0)
        for role, model in models.items()
    }
    return data, models, made


def embedded(model, processor, rows, side):
    """Stock transformers' embeddings."""
    inputs = processor(
        text=list(rows[f"{side}_caption"]), images=list(rows[f"{side}_image"]), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(**inputs)
    return output.text_embeds, output.image_embeds


KEPT = [0, 2, 3, 5, 6, 7]


def test_rows_that_are_left_out_leave_everything_else_in_step(broken, processor):
    data, models, made = broken
    assert made["model"].kept["test"].tolist() == KEPT
    assert made["model"].unreadable["test"][0].startswith("row 1, column 'safe_image'")
    rows = data.splits["test"].rows.select(KEPT)
    _, image = embedded(models["model"], processor, rows, "safe")
    unsafe_text, unsafe_image = embedded(models["model"], processor, rows, "unsafe")
    safe_first = (unsafe_text @ torch.cat([image, unsafe_image]).T).argmax(dim=1) < 6
    results = measure(made, data)["model"]
    figure = results["splits"]["test"]["redirection"]["unsafe_text_safe_rate_at_1"]
    assert figure["value"] == pytest.approx(safe_first.float().mean().item(), abs=1e-6)
    for category, members in {"gore": [0, 1, 3], "drugs": [2, 5], "other": [4]}.items():
        part = figure["by_category"][category]
        assert part["n"] == len(members)
        assert part["value"] == pytest.approx(safe_first[members].float().mean().item(), abs=1e-6)
    # The pool of the other model, searched by this one.
    _, before = embedded(models["baseline"], processor, rows, "safe")
    _, unsafe_before = embedded(models["baseline"], processor, rows, "unsafe")
    across = (unsafe_text @ torch.cat([before, unsafe_before]).T).argmax(dim=1) < 6
    figure = results["splits"]["test"]["redirection_original_gallery"]["unsafe_text_safe_rate_at_1"]
    assert figure["value"] == pytest.approx(across.float().mean().item(), abs=1e-6)
    text, _ = embedded(models["model"], processor, rows, "safe")
    own = (text @ before.T).argmax(dim=1) == torch.arange(6)
    figure = results["splits"]["test"]["retrieval_original_gallery"]["safe_t2i_recall_at_1"]
    assert figure["value"] == pytest.approx(own.float().mean().item(), abs=1e-6)
    classes = torch.nn.functional.normalize(
        models["model"].get_text_features(**processor(text=["a red", "a blue"], return_tensors="pt")).pooler_output,
        dim=1,
    )
    all_but_one = [row for row in range(8) if row != 1]
    images = [data.splits["test"].rows.select(all_but_one)["safe_image"]]
    pixels = processor(images=list(images[0]), return_tensors="pt")
    found = (models["model"].get_image_features(**pixels).pooler_output @ classes.T).argmax(dim=1)
    labels = torch.tensor([data.classifications["kinds"].labels[row] for row in all_but_one])
    top = results["zero_shot"]["kinds"]["top_1"]["value"]
    assert top == pytest.approx((found == labels).float().mean().item(), abs=1e-6)


def test_changed_queries_are_those_of_the_kept_rows(broken):
    data, _, made = broken
    captions = [data.splits["test"].rows[row]["unsafe_caption"] for row in KEPT]
    upper = made["model"].variants["test"]["text"]["upper_case"].embeds  # which the tokenizer lowers again
    assert (upper - made["model"].splits["test"].unsafe_text.embeds).abs().max() < 1e-6
    assert len(upper) == len(captions) == len(made["model"].variants["test"]["image"]["blur"])


def test_images_that_changed_between_two_models_are_noticed(broken):
    data, _, made = broken
    other = made["baseline"].kept["test"].clone()
    made["baseline"].kept["test"] = other[:-1]
    with pytest.raises(UserError, match="test: images changed while they were being measured"):
        measure(made, data)
    made["baseline"].kept["test"] = other
    left_out = made["baseline"].unreadable.pop("--zero_shot kinds")  # whose queries would no longer be the same
    with pytest.raises(UserError, match="--zero_shot kinds: images changed while they were being measured"):
        measure(made, data)
    made["baseline"].unreadable["--zero_shot kinds"] = left_out


def test_splits_and_samples(dataset_dir, rows):
    names = DatasetDict(train=rows, validation=rows, test=rows, odd=rows)
    assert choose_splits(names, None, "x") == ["test", "odd"]
    assert choose_splits(DatasetDict(train=rows, validation=rows), None, "x") == ["validation"]
    assert choose_splits(names, ["train"], "x") == ["train"]
    sample = draw(rows, 5)
    assert sample.of == 24 and len(sample.rows) == 5
    numbers = list(sample.rows["safe_clip_row"])
    assert numbers == sorted(set(numbers)) and list(draw(rows, 5).rows["safe_clip_row"]) == numbers
    assert sample.rows[2]["safe_caption"] == rows[numbers[2]]["safe_caption"]
    assert draw(rows, 24).rows is rows


def test_a_data_set_of_one_split_is_measured_whole(rows, tmp_path):
    rows.save_to_disk(tmp_path / "one")
    data = load_evaluation_data(str(tmp_path / "one"), tasks=["retrieval"])
    assert {split: (len(sample.rows), sample.of) for split, sample in data.splits.items()} == {"train": (24, 24)}


def test_nothing_to_measure(dataset_dir):
    for task in ("zero_shot", "unsafe_gallery"):
        with pytest.raises(UserError, match=f"nothing to measure: the task {task} requires --{task}"):
            load_evaluation_data(dataset_dir, tasks=[task])


def test_rare_categories_are_put_together():
    names = [f"kind {index}" for index in range(40)] + ["kind 3"] * 5
    found = row_categories(Dataset.from_dict({"category": names}))
    assert len(set(found)) == 31 and found.count("kind 3") == 6 and found.count("other") == 10


def test_places_hold_no_names_of_files():
    assert place("row 3, column 'image' (/data/words.png): the image cannot be read") == "row 3, column 'image'"
    assert place("list.txt, line 12 (http://x/words.png): 404") == "list.txt, line 12"
    assert place("words") == "an image"
