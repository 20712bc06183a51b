"""What an audit finds in rows that were made wrong on purpose, and what it keeps to itself."""

import base64
import io
import json
import struct
import zlib

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from PIL import Image as PILImage
from safetensors.torch import load_file
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from safe_clip import QuadrupletRows, UserError, load_quadruplets
from safe_clip.cli.audit import main
from safe_clip.data.audit import reading
from safe_clip.data.audit.classifiers import NUDITY, UNSAFE, PipelineClassifier, open_classifiers, says
from safe_clip.data.audit.duplicates import near_images
from safe_clip.data.audit.reading import IMAGE_FACTS, KINDS, ReadColumn, _Images, same_wording
from safe_clip.data.items import LABEL_COLUMNS
from safe_clip.data.thumbnails import data_url
from safe_clip.store import tables

from ..helpers import FEATURES

LABELS = {0: "normal", 1: "nsfw"}
SAFE_LINE, UNSAFE_LINE = "a {} square beside a white one", "a {} square beside a white one with a mark"
WORDS = ["yellow", "purple", "orange", "black", "blue", "green"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def red_judge(tmp_path_factory) -> str:
    """Made by hand: what is redder than green is unsafe."""
    folder = tmp_path_factory.mktemp("red")
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", id2label=LABELS)
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "normalization" not in name:
                weights.zero_()
        model.resnet.embedder.embedder.convolution.weight[0, :2, 3, 3] = torch.tensor([1.0, -1.0])
        model.classifier[1].weight[1, 0] = 40.0
        model.classifier[1].bias[1] = -10.0
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.0] * 3, image_std=[1.0] * 3).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def mark_judge(tmp_path_factory, processor) -> str:
    """Has learned in a second that a mark is unsafe."""
    folder = tmp_path_factory.mktemp("mark")
    tokenizer = processor.tokenizer
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=16, hidden_dim=16, n_layers=1, n_heads=2, dropout=0.0, id2label=LABELS
    )
    model = DistilBertForSequenceClassification(config)
    lines = table(120)
    texts = [text for pair in zip(lines["safe_caption"], lines["unsafe_caption"], strict=True) for text in pair]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        model(**inputs, labels=torch.tensor([0, 1] * 120)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def scene(seed: int, red: bool) -> PILImage.Image:
    """Coarse noise, which is red or has no red in it."""
    levels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    levels[..., 0] = 255 if red else 0
    levels[..., 1] = levels[..., 1] // 4 if red else levels[..., 1]
    return PILImage.fromarray(levels).resize((64, 64), PILImage.Resampling.BICUBIC)


def encoded(image: PILImage.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def table(count: int, seed: int = 0) -> dict[str, list]:
    words = [f"{WORDS[n % 6]} {WORDS[(n // 6 + seed) % 6]} {n + seed}" for n in range(count)]
    return {
        "safe_caption": [SAFE_LINE.format(word) for word in words],
        "unsafe_caption": [UNSAFE_LINE.format(word) for word in words],
        "safe_image": [{"bytes": encoded(scene(seed + n, False)), "path": None} for n in range(count)],
        "unsafe_image": [{"bytes": encoded(scene(seed + n, True)), "path": None} for n in range(count)],
        "category": ["weapons", "drugs"] * (count // 2),
    }


@pytest.fixture
def wrong_rows(tmp_path) -> str:
    """Ten rows of training, six of a test; what is wrong with them stands in the tests."""
    train, test = table(10), table(6, seed=100)
    train["unsafe_caption"][2] = SAFE_LINE.format("orange 77")
    train["unsafe_image"][3] = {"bytes": encoded(scene(77, False)), "path": None}
    train["safe_image"][4] = {"bytes": encoded(scene(78, True)), "path": None}
    train["safe_image"][5] = {"bytes": b"<html>", "path": None}
    train["unsafe_caption"][6] = " "
    for column in FEATURES:
        train[column][9] = train[column][8]
    train["unsafe_image"][7] = None
    smaller = scene(1, False).resize((60, 60))
    test["safe_image"][0] = {"bytes": encoded(smaller, "JPEG", quality=70), "path": None}
    test["safe_caption"][1] = train["safe_caption"][0].upper() + "!"
    for rows in (train, test):
        rows["category"] = [["drugs", "weapons"].index(name) for name in rows["category"]]
    features = Features({**FEATURES, "category": ClassLabel(names=["drugs", "weapons"])})
    splits = {"train": train, "test": test}
    folder = tmp_path / "rows"
    DatasetDict({s: Dataset.from_dict(t, features=features) for s, t in splits.items()}).save_to_disk(folder)
    return str(folder)


def audit(data: str, folder, *flags: str) -> dict:
    main([data, "--output_dir", str(folder), *flags])
    return json.loads((folder / "audit.json").read_text())


def test_what_is_wrong_is_found_told_and_written(wrong_rows, red_judge, mark_judge, tmp_path, capsys):
    judges = ["--image_classifier", red_judge, "--text_classifier", mark_judge]
    found = audit(wrong_rows, tmp_path / "audit", *judges, "--write", str(tmp_path / "labelled"))
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert {column: item["wrong"] for column, item in train["items"].items()} == {
        "safe_caption": [],
        "unsafe_caption": [2],
        "safe_image": [4],
        "unsafe_image": [3],
    }
    assert not any(item["wrong"] for item in test["items"].values())
    # Neither the blank caption of row 6 nor the image that row 7 lacks is judged.
    assert train["sides"]["unsafe"] == {
        "scored": 8,
        "unsafe in both": 6,
        "unsafe caption alone": 1,
        "unsafe picture alone": 1,
        "safe in both": 0,
        "wrong in both": [],
    }
    assert train["sides"]["safe"]["unsafe picture alone"] == 1 and train["sides"]["safe"]["scored"] == 9
    assert "row 5, column 'safe_image'" in train["items"]["safe_image"]["faults"][0]
    assert "row 6, column 'unsafe_caption'" in train["items"]["unsafe_caption"]["faults"][0]
    assert train["items"]["unsafe_image"]["there"] == 9 and not train["items"]["unsafe_image"]["faults"]
    assert train["repeated"] == [[9, 8]] and train["categories"] == {"weapons": 5, "drugs": 5}
    place = lambda split, column, row: {"split": split, "column": column, "row": row}  # noqa: E731
    assert found["leaks"] == {
        "captions": [place("test", "safe_caption", 1) | {"of": place("train", "safe_caption", 0)}],
        "pictures": [place("test", "safe_image", 0) | {"of": place("train", "safe_image", 1)}],
    }

    printed = capsys.readouterr().out
    assert "unsafe side: unsafe in both" in printed and "6 (75.0 %)" in printed
    assert f"safe-clip train --dataset {tmp_path / 'labelled'}" in printed

    written = load_quadruplets(str(tmp_path / "labelled"), hold_out=False)
    labels = {column: written["train"][f"{column}_is_safe"] for column in FEATURES}
    before = load_from_disk(wrong_rows)["train"]
    assert written["train"].column_names == [*before.column_names, *LABEL_COLUMNS]
    assert labels["safe_caption"] == [True] * 10
    assert labels["unsafe_caption"] == [n == 2 if n != 6 else None for n in range(10)]
    assert labels["safe_image"] == [n != 4 if n != 5 else None for n in range(10)]
    assert labels["unsafe_image"] == [n == 3 if n != 7 else None for n in range(10)]
    for column in FEATURES:
        cells = [
            rows.cast_column(column, Image(decode=False))[column] if "image" in column else rows[column]
            for rows in (before, written["train"])
        ]
        assert cells[0] == cells[1]
    assert QuadrupletRows(written["train"]).layout.relabelled.sum() == 2  # rows 2 and 3


@pytest.mark.parametrize("show", [False, True])
def test_nothing_unsafe_is_shown_unless_asked(show, wrong_rows, red_judge, mark_judge, tmp_path, monkeypatch):
    monkeypatch.setattr("safe_clip.data.audit.report.data_url", lambda image, hidden: f"data:hidden={hidden}")
    judges = ["--image_classifier", red_judge, "--text_classifier", mark_judge]
    audit(wrong_rows, tmp_path / "audit", *judges, *["--show_unsafe"] * show)
    page = (tmp_path / "audit" / "report.html").read_text()
    assert (SAFE_LINE.format("orange 77") in page) == show and ("caption hidden" in page) != show
    # Two suspicious images, and the safe two that the splits share.
    assert page.count("data:hidden=True") == (0 if show else 2)
    assert page.count("data:hidden=False") == (4 if show else 2)
    assert str(tmp_path) not in page and str(tmp_path) not in (tmp_path / "audit" / "audit.json").read_text()


def test_hidden_images_cannot_be_made_out():
    board = PILImage.fromarray((np.indices((64, 64)).sum(axis=0) // 4 % 2 * 255).astype(np.uint8)).convert("RGB")
    spread = {}
    for hidden in (False, True):
        content = base64.b64decode(data_url(board.copy(), hidden).partition(",")[2])
        spread[hidden] = np.asarray(PILImage.open(io.BytesIO(content))).std()
    assert spread[False] > 100 and spread[True] < 5


def test_scores_are_kept_and_interrupted_work_goes_on(wrong_rows, red_judge, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "CHUNK", 5)
    scored, score = [], PipelineClassifier.score

    def until(most: int):
        def counting(self, items):
            if len(scored) >= most:
                raise KeyboardInterrupt
            scored.extend(items)
            return score(self, items)

        monkeypatch.setattr(PipelineClassifier, "score", counting)

    command = [wrong_rows, tmp_path / "audit", "--image_classifier", red_judge, "--batch_size", "5"]
    until(12)
    with pytest.raises(KeyboardInterrupt):
        audit(*command)
    assert len(scored) == 15
    until(1000)
    first = audit(*command)
    # 32 images, of which one is missing, one broken, and two are there twice.
    assert len(scored) == 28
    until(0)  # nothing is scored again, whatever the threshold
    assert audit(*command) == first
    assert audit(*command, "--threshold", "0.9")["threshold"] == 0.9
    with pytest.raises(KeyboardInterrupt):
        audit(*command, "--unsafe_labels", "normal")


def test_without_a_classifier_the_rest_is_checked(processor, model_dir, tmp_path, capsys):
    rows = {"safe_caption": ["a red square " * 40, None, "ein rotes Quadrat neben einem blauen, daneben ein gelbes"]}
    rows["safe_caption"] += ["a red square beside a blue one, and a yellow circle that stands on the table"] * 2
    Dataset.from_dict(rows).to_json(tmp_path / "rows.jsonl")
    found = audit(str(tmp_path / "rows.jsonl"), tmp_path / "audit", "--model", model_dir)
    (column,) = found["splits"]["train"]["captions"].values()
    assert column["too long"] == [0] and column["longest"] > 120
    assert column["languages"]["de"] == 1 and column["in another language"] == [2]
    assert found["splits"]["train"]["repeated"] == [[4, 3]]
    assert found["splits"]["train"]["sides"] == {"safe": None, "unsafe": None}
    assert "--image_classifier nudenet open_nsfw needs no download" in capsys.readouterr().out


def test_images_in_files_are_read_again_when_they_change_and_found_from_anywhere(red_judge, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name, red in (("a", False), ("b", True)):
        scene(1, red).save(tmp_path / "data" / f"{name}.png")
    Dataset.from_dict({"safe_image": ["a.png", "gone.png"], "unsafe_image": ["b.png"] * 2}).to_csv(
        tmp_path / "data" / "rows.csv"
    )
    monkeypatch.chdir(tmp_path)
    command = ["data/rows.csv", tmp_path / "audit", "--image_classifier", red_judge]
    found = audit(*command, "--write", "labelled")["splits"]["train"]["items"]
    assert not found["safe_image"]["wrong"] and "(gone.png)" in found["safe_image"]["faults"][0]
    assert str(tmp_path) not in found["safe_image"]["faults"][0]
    scene(3, True).save(tmp_path / "data" / "a.png")
    assert audit(*command)["splits"]["train"]["items"]["safe_image"]["wrong"] == [0]
    monkeypatch.chdir("/")
    rows = load_quadruplets(str(tmp_path / "labelled"), hold_out=False)["train"]
    assert rows["safe_image_is_safe"] == [True, None]
    assert QuadrupletRows(rows.select([0]))[0]["unsafe_image"].size == (64, 64)


def deep_png() -> bytes:
    chunk = lambda kind, data: (  # noqa: E731
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    lines = (b"\0" + bytes([200, 7] * 3 * 40)) * 40
    head = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


TURNED = PILImage.Exif()
TURNED[reading.ORIENTATION] = 6
FRAMES = [PILImage.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
ODD = {
    "tiny": encoded(PILImage.new("RGB", (31, 20))),
    "huge": encoded(PILImage.new("RGB", (4100, 50))),
    "animated": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "CMYK": encoded(PILImage.new("CMYK", (40, 40)), "JPEG"),
    "16 bits or more": deep_png(),
    "turned by EXIF": encoded(FRAMES[0], "JPEG", exif=TURNED),
    "transparent": encoded(PILImage.new("RGBA", (40, 40), (0, 0, 0, 100))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_out_of_the_ordinary(kind):
    cells = [
        {"bytes": content, "path": None} for content in (ODD[kind], encoded(PILImage.new("RGBA", (40, 40), "red")))
    ]
    rows = Dataset.from_dict({"safe_image": cells}, features=Features({"safe_image": Image(decode=False)}))
    facts = _Images(rows, 0, "safe_image")
    assert [name for name in KINDS if facts[0][name]] == [kind]
    assert not any(facts[1][name] for name in KINDS)  # whose every point is opaque


def test_near_images_are_those_of_comparing_all():
    rng = np.random.default_rng(0)
    earlier = rng.integers(0, 2**63, 3000, dtype=np.uint64)
    later = rng.integers(0, 2**63, 500, dtype=np.uint64)
    later[:200] = earlier[rng.choice(3000, 200, replace=False)]
    for number in range(200):
        for bit in rng.choice(64, rng.integers(0, 8), replace=False):
            later[number] ^= np.uint64(1 << int(bit))
    colours = {"earlier": bytes(48), "later": bytes(48)}

    def items(hashes: np.ndarray, colour: bytes) -> ReadColumn:
        facts = dict.fromkeys(IMAGE_FACTS, [None] * len(hashes)) | {"digest": range(1, len(hashes) + 1)}
        facts |= {"phash": hashes.view(np.int64), "colours": [colour] * len(hashes)}
        return ReadColumn("train", "safe_image", None, Dataset.from_dict(facts, features=IMAGE_FACTS))

    apart = np.bitwise_count(later[:, None] ^ earlier[None])
    found = near_images([items(earlier, colours["earlier"])], items(later, colours["later"]))
    assert ((found >= 0) == (apart.min(axis=1) <= 4)).all() and 100 < (found >= 0).sum() < 200
    hits = np.flatnonzero(found >= 0)
    assert (apart[hits, found[hits]] <= 4).all()
    assert (near_images([items(earlier, bytes(48))], items(later, bytes([40] * 48))) == -1).all()


def test_wordings():
    assert same_wording("Ａ  Café, on RED!") == same_wording("a cafe on red") != same_wording("a cafe on blue")
    assert same_wording("🐕") != same_wording("🐈")


def test_rows_that_sexualise_minors_are_in_no_output(red_judge, tmp_path, capsys):
    rows = table(6)
    rows["safe_caption"][1] = "a child with a kite"
    rows["safe_caption"][2] = "a child with a balloon"
    rows["unsafe_image"][2] = {"bytes": encoded(scene(50, False)), "path": None}
    rows["safe_caption"][3] = "a baby beside a purple square"
    rows["unsafe_image"][3] = {"bytes": encoded(scene(51, True)), "path": None}
    rows["safe_image"][3] = {"bytes": encoded(scene(52, True)), "path": None}
    Dataset.from_dict(rows, features=Features({**FEATURES, "category": Value("string")})).save_to_disk(
        tmp_path / "rows"
    )
    flags = ["--image_classifier", red_judge, "--show_unsafe", "--write", str(tmp_path / "labelled")]
    found = audit(str(tmp_path / "rows"), tmp_path / "audit", *flags, "--threshold", "0.99999")
    assert found["left_out"] == {"train": 2}  # nobody is less careful for a high threshold
    assert found["splits"]["train"]["rows"] == 4
    printed, page = capsys.readouterr().out, (tmp_path / "audit" / "report.html").read_text()
    assert "2 rows of train were left out: they mention a minor, and a classifier sees nudity." in printed
    for text in (printed, page, json.dumps(found)):
        assert "kite" not in text and "baby" not in text
    written = load_from_disk(tmp_path / "labelled")["train"]
    assert [text.split()[1] for text in written["safe_caption"]] == ["yellow", "child", "blue", "green"]
    assert "safe_clip_row" not in written.column_names
    # Numbers are still those of the data set.
    assert found["splits"]["train"]["items"]["unsafe_image"]["wrong"] == [2]


@pytest.mark.parametrize("name", ["nudenet", "open_nsfw"])
def test_classifiers_that_come_with_their_weights(name):
    (classifier,) = open_classifiers([name], "image")
    images = [
        PILImage.new("RGB", (80, 60), "white"),
        scene(3, False),
        PILImage.effect_noise((70, 90), 50).convert("RGB"),
    ]
    scores = classifier.score(images)
    assert len(scores) == 3 and all(0 <= unsafe < 0.3 and nudity == unsafe for unsafe, nudity in scores)


def test_labels_that_exclude_each_other_add_up_and_others_do_not(red_judge, tmp_path):
    labels = {0: "drawing", 1: "hentai", 2: "violence"}
    model = ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", id2label=labels)
    )
    with torch.no_grad():
        model.classifier[1].weight.zero_()
        model.classifier[1].bias.zero_()
    ViTImageProcessor.from_pretrained(red_judge).save_pretrained(tmp_path)
    for kind, expected in (("single_label_classification", (2 / 3, 1 / 3)), ("multi_label_classification", (0.5, 0.5))):
        model.config.problem_type = kind
        model.save_pretrained(tmp_path)
        (scores,) = PipelineClassifier(str(tmp_path), "image").score([scene(1, True)])
        assert scores == pytest.approx(expected)


@pytest.mark.parametrize(
    ("label", "unsafe", "nude"),
    [
        ("nsfw", True, True),
        ("sexy", True, True),
        ("Porn", True, True),
        ("toxic", True, False),
        ("identity_hate", True, False),
        ("unsafe", True, False),
        ("safe", False, False),
        ("sfw", False, False),
        ("non-toxic", False, False),
        ("nothate", False, False),
        ("not_nsfw", False, False),
        ("harmless", False, False),
        ("LABEL_1", False, False),
    ],
)
def test_which_labels_say_that_they_are_unsafe(label, unsafe, nude):
    assert (says(label, UNSAFE), says(label, NUDITY)) == (unsafe, nude)


def test_what_cannot_be_done_is_told(dataset_dir, red_judge, mark_judge, model_dir, tmp_path):
    for folder, labels in ((tmp_path / "unnamed", {0: "LABEL_0", 1: "LABEL_1"}), (tmp_path / "pickled", LABELS)):
        model = ResNetForImageClassification.from_pretrained(red_judge)
        model.config.id2label = labels
        model.save_pretrained(folder)
        ViTImageProcessor.from_pretrained(red_judge).save_pretrained(folder)
    weights = tmp_path / "pickled" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pickled" / "pytorch_model.bin")
    weights.unlink()
    (tmp_path / "own").mkdir()
    own = {"model_type": "own", "architectures": ["Own"], "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(own))
    (tmp_path / "own" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for flags, message in (
        (
            ["--image_classifier", str(tmp_path / "unnamed")],
            "They are LABEL_0, LABEL_1; name those that are with --uns",
        ),
        (["--image_classifier", str(tmp_path / "pickled")], "--image_classifier .*pickled could not be loaded"),
        (["--text_classifier", str(tmp_path / "own")], "--text_classifier .*own could not be loaded"),
        (["--image_classifier", str(tmp_path / "nothing")], "safetensors weights and no code of its own"),
        (["--image_classifier", red_judge, "--unsafe_labels", "red"], "--unsafe_labels red: no classifier has such a"),
        (["--text_classifier", "nudenet"], "--text_classifier nudenet reads images; name it with --image_classifier"),
        (["--threshold", "0"], "--threshold is 0.0; it must be above 0"),
        (["--batch_size", "0"], "--batch_size is 0; it must be 1 or more"),
        (["--streaming"], "--streaming: an audit tells rows by their numbers"),
        (["--write", str(tmp_path / "new")], "requires a classifier that says what the labels are"),
        (["--image_classifier", red_judge, "--write", str(tmp_path / "full")], "there already and not empty"),
        (["--model", str(tmp_path / "nothing")], "--model .*nothing has no tokenizer of a CLIP"),
        (["--image_classifiers", "x"], "Did you mean 'image_classifier'"),
    ):
        with pytest.raises(UserError, match=message):
            audit(dataset_dir, tmp_path / "audit", *flags)
    assert not (tmp_path / "audit").exists() and not (tmp_path / "ran").exists()
    named = PipelineClassifier(str(tmp_path / "unnamed"), "image", ["label_1"])
    assert named.unsafe == {"LABEL_1"} and named.score([scene(1, True)])[0][0] > 0.9
