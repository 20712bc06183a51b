"""Data sets of the Hub, whose rows name images by path."""

import io
import json
import os

import pytest
from PIL import Image

from tests.hub import Hub
from tests.programs import ROOT, run_python

LOAD = """
import json, sys
from safe_clip import UserError, load_quadruplets
from safe_clip.data.rows import QuadrupletRows

for name in ("you/folder", "you/table"):
    for streaming in (False, True):
        rows = load_quadruplets(name, hold_out=False, streaming=streaming)["train"]
        rows = QuadrupletRows(list(rows) if streaming else rows)
        said = []
        for row in range(len(rows)):
            try:
                said.append(rows[row]["safe_image"].getpixel((0, 0)))
            except UserError as error:
                said.append(str(error))
        print(json.dumps(said))
"""


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.slow
def test_images_of_the_data_set_are_found_and_no_file_of_this_machine_is(tmp_path):
    (tmp_path / "own.png").write_bytes(png("blue"))
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "0.png").write_bytes(png("blue"))  # where the program runs
    paths = [str(tmp_path / "own.png"), "../own.png", "pics/0.png", (tmp_path / "own.png").as_uri()]
    table = "".join(json.dumps({"safe_image": path, "safe_caption": "a dog"}) + "\n" for path in paths)
    metadata = "safe_image_file_name,safe_caption\n0.png,a dog\n1.png,a cat\n"
    with Hub() as hub:
        images = {f"{n}.png": png(colour) for n, colour in enumerate(("red", "lime"))}
        hub.create("you/folder", "dataset", {"metadata.csv": metadata.encode(), **images})
        hub.create("you/table", "dataset", {"rows.jsonl": table.encode(), "pics/0.txt": b"x"})
        environment = {**os.environ, **hub.environment(str(tmp_path / "hf")), "PYTHONPATH": str(ROOT)}
        done = run_python("-c", LOAD, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    *folders, table, stream = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert folders == [[[255, 0, 0], [0, 255, 0]]] * 2
    for said in (table, stream):
        assert len(said) == 4 and all("which is not opened; download the data set" in each for each in said)
