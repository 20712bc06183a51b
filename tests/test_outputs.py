"""What is in an output folder, how files get there, and who may write."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import CLIPModel

from safe_clip import UserError, export, outputs
from safe_clip.card import check_measured
from safe_clip.card_text import NOT_KNOWN
from safe_clip.data.audit.__main__ import AuditArguments
from safe_clip.outputs import LOCK, MANIFEST, REPLACED, OutputFolder, check_writable

from .conftest import load_script
from .test_trainer import make_trainer


def files(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in found if not name.startswith(".")}


def trained(processor, rows, folder, **options):
    trainer = make_trainer(processor, rows, folder, max_steps=1, **options)
    trainer.train()
    trainer.save_model()
    return trainer


FOREIGN = [
    "notes.txt",
    "evaluation.json",
    "config.json",
    "model.safetensors",
    "results.json",
    "README.md",
    "adapter/x.txt",
]
FOREIGN += ["checkpoint-9/trainer_state.json", "bad_rows.txt", "data/a.csv", "loss_curves.png", "tokenizer.json"]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_of_others_is_refused_and_nothing_of_theirs_is_lost(name, processor, rows, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"theirs": 1}')
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1)
    said = name if name.startswith("adapter") else name.split("/")[0]
    for write in (trainer.train, trainer.save_model):
        with pytest.raises(UserError, match=f"holds what this package did not write: {said}.*--overwrite_output_dir"):
            write()
    assert files(tmp_path) == {name}
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1, overwrite_output_dir=True)
    trainer.train()
    trainer.save_model()
    kept = [tmp_path / name, tmp_path / REPLACED / name]
    assert [path.read_text() for path in kept if path.is_file() and path.stat().st_size < 20] == ['{"theirs": 1}']
    assert name not in OutputFolder(tmp_path).to_push or name in ("config.json", "model.safetensors", "tokenizer.json")


def test_what_we_and_loggers_left_is_no_obstacle(processor, rows, tmp_path):
    trained(processor, rows, tmp_path, save_strategy="steps", save_steps=1)
    for name in (".git/config", ".env", "runs/events", "wandb/a", "emissions.csv", "all_results.json", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    again = trained(processor, rows, tmp_path)
    assert not {".env", "runs/events", "wandb/a", "emissions.csv"} & set(OutputFolder(tmp_path).to_push)
    assert (tmp_path / ".env").read_text() == "x" and again.state.global_step == 1
    # What a version before the manifest wrote is known too.
    (tmp_path / MANIFEST).unlink()
    trained(processor, rows, tmp_path)
    assert not (tmp_path / REPLACED).exists()


def test_a_file_of_ours_that_somebody_replaced_is_theirs(processor, rows, tmp_path):
    trained(processor, rows, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"another model")
    with pytest.raises(UserError, match="did not write: model.safetensors"):
        trained(processor, rows, tmp_path)


def test_files_that_would_change_what_others_load_are_moved(processor, rows, tmp_path):
    left = ["adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin", "model-00001-of-00002.safetensors"]
    left += ["special_tokens_map.json", "added_tokens.json", "modules.json", "onnx/model.onnx"]
    for name in left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "notes.txt").write_text("mine")
    trainer = trained(processor, rows, tmp_path, overwrite_output_dir=True)
    for name in left:
        assert (tmp_path / REPLACED / name).read_text() == "{}"
        assert not (tmp_path / name).exists() or name in OutputFolder(tmp_path).manifest["model"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    loaded = CLIPModel.from_pretrained(tmp_path).state_dict()
    merged = trainer.model.merge_and_unload().state_dict()
    assert all((loaded[key] - merged[key]).abs().max() < 1e-6 for key in loaded)


def test_what_is_read_is_never_written_to(processor, rows, model_dir, tmp_path):
    before = {path: path.read_bytes() for path in Path(model_dir).iterdir() if path.is_file()}
    for folder in (model_dir, f"{model_dir}/inner", str(Path(model_dir).parent)):
        with pytest.raises(UserError, match="which is read and never written to"):
            OutputFolder(folder).check(True, [model_dir])
    with pytest.raises(UserError, match="never written"):
        export.main(["--model", model_dir, "--format", "transformers", "--output_dir", model_dir])
    os.symlink(model_dir, tmp_path / "link")
    with pytest.raises(UserError, match="never written"):
        OutputFolder(tmp_path / "link").check(True, [model_dir])
    OutputFolder(tmp_path / "new").check(False, [model_dir, "no/such", "you/model", None])
    assert before == {path: path.read_bytes() for path in Path(model_dir).iterdir() if path.is_file()}


def test_an_export_is_guarded_and_may_be_made_again(model_dir, tmp_path):
    flags = ["--model", model_dir, "--format", "transformers", "--output_dir", str(tmp_path / "out")]
    for _ in range(2):
        export.main(flags)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="did not write: notes.txt"):
        export.main(flags)
    export.main([*flags, "--overwrite_output_dir"])
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_figures_go_when_other_weights_come_and_stay_with_theirs(processor, rows, tmp_path):
    trained(processor, rows, tmp_path)
    output = OutputFolder(tmp_path)
    card = "---\nlicense: mit\n---\nMine.\n<!-- safe-clip: results -->\n99 %\n<!-- /safe-clip: results -->\n"

    def measured():
        output.write("README.md", card, editable=True)
        output.write("results.json", '{"safe_clip": 1}')
        output.write("evaluation.json", '{"safe_clip": 1}')
        check_measured(str(tmp_path), {"weights": {"model": output.manifest["weights"]}})

    measured()
    trained(processor, rows, tmp_path)  # the same weights
    assert (tmp_path / "results.json").exists() and "99 %" in (tmp_path / "README.md").read_text()
    trained(processor, rows, tmp_path, learning_rate=1e-3)
    assert not (tmp_path / "results.json").exists() and not (tmp_path / "evaluation.json").exists()
    text = (tmp_path / "README.md").read_text()
    assert "99 %" not in text and NOT_KNOWN in text and "Mine." in text and "license: mit" in text
    measured()
    with pytest.raises(UserError, match="has other weights by now than those that were measured"):
        check_measured(str(tmp_path), {"weights": {"model": "another"}})


def test_weights_have_the_digest_that_measuring_gives_them(processor, rows, tmp_path):
    from safe_clip.evaluation.embedding import Embedder

    trained(processor, rows, tmp_path)
    assert (
        OutputFolder(tmp_path).manifest["weights"] == Embedder(CLIPModel.from_pretrained(tmp_path), processor).weights
    )


def test_a_disk_that_fills_up_leaves_the_old_model_whole(processor, rows, tmp_path, monkeypatch):
    trained(processor, rows, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1, learning_rate=1e-3)
    trainer.train()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "_save_args", full)  # the last file
    with pytest.raises(UserError, match="No space left"):
        trainer.save_model()
    after = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    assert {**after, MANIFEST: b""} == {**before, MANIFEST: b""}
    assert load_file(tmp_path / "model.safetensors")


def test_files_have_the_mode_that_the_umask_says(processor, rows, tmp_path):
    for number, (mask, mode) in enumerate(((0o022, 0o644), (0o077, 0o600), (0o002, 0o664))):
        old = os.umask(mask)
        try:
            trained(processor, rows, tmp_path / str(number), save_strategy="steps", save_steps=1)
        finally:
            os.umask(old)
        folder = tmp_path / str(number)
        names = ["model.safetensors", "config.json", "adapter/adapter_model.safetensors", MANIFEST]
        names += ["checkpoint-1/adapter_model.safetensors", "checkpoint-1/trainer_state.json"]
        assert {stat.S_IMODE((folder / name).stat().st_mode) for name in names} == {mode}


def hold(folder: str, held, done) -> None:
    with OutputFolder(folder).lock():
        held.set()
        done.wait(60)


def test_one_run_writes_at_a_time_and_a_kill_lets_go(processor, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PATIENCE", 0.2)
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1)
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), held, done))
    other.start()
    assert held.wait(60)
    for write in (trainer.train, trainer.save_model):
        with pytest.raises(UserError, match="another run writes there just now"):
            write()
    other.kill()
    other.join()
    trainer.train()
    trainer.save_model()
    assert (tmp_path / LOCK).exists()


def unwritable(tmp_path: Path) -> dict[str, tuple[str, str]]:
    (tmp_path / "file").write_text("x")
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling")
    return {
        "file": (str(tmp_path / "file"), "is no folder"),
        "under a file": (str(tmp_path / "file" / "out"), "is no folder"),
        "dangling": (str(tmp_path / "dangling"), "is a link to"),
        "under a dangling link": (str(tmp_path / "dangling" / "out"), "is no folder"),
        "proc": ("/proc/out", "cannot be written"),
        "long": (str(tmp_path / ("x" * 300)), "is too long"),
        "nul": ("a\0b", "cannot be written"),
    }


@pytest.mark.parametrize("kind", ["file", "under a file", "dangling", "under a dangling link", "proc", "long", "nul"])
def test_what_cannot_be_written_is_known_before_anything_is_loaded(kind, tmp_path):
    path, said = unwritable(tmp_path)[kind]
    with pytest.raises(UserError, match=said):
        check_writable(Path(path))
    if "\0" in path:
        return
    train, evaluate = load_script("train.py"), load_script("eval.py")
    for program, flags in (
        (train.main, ["--model", "no/such", "--dataset", "no/such", "--report_to", "none"]),
        (evaluate.main, ["--model", "no/such", "--dataset", "no/such"]),
        (export.main, ["--model", "no/such", "--format", "onnx"]),
    ):
        with pytest.raises(UserError, match=f"--output_dir .*{said}"):
            program([*flags, "--output_dir", path])
    with pytest.raises(UserError, match=f"--write .*{said}"):
        AuditArguments(image_classifier=["nudenet"], write=path)


def test_results_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "results.json").write_text('{"theirs": 1}')
    (tmp_path / "other.txt").write_text("x")  # which is not in the way
    output = OutputFolder(tmp_path)
    with pytest.raises(UserError, match="did not write: results.json. "):
        output.check(files=["results.json", "report.html"])
    output.check(True, files=["results.json"])
    for text in ('{"safe_clip": 1}', '{"safe_clip": 2}'):
        output.write("results.json", text)
        output.check(files=["results.json"])
    assert (tmp_path / REPLACED / "results.json").read_text() == '{"theirs": 1}'
    assert json.loads((tmp_path / "results.json").read_text()) == {"safe_clip": 2}
