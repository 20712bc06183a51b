"""What leaves the machine: what was written here, by name, and nothing else."""

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from safe_clip import SafeCLIPTrainer, UserError
from safe_clip.outputs import OutputFolder

from .hub import TOKEN, Hub
from .test_trainer import make_trainer

THEIRS = [".env", "id_rsa", "notes.txt", "wandb/run.log", ".git/config", "adapter/notes.txt", "data/rows.csv"]
THEIRS += ["runs/events", "checkpoint-9/optimizer.pt", "deep/er/secret.json", "model.py", "secrets.safetensors"]
OURS = {"model.safetensors", "config.json", "tokenizer.json", "training_args.json", "README.md"}


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


def put_theirs(folder: Path) -> None:
    for name in THEIRS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("a secret")


def pushing(processor, rows, folder, hub, monkeypatch, **options) -> SafeCLIPTrainer:
    """A trainer that pushes to the hub on loopback."""
    api = HfApi(endpoint=hub.url, token=TOKEN)
    monkeypatch.setattr("safe_clip.publishing.upload_folder", api.upload_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this hub can be reached
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub.create("user/safe-clip")

    def init_hf_repo(self, **kwargs):
        self.hub_model_id, self.push_in_progress = "user/safe-clip", None

    monkeypatch.setattr(SafeCLIPTrainer, "init_hf_repo", init_hf_repo)
    defaults = {"max_steps": 2, "push_to_hub": True, "hub_token": TOKEN, "overwrite_output_dir": True}
    return make_trainer(processor, rows, folder, **(defaults | options))


def test_nothing_that_lies_in_the_folder_is_pushed_along(processor, rows, hub, tmp_path, monkeypatch):
    put_theirs(tmp_path)
    trainer = pushing(processor, rows, tmp_path, hub, monkeypatch)
    trainer.train()
    trainer.push_to_hub()
    pushed = hub.model("user/safe-clip").files
    assert set(pushed) >= OURS | {"adapter/adapter_model.safetensors"}
    assert not set(pushed) & set(THEIRS) and not [name for name in pushed if b"a secret" in pushed[name]]
    assert not [name for name in pushed if name.startswith(("replaced/", "checkpoint-", ".env", ".safe", ".git/"))]
    assert all((tmp_path / name).exists() or (tmp_path / "replaced" / name).exists() for name in THEIRS)


def test_nothing_is_pushed_along_in_training(processor, rows, hub, tmp_path, monkeypatch):
    put_theirs(tmp_path)
    options = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "all_checkpoints", "hub_always_push": True}
    trainer = pushing(processor, rows, tmp_path, hub, monkeypatch, **options)
    before = trainer.save_model

    def save_model(folder=None, _internal_call=False):
        before(folder, _internal_call)
        if folder:
            (Path(folder) / "notes.txt").write_text("a secret")

    monkeypatch.setattr(trainer, "save_model", save_model)
    trainer.train()
    trainer._finish_current_push()
    pushed = hub.model("user/safe-clip").files
    assert "checkpoint-1/adapter_model.safetensors" in pushed and "checkpoint-1/optimizer.pt" in pushed
    assert "model.safetensors" in pushed and not [name for name in pushed if b"a secret" in pushed[name]]


def test_the_command_after_a_failure_names_what_is_ours(processor, rows, hub, tmp_path, monkeypatch):
    put_theirs(tmp_path)
    trainer = pushing(processor, rows, tmp_path, hub, monkeypatch)
    trainer.train()
    hub.fail(r"POST /api/models/.*/commit/", 403, times=-1)
    with pytest.raises(UserError, match="Nothing is lost: .* hf upload user/safe-clip") as error:
        trainer.push_to_hub()
    words = shlex.split(re.search(r"hf upload .*", str(error.value)).group())
    included = [words[place + 1] for place, word in enumerate(words) if word == "--include"]
    assert set(included) == set(OutputFolder(tmp_path).to_push) >= OURS and not set(included) & set(THEIRS)
