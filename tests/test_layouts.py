"""ViSU-Text, COCO and NSFWCaps, small and with made-up content under their true names, trained on from end to end."""

import json
import shlex

import pytest
from datasets import Dataset

from safe_clip.cli import eval as evaluation
from safe_clip.cli import train

from .data.test_image_join import coco, generated, visu, zipped
from .helpers import make_rows

COUNT = 6


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    folder, world = tmp_path_factory.mktemp("layouts"), make_rows(COUNT)
    coco(folder / "coco", world, "2014")
    generated(folder / "made", world)
    zipped(folder / "made")
    Dataset.from_dict(visu(world)).to_parquet(folder / "visu.parquet")
    lines = []
    for number, (safe, unsafe) in enumerate(zip(world["safe_caption"], world["unsafe_caption"], strict=True)):
        stem = f"{number:04}ea2087020901"
        for side in ("safe", "unsafe"):
            (folder / f"nsfwcaps_{side}").mkdir(exist_ok=True)
            world[f"{side}_image"][number].save(folder / f"nsfwcaps_{side}" / f"{stem}.png")
        address = f"https://s3.amazonaws.com/nocaps/val/{stem}.jpg"
        lines.append({"image_coco_url": address, "caption": safe, "nsfw_caption": unsafe, "chosen_category": "mark"})
    (folder / "nsfwcaps.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


LAYOUTS = {
    "ViSU-Text as it is": (["visu.parquet"], "no safe images, no unsafe images"),
    "with COCO's images": (["visu.parquet", "--safe_images", "coco"], "5 safe images, no unsafe images"),
    "with generated images too": (
        ["visu.parquet", "--safe_images", "coco", "--unsafe_images", "made.zip"],
        "each with both captions and both images",
    ),
    "NSFWCaps": (
        ["nsfwcaps.jsonl", "--safe_images", "nsfwcaps_safe", "--unsafe_images", "nsfwcaps_unsafe"],
        "each with both captions and both images",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_was_published_is_trained_on_measured_and_audited(name, layouts, model_dir, tmp_path, monkeypatch, capsys):
    (data, *places), summary = LAYOUTS[name]
    monkeypatch.chdir(layouts)
    out = tmp_path / "out"
    settings = ["--max_steps", "2", "--report_to", "none", "--disable_tqdm", "true"]
    train.main(["--model", model_dir, "--dataset", data, *places, *settings, "--output_dir", str(out)])
    said = capsys.readouterr().out
    assert summary in said and "Training on 5 rows" in said  # one is held out
    figures = json.loads((out / "results.json").read_text())["after"]["validation"]
    images = "--safe_images" in places
    assert set(figures) >= ({"retrieval_t2i", "redirection_unsafe_text"} if len(places) == 4 else set()) and figures
    assert ("counterpart_text" in figures) == (not images)
    # By the command that the training ends with.
    command = shlex.split(said.splitlines()[-1])
    words = command[command.index("eval") + 1 :]
    evaluation.main([*words, "--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "report.html").is_file()
    measured = json.loads((tmp_path / "figures" / "results.json").read_text())
    assert set(measured["models"]["model"]["splits"]) == {"validation"}, "rows that were trained on are measured"
    assert "--splits validation" in (out / "README.md").read_text()
    from safe_clip.cli.audit import main as audit

    audit([data, *places, "--output_dir", str(tmp_path / "audit")])
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())["splits"]["train"]
    assert found["rows"] == COUNT and found["categories"] == {"mark": COUNT}
    assert ("safe_image" in found["items"]) == images
