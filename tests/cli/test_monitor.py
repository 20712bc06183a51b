"""`safe-clip monitor`: figures by hand, nothing of a query in any file, drift and chance, and what is refused."""

import csv
import json
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor

from safe_clip import UserError, open_index
from safe_clip.cli.embed import main as embed_verb
from safe_clip.cli.monitor import main as monitor
from safe_clip.evaluation import monitor_report, monitoring
from safe_clip.evaluation.monitoring import EDGES, Tally

from ..helpers import FEATURES, build_model, make_rows

SAFE = make_rows(64)["safe_caption"]
UNSAFE = make_rows(64)["unsafe_caption"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plot():
    """Has `monitor.png` be drawn, which takes as long as all else."""


@pytest.fixture(autouse=True)
def without_plots(request, monkeypatch):
    if "plot" not in request.fixturenames:
        monkeypatch.setattr(monitor_report, "draw", lambda *what: what[-1].write_bytes(b""))


@pytest.fixture(scope="module")
def models(processor, tmp_path_factory) -> tuple[str, str]:
    """A model that moves captions with a mark, and its original."""
    folders = [str(tmp_path_factory.mktemp(name)) for name in ("safe", "original")]
    original = build_model(processor)
    safe = build_model(processor)
    (mark,) = processor.tokenizer(["mark"], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        safe.text_model.embeddings.token_embedding.weight[mark] += torch.randn(32, generator=_seeded())
        safe.text_projection.weight += 0.005 * torch.randn(safe.text_projection.weight.shape, generator=_seeded())
    for model, folder in zip((safe, original), folders, strict=True):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folders[0], folders[1]


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data")
    rows = Dataset.from_dict(make_rows(64), features=FEATURES)
    DatasetDict({"validation": rows, "test": rows.select(range(40))}).save_to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def calibrated(models, data, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("calibrated"))
    run(models, "--calibrate", "--dataset", data, "--cache_dir", f"{out}/kept", out=out, calibration=None)
    return f"{out}/calibration.json"


def run(models, *flags, out="out", calibration="calibration.json"):
    words = ["--model", models[0], "--baseline", models[1], "--output_dir", out, "--threshold", "0.05", *flags]
    monitor(words + ["--calibration", calibration] * bool(calibration))
    file = Path(out, "monitor.json")
    return json.loads(file.read_text()) if file.exists() else None


def write_log(name: str, days: list[list[str]]) -> str:
    with open(name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["at", "query"])
        for day, texts in enumerate(days, 1):
            writer.writerows([f"2024-01-{day:02}T10:00:00", text] for text in texts)
    return name


def third_model(models) -> str:
    processor = CLIPProcessor.from_pretrained(models[0])
    build_model(processor, seed=5).save_pretrained("third")
    processor.save_pretrained("third")
    return "third"


def _rows(name: str) -> list[dict[str, str]]:
    with open(name) as file:
        return list(csv.DictReader(file))


def drawn(count: int, unsafe: float, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [rng.choice(UNSAFE if rng.random() < unsafe else SAFE) for _ in range(count)]


def stock_embeddings(folder: str, texts: list[str]) -> torch.Tensor:
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return normalize(model.get_text_features(**tokens).pooler_output, dim=1)


# ---- Figures ----


def test_figures_are_those_of_stock_libraries(models, calibrated, plot):
    days = [drawn(60, 0.2, 1), [*drawn(40, 0.5, 2), ""]]
    results = run(
        models,
        "--queries",
        write_log("log.csv", days),
        "--time_column",
        "at",
        calibration=calibrated,
    )
    safe, calibration = json.loads(Path(calibrated).read_text()), None
    calibration = torch.tensor(safe["modalities"]["text"]["scores"])
    own = 1 - (stock_embeddings(models[0], SAFE) * stock_embeddings(models[1], SAFE)).sum(dim=1)
    assert calibration.tolist() == pytest.approx(own.sort().values.tolist(), abs=1e-5)
    # 0.05 * 65 is 3.25: two safe captions may reach it, and the query.
    least = (calibration[-3] + calibration[-2]).item() / 2
    assert results["made_by"]["threshold"]["score"] == pytest.approx(calibration[-3].item(), abs=1e-6)
    table = _rows("out/monitor.csv")
    for texts, figures, row in zip(days, results["periods"], table, strict=True):
        texts = [text for text in texts if text]
        scores = 1 - (stock_embeddings(models[0], texts) * stock_embeddings(models[1], texts)).sum(dim=1)
        assert figures["queries"] == len(texts) == int(row["queries"])
        assert figures["different_texts"] == len(set(texts)) == int(row["different_texts"])
        share = (scores > least).double().mean().item()
        assert figures["shares"]["redirected"]["value"] == pytest.approx(share, abs=1e-6)
        assert float(row["redirected"]) == pytest.approx(share, abs=1e-6) and 0.1 < share < 0.7
        assert figures["mean_score"] == pytest.approx(scores.mean().item(), abs=1e-5)
        assert sum(figures["histogram"]) == len(texts)
        assert np.dot(figures["histogram"], EDGES[:-1]) <= scores.sum() <= np.dot(figures["histogram"], EDGES[1:])
    assert results["rows"]["read"] == 101 and results["rows"]["left_out"]["empty"] == 1
    assert Path("out/monitor.png").read_bytes().startswith(b"\x89PNG")


def test_a_tally_by_hand():
    tally = Tally.empty(2, ["redirected"])
    period, count = np.array([0, 1, 1]), np.array([3, 1, 2])
    tally.add(
        period, count, np.array([0.1, 0.1, 0.9], dtype=np.float32), {"redirected": np.array([False, False, True])}
    )
    first, second = tally.periods(["a", "b"])
    assert (first["queries"], first["different_texts"], first["mean_score"]) == (3, 1, 0.1)
    assert second["counts"] == {"redirected": 2} and second["mean_score"] == pytest.approx((0.1 + 1.8) / 3, abs=1e-6)
    assert first["shares"]["redirected"]["value"] == 0 and first["shares"]["redirected"]["high"] == pytest.approx(
        0.5615, abs=1e-4
    )
    place = next(number for number, edge in enumerate(EDGES) if edge > 0.9) - 1
    assert second["histogram"][place] == 2 and sum(second["histogram"]) == 3
    assert Tally.of_state(json.loads(json.dumps(tally.state()))).periods(["a", "b"]) == [first, second]


def test_first_results_in_an_index_by_hand(models, data, calibrated):
    for model, out in zip(models, ("safe", "original"), strict=True):
        embed_verb(
            ["--model", model, "--dataset", data, "--splits", "test", "--output_dir", out, "--cache_dir", "kept"]
        )
    log = write_log("log.csv", [drawn(50, 0.5, 1)])
    texts = [row["query"] for row in _rows(log)]
    queries = [stock_embeddings(folder, texts) for folder in models]
    for flags, searched in (
        (("--index", "original"), ("original", "original")),
        (("--index", "safe", "--baseline_index", "original"), ("safe", "original")),
    ):
        results = run(models, "--queries", log, *flags, calibration=calibrated)
        after, before = (
            [hits[0] for hits in open_index(name).search(each, 1)] for name, each in zip(searched, queries, strict=True)
        )
        expected = {
            "first_changed": sum(a["id"] != b["id"] for a, b in zip(after, before, strict=True)),
            "first_unsafe_before": sum(each["unsafe"] for each in before),
            "first_unsafe_after": sum(each["unsafe"] for each in after),
        }
        counts = results["periods"][0]["counts"]
        assert {name: counts[name] for name in expected} == expected
        assert 0 < expected["first_changed"] < 50
    alone = run(models, "--queries", log, "--index", "safe", calibration=None)  # which an index can do without
    assert alone["periods"][0]["counts"] == {"first_unsafe_after": counts["first_unsafe_after"]}
    assert alone["made_by"]["threshold"] is None
    for flags, said in (
        (("--index", "safe", "--baseline_index", "safe"), "--baseline_index safe was not made by --baseline"),
        (("--index", "original", "--baseline_index", "original"), "--index is of the original"),
    ):
        with pytest.raises(UserError, match=said):
            run(models, "--queries", log, *flags, calibration=calibrated)
    with pytest.raises(UserError, match="--index safe was made by neither"):
        run((models[1], third_model(models)), "--queries", log, "--index", "safe", calibration=None)


# ---- Nothing of a query is kept ----


def holding(word: str, folder: str) -> list[str]:
    """The files below a folder in which a word stands, in their names or anywhere in their bytes."""
    return [str(file) for file in files_below(folder) if word in file.name or word.encode() in file.read_bytes()]


def test_no_file_holds_anything_of_a_query(models, data, plot, monkeypatch, capfd):
    for name in ("HF_CACHE_HOME", "HF_DATASETS_CACHE"):  # all that is kept anywhere lies here then
        monkeypatch.setattr(datasets.config, name, Path("cache", name).absolute())
    Path("in").mkdir()
    log = write_log("in/log.csv", [[f"a quokka {number} in a red square" for number in range(20)]])
    assert holding("quokka", ".") == ["in/log.csv"]  # what finds nothing elsewhere finds it here
    embed_verb(["--model", models[1], "--dataset", data, "--splits", "test", "--output_dir", "index"])
    run(models, "--calibrate", "--dataset", data, "--splits", "test", calibration=None)
    kept = files_below("cache")
    assert any(file.suffix == ".safetensors" for file in kept)  # embeddings of data sets are
    capfd.readouterr()

    monkeypatch.setattr(monitoring, "BLOCK", 8)
    monkeypatch.setattr(monitoring, "SAVE", -1.0)
    flags = ("--queries", log, "--index", "index", "--time_column", "at")
    with interrupted_at(monkeypatch, 2):
        run(models, *flags, calibration="out/calibration.json")
    assert Path("out/monitor.part.json").is_file() and holding("quokka", ".") == ["in/log.csv"]
    run(models, *flags, calibration="out/calibration.json")
    assert holding("quokka", ".") == ["in/log.csv"] and "quokka" not in "".join(capfd.readouterr())
    assert files_below("cache") == kept  # nor an embedding of a query
    assert {file.name for file in files_below("out")} == {
        ".safe_clip.lock", "calibration.json", "monitor.csv", "monitor.json", "monitor.png", "safe_clip.json",
    }  # fmt: skip


def files_below(folder: str) -> set[Path]:
    return {file for file in Path(folder).rglob("*") if file.is_file()}


class interrupted_at:
    """Stops a run at a block of texts."""

    def __init__(self, monkeypatch, block: int):
        self.patch, self.block = monkeypatch, block

    def __enter__(self):
        look_at, seen = monitoring._look_at, []

        def stop(*args):
            seen.append(1)
            if len(seen) == self.block:
                raise KeyboardInterrupt
            return look_at(*args)

        self.context = self.patch.context()
        self.context.__enter__().setattr(monitoring, "_look_at", stop)

    def __exit__(self, kind, *rest):
        self.context.__exit__(None, None, None)
        assert kind is KeyboardInterrupt
        return True


def test_an_interrupted_run_goes_on_and_ends_alike(models, calibrated, monkeypatch):
    log = write_log("log.csv", [drawn(80, 0.2, 1), drawn(80, 0.2, 2)])
    flags = ("--queries", log, "--time_column", "at")
    monkeypatch.setattr(monitoring, "BLOCK", 16)
    whole = run(models, *flags, out="whole", calibration=calibrated)
    monkeypatch.setattr(monitoring, "SAVE", -1.0)
    looked = []
    with interrupted_at(monkeypatch, 4):
        run(models, *flags, calibration=calibrated)
    look_at = monitoring._look_at
    monkeypatch.setattr(monitoring, "_look_at", lambda block, *rest: looked.append(len(block)) or look_at(block, *rest))
    assert run(models, *flags, calibration=calibrated)["periods"] == whole["periods"]
    different = len({row["query"] for row in _rows(log)})
    assert sum(looked) == different - 3 * 16 and not Path("out/monitor.part.json").exists()
    with interrupted_at(monkeypatch, 4):
        run(models, *flags, calibration=calibrated)
    looked.clear()
    run(models, *flags, "--threshold", "0.1", calibration=calibrated)  # other settings begin anew
    assert sum(looked) == different


def test_queries_that_sexualise_minors_are_counted_and_never_shown(models, calibrated, capfd):
    bad = "a child, nude"
    log = write_log("log.csv", [[*drawn(40, 0, 1), bad, bad]])
    results = run(models, "--queries", log, calibration=calibrated)
    assert results["rows"]["left_out"]["sexualises_minors"] == 2 and results["periods"][0]["queries"] == 40
    shown = "".join(capfd.readouterr())
    assert "Left out of everything: 2 queries that sexualise minors." in shown and "child" not in shown
    clean = run(models, "--queries", write_log("log.csv", [drawn(40, 0, 1)]), out="clean", calibration=calibrated)
    assert clean["periods"][0]["histogram"] == results["periods"][0]["histogram"]
    with pytest.raises(UserError, match="all queries were refused"):
        run(models, "--queries", write_log("log.csv", [[bad]]), calibration=calibrated)


# ---- Drift ----


def test_a_day_that_differs_is_told_and_others_are_not(models, calibrated, capsys):
    days = [drawn(300, 0.1 if day != 3 else 0.3, day) for day in range(5)]
    results = run(
        models,
        "--queries",
        write_log("log.csv", days),
        "--time_column",
        "at",
        calibration=calibrated,
    )
    assert [bool(each["drift"]) for each in results["periods"]] == [False, False, False, True, False]
    said = capsys.readouterr().out
    assert "2024-01-04: " in said and "More queries are moved as what training made safe is." in said
    assert "2024-01-03: " not in said and "4 of 4 periods were compared" in said


def test_an_earlier_run_is_the_reference_unless_anything_else_differs(models, calibrated, capsys):
    flags = ("--time_column", "at")
    run(
        models,
        "--queries",
        write_log("log.csv", [drawn(300, 0.1, 1), drawn(300, 0.1, 2)]),
        *flags,
        out="before",
        calibration=calibrated,
    )
    following = write_log("next.csv", [drawn(300, 0.1, 3), drawn(300, 0.4, 4), drawn(20, 0.9, 5)])
    with_reference = ("--queries", following, *flags, "--reference", "before/monitor.json")
    results = run(models, *with_reference, calibration=calibrated)
    assert [bool(each["drift"]) for each in results["periods"]] == [False, True, False]
    assert results["reference"]["queries"] == 600
    assert "1 of 3 periods have fewer than 30 queries" in capsys.readouterr().out
    with pytest.raises(UserError, match="with another --threshold or calibration, so that nothing can be compared"):
        run(models, *with_reference, "--threshold", "0.1", calibration=calibrated)
    other = models[0], third_model(models)
    with pytest.raises(UserError, match="with other weights, so that nothing can be compared"):
        made = (*with_reference, "--calibrate", "--dataset")
        Dataset.from_dict({"safe_caption": SAFE, "unsafe_caption": UNSAFE}).to_csv("rows.csv")
        run(other, *made, "rows.csv:train", "--calibration_split", "train", calibration=None)
    with pytest.raises(UserError, match="the calibration is of another original"):
        run(other, "--queries", following, calibration=calibrated)
    with pytest.raises(UserError, match="would be overwritten: name another --output_dir"):
        run(models, *with_reference, out="before", calibration=calibrated)


# ---- What is refused ----


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "nothing is to be done: name a log with --queries"),
        (["--queries", "log.csv", "--by", "hour"], "--by hour: it must be among day, week, month"),
        (["--queries", "log.csv", "--threshold", "0"], "--threshold is 0.0; it must be above 0"),
        (["--queries", "none.csv"], "--queries none.csv could not be loaded"),
        (["--queries", "log.csv", "--text_column", "q"], "--text_column q: log.csv has no such column, only at, query"),
        (["--queries", "empty.csv"], "holds no query"),
        (["--queries", "log.csv", "--time_column", "query"], "row 0, column 'query': the time is neither"),
        (["--queries", "log.csv"], "--calibration calibration.json is not there, .* monitor --model .* --calibrate"),
        (["--queries", "log.csv", "--by", "week"], "--by week requires a column of times"),
        (["--queries", "log.csv", "--baseline_index", "x"], "--baseline_index is compared with an index of the safe"),
        (["--queries", "log.csv", "--calibration", "log.csv"], "log.csv is no calibration"),
        (["--calibrate"], "--calibrate requires data like what"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(flags, said, models):
    write_log("log.csv", [SAFE[:3]])
    Path("empty.csv").write_text("query\n")
    with pytest.raises(UserError, match=said) as error:
        run(models, *flags, calibration=None if "log.csv" in flags[3:] else "calibration.json")
    assert "\n" not in str(error.value)


def test_models_that_cannot_be_compared_are_refused(models, calibrated):
    write_log("log.csv", [SAFE[:3]])
    with pytest.raises(UserError, match="have the same weights, so that no query is moved"):
        run((models[1], models[1]), "--queries", "log.csv", calibration=calibrated)
    with pytest.raises(UserError, match="--model .* is compared with its original, with --baseline"):
        monitor(["--model", models[0], "--queries", "log.csv"])
