"""Every source that the table of docs/data.md names trains two steps, from files made here."""

import bz2
import csv
import gzip
import io
import json
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, DatasetDict

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments
from safe_clip.cli import audit
from safe_clip.cli.fetch import main as fetch
from safe_clip.data.arguments import DataArguments
from safe_clip.data.audit import run as audit_run
from tests.helpers import FEATURES, build_model, make_rows
from tests.programs import ROOT, run_python

COUNT = 16
ROWS = make_rows(COUNT)
CAPTIONS = ("safe_caption", "unsafe_caption")
IMAGES = ("safe_image", "unsafe_image")
SIDES = ("safe", "unsafe")


def encoded(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


PNG = {column: [encoded(image) for image in ROWS[column]] for column in IMAGES}


def write_images(folder: Path) -> list[dict[str, str]]:
    """Rows that name files, in a folder beside them."""
    (folder / "pics").mkdir()
    rows = []
    for number in range(COUNT):
        row = {column: ROWS[column][number] for column in CAPTIONS}
        for column in IMAGES:
            (folder / "pics" / f"{column}{number}.png").write_bytes(PNG[column][number])
            row[column] = f"pics/{column}{number}.png"
        rows.append(row)
    return rows


def table(sep: str, rows: list[dict]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=sep)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def held(text: str = "string", binary: str = "binary") -> pa.Table:
    """Rows that hold their images."""
    columns = {column: pa.array(ROWS[column], text) for column in CAPTIONS}
    return pa.table(columns | {column: pa.array(PNG[column], binary) for column in IMAGES})


def saved(folder: Path) -> dict:
    rows = Dataset.from_dict(ROWS, features=FEATURES)
    DatasetDict(train=rows, validation=rows.select(range(4))).save_to_disk(folder / "saved")
    return {"dataset": folder / "saved"}


def published(folder: Path) -> dict:
    """As the Hub has it, downloaded."""
    (folder / "data").mkdir()
    Dataset.from_dict(ROWS, features=FEATURES).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data/train-*\n---\n")
    return {"dataset": folder}


def text(name: str, make: Callable[[list[dict]], str | bytes]) -> Callable[[Path], dict]:
    def write(folder: Path) -> dict:
        content = make(write_images(folder))
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return {"dataset": folder / name}

    return write


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(**types) -> Callable[[Path], dict]:
    def write(folder: Path) -> dict:
        pq.write_table(held(**types), folder / "rows.parquet")
        return {"dataset": folder / "rows.parquet"}

    return write


def arrow(opened: Callable) -> Callable[[Path], dict]:
    def write(folder: Path) -> dict:
        rows = held()
        with opened(folder / "rows.arrow", rows.schema) as file:
            file.write_table(rows)
        return {"dataset": folder / "rows.arrow"}

    return write


def beside_images(name: str, make: Callable[[list[dict]], str]) -> Callable[[Path], dict]:
    def write(folder: Path) -> dict:
        rows = write_images(folder)
        for row in rows:
            row |= {f"{column}_file_name": row.pop(column) for column in IMAGES}
        (folder / name).write_text(make(rows))
        return {"dataset": folder}

    return write


def shards(folder: Path) -> dict:
    for first in (0, COUNT // 2):
        with tarfile.open(folder / f"{first:05}.tar", "w") as archive:
            for number in range(first, first + COUNT // 2):
                captions = {column: ROWS[column][number] for column in CAPTIONS}
                parts = {f"{side}.png": PNG[f"{side}_image"][number] for side in SIDES}
                parts |= {f"{side}.txt": captions[f"{side}_caption"].encode() for side in SIDES}
                for name, content in parts.items():
                    entry = tarfile.TarInfo(f"{number:06}.{name}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    mapping = {f"{side}.png": f"{side}_image" for side in SIDES} | {f"{side}.txt": f"{side}_caption" for side in SIDES}
    return {"dataset": folder / "*.tar", "column_mapping": json.dumps(mapping)}


def streamed(make: Callable[[Path], dict]) -> Callable[[Path], dict]:
    return lambda folder: make(folder) | {"streaming": True}


VISU = [
    {"safe": ROWS["safe_caption"][n], "nsfw": ROWS["unsafe_caption"][n], "tag": "marks", "coco_id": n, "prompt_id": n}
    for n in range(COUNT)
]


def visu(folder: Path) -> dict:
    Dataset.from_list(VISU).to_parquet(folder / "train.parquet")
    return {"dataset": folder / "train.parquet"}


def visu_with_images(folder: Path) -> dict:
    (folder / "coco").mkdir()
    with zipfile.ZipFile(folder / "generated.zip", "w") as archive:
        for number in range(COUNT):
            (folder / "coco" / f"COCO_train2014_{number:012}.png").write_bytes(PNG["safe_image"][number])
            archive.writestr(f"images/{number}_1234.png", PNG["unsafe_image"][number])
    return visu(folder) | {"safe_images": folder / "coco", "unsafe_images": folder / "generated.zip"}


@pytest.fixture(scope="module")
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = PNG["safe_image"][int(re.search(r"(\d+)\.", self.path)[1])]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    Handler.url = f"http://127.0.0.1:{found.server_port}"
    yield Handler.url
    found.shutdown()


def caps(folder: Path, url: str) -> dict:
    """NSFWCaps, whose rows have addresses, and its images as they are fetched."""
    rows = [
        {"caption": row["safe"], "nsfw_caption": row["nsfw"], "image_coco_url": f"{url}/{row['coco_id']:012}.jpg"}
        for row in VISU
    ]
    (folder / "test.jsonl").write_text(lines(rows))
    fetch([f"{folder}/test.jsonl", "--column", "image_coco_url", f"--output_dir={folder}/fetched", "--allow_private"])
    return {"dataset": folder / "test.jsonl", "safe_images": folder / "fetched"}


def caps_with_both(folder: Path, url: str) -> dict:
    options = caps(folder, url)
    (folder / "generated").mkdir()
    for number in range(COUNT):
        (folder / "generated" / f"{number:012}.png").write_bytes(PNG["unsafe_image"][number])
    return options | {"unsafe_images": folder / "generated"}


def coco_fetched(folder: Path, url: str) -> dict:
    command = [f"{visu(folder)['dataset']}", "--column", "coco_id", "--address", url + "/train2017/{:012}.jpg"]
    fetch([*command, f"--output_dir={folder}/coco", "--allow_private"])
    return visu(folder) | {"safe_images": folder / "coco"}


class Judge:
    """Sees a mark, which is what is unsafe here."""

    name = fingerprint = "judge"

    def score(self, items) -> list[tuple[float, float]]:
        seen = [("mark" in item) if isinstance(item, str) else item.getpixel((7, 7)) == (255, 0, 255) for item in items]
        return [(float(unsafe), 0.0) for unsafe in seen]


def audited(folder: Path) -> dict:
    kinds = ["--image_classifier", "judge", "--text_classifier", "judge"]
    audit.main([str(saved(folder)["dataset"]), *kinds, f"--write={folder}/audited", f"--output_dir={folder}/audit"])
    return {"dataset": folder / "audited"}


def prompts(folder: Path) -> dict:
    rows = [{"prompt": row["nsfw"], "categories": "marks"} for row in VISU]
    (folder / "prompts.csv").write_text(table(",", rows))
    audit.main([f"{folder}/prompts.csv", "--text_classifier", "judge", f"--output_dir={folder}/audit"])
    assert json.loads((folder / "audit" / "audit.json").read_text())["splits"]
    # By themselves they have no safe counterpart; beside safe captions they train.
    both = [{"safe_caption": row["safe"], "unsafe_caption": row["nsfw"]} for row in VISU]
    (folder / "both.csv").write_text(table(",", both))
    return {"dataset": folder / "both.csv"}


def renamed(folder: Path) -> dict:
    rows = [row | {"thumbnail": "x"} for row in VISU]
    rows = [{"text": row.pop("safe"), **row} for row in rows]
    (folder / "rows.csv").write_text(table(",", rows))
    mapping = {"nsfw": "unsafe_caption", "text": "safe_caption", "thumbnail": None}
    return {"dataset": folder / "rows.csv", "column_mapping": json.dumps(mapping)}


# By how a line of the table begins, what is tried of it.
SOURCES: dict[str, dict[str, Callable[..., dict]]] = {
    "a data set on the Hub": {"saved": saved, "as on the Hub": published},
    "CSV, TSV, JSON": {
        "csv": text("rows.csv", lambda rows: table(",", rows)),
        "csv with semicolons": text("rows.csv", lambda rows: table(";", rows)),
        "tsv": text("rows.tsv", lambda rows: table("\t", rows)),
        "json": text("rows.json", json.dumps),
        "jsonl": text("rows.jsonl", lines),
        "jsonl.gz": text("rows.jsonl.gz", lambda rows: gzip.compress(lines(rows).encode())),
        "csv.bz2": text("rows.csv.bz2", lambda rows: bz2.compress(table(",", rows).encode())),
        "parquet": parquet(),
        "parquet, large": parquet(text="large_string", binary="large_binary"),
        "arrow file": arrow(pa.ipc.new_file),
        "arrow stream": arrow(pa.ipc.new_stream),
    },
    "a folder of images with `metadata.csv`": {
        "metadata.csv": beside_images("metadata.csv", lambda rows: table(",", rows)),
        "metadata.jsonl": beside_images("metadata.jsonl", lines),
    },
    "WebDataset shards": {"tar": shards},
    "more than fits on a machine": {
        "csv": streamed(text("rows.csv", lambda rows: table(",", rows))),
        "jsonl": streamed(text("rows.jsonl", lines)),
        "parquet": streamed(parquet(text="large_string")),
        "shards": streamed(shards),
        "metadata.csv": streamed(beside_images("metadata.csv", lambda rows: table(",", rows))),
        "saved": streamed(saved),
    },
    "ViSU-Text, whose columns are known": {"captions": visu},
    "the same with COCO's images": {"folder and zip": visu_with_images},
    "NSFWCaps, whose columns are known": {"both sides": caps_with_both},
    "rows whose labels you doubt": {"audited": audited},
    "a list of prompts": {"prompts": prompts},
    "addresses of images in a column": {"fetched": caps},
    "numbers of COCO's images": {"fetched": coco_fetched},
    "columns of other names": {"renamed": renamed},
}
CASES = [(line, name) for line, kinds in SOURCES.items() for name in kinds]


def options_of(line: str, name: str, folder: Path, url: str) -> dict:
    make = SOURCES[line][name]
    options = make(folder, url) if make in (caps, caps_with_both, coco_fetched) else make(folder)
    return {option: str(value) if isinstance(value, Path) else value for option, value in options.items()}


@pytest.fixture(autouse=True)
def judge(monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # of streams of Parquet, 5 seconds
    monkeypatch.setattr(audit_run, "open_classifiers", lambda names, *_: [Judge() for _ in names])


def test_every_line_of_the_table_is_tried():
    section = (ROOT / "docs" / "data.md").read_text().partition("\n## Sources\n")[2].partition("\n## ")[0]
    listed = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(listed) >= 13
    for line in listed:
        assert sum(line.startswith(known) for known in SOURCES) == 1, f"nothing tries the source: {line}"
    for known in SOURCES:
        assert any(line.startswith(known) for line in listed), f"docs/data.md does not name the source: {known}"


@pytest.mark.parametrize(("line", "name"), CASES, ids=[f"{line[:20]}: {name}" for line, name in CASES])
def test_a_source_trains_two_steps(line, name, processor, server, tmp_path):
    options = options_of(line, name, tmp_path, server)
    splits = DataArguments(**options).load()
    args = SafeCLIPTrainingArguments(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, report_to="none", disable_tqdm=True,
        save_strategy="no", logging_steps=1, dataloader_num_workers=0,
    )  # fmt: skip
    trainer = SafeCLIPTrainer(build_model(processor), args, splits["train"], processing_class=processor)
    trainer.train()
    assert trainer.state.global_step == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and all(0 < loss < 1e3 for loss in losses)
    row = trainer.train_dataset[0] if not options.get("streaming") else next(iter(trainer.train_dataset))
    assert row["safe_caption"] in ROWS["safe_caption"] and row["unsafe_caption"] in ROWS["unsafe_caption"]
    number = ROWS["unsafe_caption"].index(row["unsafe_caption"])
    for column in IMAGES:
        if row[column] is not None:
            seen, meant = (
                row[column],
                np.asarray(ROWS[column][number]),
            )  # decoded already where there is room to keep it
            assert np.array_equal(seen.permute(1, 2, 0) if isinstance(seen, torch.Tensor) else seen, meant)


@pytest.mark.slow
def test_a_table_trains_from_the_shell(model_dir, tmp_path):
    options = SOURCES["CSV, TSV, JSON"]["csv"](tmp_path)
    flags = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--report_to", "none"]
    command = ["train.py", "--model", model_dir, "--dataset", str(options["dataset"]), "--output_dir", "out", *flags]
    done = run_python(ROOT / command[0], *command[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
