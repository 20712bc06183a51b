"""Columns that lie inside another."""

import io
import json
import tarfile

import pytest

from safe_clip import QuadrupletRows, UserError, load_quadruplets
from safe_clip.data.streams import QuadrupletStream

from ..helpers import make_rows


def shard(path, cell, count=3) -> str:
    """A WebDataset shard of samples with both images, and with what `cell` tells of each in a `.json`."""
    world = make_rows(count)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            files = {"json": json.dumps(cell(number)).encode()}
            for side in ("safe", "unsafe"):
                buffer = io.BytesIO()
                world[f"{side}_image"][number].save(buffer, "PNG")
                files[f"{side}_image.png"] = buffer.getvalue()
            for ending, content in files.items():
                entry = tarfile.TarInfo(f"{number}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return str(path)


def both_ways(name, mapping=None) -> list[list[tuple]]:
    whole = QuadrupletRows(load_quadruplets(name, hold_out=False, column_mapping=mapping)["train"])
    stream = load_quadruplets(name, streaming=True, column_mapping=mapping)["train"]
    names = ("safe_caption", "unsafe_caption", "safe_image", "unsafe_image")
    return [
        [tuple(row[name] if "caption" in name else row[name].tobytes() for name in names) for row in rows]
        for rows in ((whole[place] for place in range(len(whole))), QuadrupletStream(stream, shuffle_buffer=0))
    ]


CELLS = {
    "the schema's names": (lambda n: {"safe_caption": f"a dog {n}", "unsafe_caption": f"a gun {n}"}, None),
    "mapped": (
        lambda n: {"good": f"a dog {n}", "other": f"a gun {n}"},
        {"good": "safe_caption", "json.other": "unsafe_caption"},
    ),
    "deeper": (lambda n: {"meta": {"Safe-Caption": f"a dog {n}", "unsafe_caption": f"a gun {n}"}, "width": n}, None),
    "a preset's names": (lambda n: {"caption": f"a dog {n}", "nsfw_caption": f"a gun {n}"}, None),
}


@pytest.mark.parametrize("name", CELLS)
def test_what_the_json_of_a_sample_tells_is_taken(name, tmp_path):
    cell, mapping = CELLS[name]
    world = make_rows(3)
    images = [[each.tobytes() for each in world[column]] for column in ("safe_image", "unsafe_image")]
    expected = [(f"a dog {n}", f"a gun {n}", images[0][n], images[1][n]) for n in range(3)]
    assert both_ways(shard(tmp_path / "rows.tar", cell), mapping) == [expected] * 2


def test_a_column_of_parts_is_taken_apart_only_where_it_holds_what_is_needed(tmp_path):
    line = {"safe_caption": "a dog", "unsafe_caption": "a gun", "meta": {"width": 5, "category": "weapons"}}
    (tmp_path / "rows.jsonl").write_text((json.dumps(line) + "\n") * 2)
    assert load_quadruplets(str(tmp_path / "rows.jsonl"), hold_out=False)["train"][1] == line
    inside = {"meta": {"safe_caption": "a dog", "unsafe_caption": None, "n": 1}, "unsafe_caption": "a gun"}
    (tmp_path / "rows.jsonl").write_text((json.dumps(inside) + "\n") * 2)
    rows = load_quadruplets(str(tmp_path / "rows.jsonl"), hold_out=False)["train"]
    assert rows[1]["safe_caption"] == "a dog" and rows[1]["unsafe_caption"] == "a gun"  # its own column stays
    (tmp_path / "rows.jsonl").write_text(json.dumps({"safe_caption": {"text": "a dog"}}) + "\n")
    with pytest.raises(UserError, match="column 'safe_caption' holds parts"):
        load_quadruplets(str(tmp_path / "rows.jsonl"))
