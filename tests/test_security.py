"""What a repository offers is data: nothing in it is run, and nothing of it is written where it was not asked for."""

import json
import os
import pickle
from pathlib import Path

import pytest

from safe_clip import load_processor

from .hub import Hub
from .programs import run_python

ROOT = Path(__file__).parent.parent

LOAD = """
import json, sys
from safe_clip import UserError, load_clip, load_processor, load_quadruplets

said = {}
for kind, name in json.loads(sys.argv[1]):
    try:
        {"model": load_clip, "processor": load_processor, "data": load_quadruplets}[kind](name)
        said[name] = "loaded"
    except UserError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def files_of(model_dir: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(model_dir).iterdir()}


def edited(files: dict[str, bytes], name: str, **changes) -> dict[str, bytes]:
    return files | {name: json.dumps(json.loads(files[name]) | changes).encode()}


@pytest.mark.slow
def test_a_repository_is_never_run_and_stays_in_its_place(model_dir, dataset_dir, tmp_path):
    world = tmp_path / "deep" / "er" / "home"
    world.mkdir(parents=True)
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n".encode()
    whole = files_of(model_dir)
    bare = {name: content for name, content in whole.items() if name != "model.safetensors"}
    own_code = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model", "AutoProcessor": "modeling.Processor"}
    escaping = {"metadata": {}, "weight_map": {"logit_scale": "../../../../../../escaped.safetensors"}}
    with Hub() as hub:
        hub.create("user/plain", files=whole)
        hub.create("user/pickled", files=bare | {"pytorch_model.bin": pickle.dumps(Payload(ran))})
        hub.create("user/both", files=whole | {"pytorch_model.bin": pickle.dumps(Payload(ran))})
        hub.create("user/code", files=edited(whole, "config.json", auto_map=own_code) | {"modeling.py": code})
        hub.create(
            "user/other-code",
            files=edited(whole, "config.json", model_type="mine", auto_map=own_code) | {"modeling.py": code},
        )
        with_code = edited(whole, "processor_config.json", auto_map=own_code)
        hub.create("user/processor-code", files=with_code | {"modeling.py": code})
        with_code = edited(whole, "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling.T", None]})
        hub.create("user/tokenizer-code", files=with_code | {"modeling.py": code})
        hub.create("user/sharded", files=bare | {"model.safetensors.index.json": json.dumps(escaping).encode()})
        hub.create("user/script", kind="dataset", files={"script.py": code})
        row = b"safe_caption,unsafe_caption,safe_image,unsafe_image\na,b,c,d\n"
        hub.create("user/climbing", kind="dataset", files={"../../../../../../escaped.csv": row, "train.csv": row})
        wanted = [
            *(("model", f"user/{name}") for name in ("plain", "pickled", "both", "code", "other-code", "sharded")),
            ("processor", "user/processor-code"),
            ("processor", "user/tokenizer-code"),
            ("data", "user/script"),
            ("data", "user/climbing"),
        ]
        environment = {**os.environ, **hub.environment(str(world / "hf")), "PYTHONPATH": str(ROOT)}
        done = run_python("-c", LOAD, json.dumps(wanted), cwd=world, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["user/plain"] == said["user/both"] == "loaded"
    assert (
        "offers no safetensors weights, and others, such as pytorch_model.bin, are not loaded" in said["user/pickled"]
    )
    for name, file in (("processor", "processor's configuration"), ("tokenizer", "tokenizer_config.json")):
        assert f"requires code of its own to be run (auto_map in its {file})" in said[f"user/{name}-code"]
    for name in ("user/code", "user/other-code"):
        assert f"--model {name} requires code of its own to be run (auto_map in its config.json)" in said[name]
    assert said["user/sharded"].startswith("--model user/sharded cannot be opened: Invalid filename '../../")
    assert said["user/script"].endswith(
        "Code from a repository is not run; its rows are required as files, such as Parquet."
    )
    assert said["user/climbing"].startswith("--dataset user/climbing could not be loaded")
    assert not ran.exists(), said
    here = {file.relative_to(world).parts[0] for file in world.rglob("*")}
    outside = {file for file in tmp_path.rglob("*") if file.is_file() and world not in file.parents}
    assert here == {"hf"} and not outside, (here, outside, said)


def test_names_in_a_processor_are_not_written_as_files(model_dir, tmp_path):
    files = edited(
        files_of(model_dir),
        "tokenizer_config.json",
        chat_template=[{"name": "default", "template": "x"}, {"name": "../../escaped", "template": "evil"}],
    )
    (tmp_path / "model").mkdir()
    for name, content in files.items():
        (tmp_path / "model" / name).write_bytes(content)
    out = tmp_path / "a" / "b" / "c"
    load_processor(str(tmp_path / "model")).save_pretrained(out)
    assert (out / "tokenizer.json").exists()
    assert not list(tmp_path.rglob("*.jinja")) and not list((tmp_path / "a").rglob("*escaped*"))
