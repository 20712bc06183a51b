import importlib.util
import json
from pathlib import Path

import matplotlib
import pytest
from datasets import Dataset
from transformers import CLIPModel

SHORTER = {"STEPS = 125": "STEPS = 2", "range(3000)": "range(64)", "range(300)": "range(40)"}
EXAMPLES = Path(__file__).parent.parent / "examples"


def notebook_cells() -> list[dict]:
    cells = json.loads((EXAMPLES / "demo.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_own_data_trains_on_a_table(model_dir, tmp_path):
    spec = importlib.util.spec_from_file_location("own_data", EXAMPLES / "own_data.py")
    own_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own_data)
    rows = {"safe_caption": [f"a dog {i}" for i in range(40)], "unsafe_caption": [f"a gun {i}" for i in range(40)]}
    Dataset.from_dict(rows).to_csv(tmp_path / "rows.csv")
    settings = {"max_steps": 2, "per_device_train_batch_size": 8, "report_to": "none"}
    own_data.main(str(tmp_path / "rows.csv"), model_dir, str(tmp_path / "safe"), **settings)
    assert CLIPModel.from_pretrained(tmp_path / "safe").num_parameters()


def test_the_notebook_was_run_from_top_to_bottom_and_is_small():
    cells = notebook_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert (EXAMPLES / "demo.ipynb").stat().st_size < 150_000


@pytest.mark.slow
def test_the_notebook_still_runs(tmp_path, monkeypatch):
    """On fewer rows and steps, since what is asked is that each cell does what it did."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with matplotlib.rc_context({"backend": "agg", "figure.max_open_warning": 0}):
        for cell in notebook_cells():
            source = "".join(cell["source"])
            for long, short in SHORTER.items():
                source = source.replace(long, short)
            exec(compile(source, "demo.ipynb", "exec"), names)
    assert names["STEPS"] == 2 and len(names["train"]) == 64
    assert names["after"].keys() == names["before"].keys()
