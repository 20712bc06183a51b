"""What is in an output folder, how files get there, and who may write."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from transformers import CLIPModel, TrainerCallback

from safe_clip import UserError, outputs
from safe_clip.card import check_measured
from safe_clip.card_text import NOT_KNOWN
from safe_clip.cli import eval as evaluation
from safe_clip.cli import export, train
from safe_clip.cli.audit import AuditArguments
from safe_clip.outputs import OutputFolder, check_writable
from safe_clip.store.known_files import LOCK, MANIFEST, REPLACED

from .helpers import FEATURES, make_rows, make_trainer


@pytest.fixture
def rows() -> Dataset:
    """A batch of them."""
    return Dataset.from_dict(make_rows(8), features=FEATURES)


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
    out = tmp_path / "out"
    flags = ["--model", model_dir, "--format", "transformers", "--output_dir", str(out)]
    for _ in range(2):
        export.main(flags)
    (out / "notes.txt").write_text("mine")  # beside what is ours, where it changes nothing
    export.main(flags)
    (out / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="did not write: adapter_config.json. "):
        export.main(flags)
    export.main([*flags, "--overwrite_output_dir"])
    assert (out / "notes.txt").read_text() == "mine" and (out / REPLACED / "adapter_config.json").exists()


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
    from safe_clip.embedding.embedder import Embedder

    trained(processor, rows, tmp_path)
    assert (
        OutputFolder(tmp_path).manifest["weights"]
        == Embedder(CLIPModel.from_pretrained(tmp_path), processor).model.weights
    )


def test_a_disk_that_fills_up_leaves_the_old_model_whole(processor, rows, tmp_path, monkeypatch):
    trained(processor, rows, tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    trainer = make_trainer(processor, rows, tmp_path, max_steps=1, learning_rate=1e-3)
    trainer.train()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safe_clip.training.saving.save_settings", full)  # the last file
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
    for program, flags in (
        (train.main, ["--model", "no/such", "--dataset", "no/such", "--report_to", "none"]),
        (evaluation.main, ["--model", "no/such", "--dataset", "no/such"]),
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


def foreign_checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "pytorch_model.bin", "trainer_state.json"):
        (folder / name).write_text('{"theirs": 1}')


def test_what_others_put_where_checkpoints_lie_is_moved_before_training(processor, rows, tmp_path):
    foreign_checkpoint(tmp_path / "checkpoint-500")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "w.bin").write_text("theirs")
    (tmp_path / "checkpoint-1").write_text("a file")
    for name in ("bad_rows.txt", "README.md"):
        (tmp_path / name).write_text("theirs")
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = make_trainer(processor, rows, tmp_path, overwrite_output_dir=True, **options)
    foreign_checkpoint(tmp_path / "checkpoint-7")

    class Comes(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            assert {path.name for path in tmp_path.glob("checkpoint-*")} in (set(), {f"checkpoint-{state.global_step}"})

    trainer.add_callback(Comes())
    trainer.train()
    aside = tmp_path / REPLACED
    for name in ("checkpoint-500", "checkpoint-7"):
        assert {path.name for path in (aside / name).iterdir()} >= {"pytorch_model.bin", "model.safetensors"}
    assert (aside / "checkpoint-2" / "w.bin").read_text() == "theirs" == (aside / "README.md").read_text()
    assert (aside / "checkpoint-1").read_text() == "a file" and (aside / "bad_rows.txt").read_text() == "theirs"
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3"}
    # A checkpoint of an earlier run is ours, and is rotated; within a second, transformers would go by the numbers.
    os.utime(tmp_path / "checkpoint-3", (1, 1))
    make_trainer(processor, rows, tmp_path, **{**options, "max_steps": 1}).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1"}
    assert not (aside / "checkpoint-3").exists()


LINKS = ["checkpoint-2", "adapter", "config.json", "trainer_state.json", "model.safetensors", LOCK, "evaluation.json"]


@pytest.mark.parametrize("name", LINKS)
def test_nothing_is_written_through_a_link(name, processor, rows, tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    a, b = tmp_path / "a", tmp_path / "b"
    trained_a = make_trainer(processor, rows, a, **options)
    trained_a.train()
    trained_a.save_model()
    (a / "evaluation.json").write_text('{"safe_clip": 1}')
    (a / "trainer_state.json").write_text("{}")
    before = {path: path.read_bytes() for path in a.rglob("*") if path.is_file()}
    b.mkdir()
    (b / name).symlink_to(a / name)
    with pytest.raises(UserError, match=f"did not write: {name}. .*--overwrite_output_dir"):
        make_trainer(processor, rows, b, **options).train()
    again = make_trainer(processor, rows, b, overwrite_output_dir=True, learning_rate=1e-3, **options)
    again.train()
    again.save_model()
    again.save_state()
    assert before == {path: path.read_bytes() for path in a.rglob("*") if path.is_file()}
    assert (b / REPLACED / name).is_symlink() and not (b / name).is_symlink()


def test_an_export_moves_a_link_in_its_way(model_dir, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter").symlink_to(tmp_path / "theirs")
    flags = ["--model", model_dir, "--format", "transformers", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="did not write: adapter. "):
        export.main(flags)
    export.main([*flags, "--overwrite_output_dir"])
    assert (tmp_path / "out" / REPLACED / "adapter").is_symlink() and (tmp_path / "theirs").is_dir()


def test_a_card_claims_a_model_of_before_the_manifest(processor, rows, tmp_path):
    trained(processor, rows, tmp_path)
    (tmp_path / MANIFEST).unlink()
    OutputFolder(tmp_path).write("evaluation.json", '{"safe_clip": 1}')
    OutputFolder(tmp_path).check()
    assert "model.safetensors" in OutputFolder(tmp_path).manifest["model"]
    # Figures alone make nobody's model ours.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_text("theirs")
    OutputFolder(tmp_path / "other").write("evaluation.json", '{"safe_clip": 1}')
    with pytest.raises(UserError, match="did not write: model.safetensors. "):
        OutputFolder(tmp_path / "other").check()


def test_a_place_for_what_is_in_the_way_must_be_one(tmp_path):
    for make in (lambda path: path.write_text("x"), lambda path: path.symlink_to(tmp_path / "nowhere")):
        make(tmp_path / REPLACED)
        for overwrite in (False, True):
            with pytest.raises(UserError, match="replaced is no folder, .* rename it"):
                OutputFolder(tmp_path).check(overwrite)
        (tmp_path / REPLACED).unlink()


def test_plain_logs_are_no_obstacle_and_a_project_is(processor, rows, tmp_path):
    for name in ("train.log", "nohup.out", "slurm-123.out", "slurm-123.err"):
        (tmp_path / name).write_text("x")
    trained(processor, rows, tmp_path)
    (tmp_path / "config.yaml").write_text("x")
    (tmp_path / "data").mkdir()
    trained(processor, rows, tmp_path)
    assert not {"train.log", "config.yaml"} & set(OutputFolder(tmp_path).to_push)
    # Figures do not make a folder ours.
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "rows.jsonl").write_text("x")
    OutputFolder(tmp_path / "project").write("results.json", '{"safe_clip": 1}')
    with pytest.raises(UserError, match="did not write: rows.jsonl. "):
        OutputFolder(tmp_path / "project").check()
