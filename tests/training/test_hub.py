"""What leaves the machine: what was written here, by name, and nothing else."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel, get_peft_model
from transformers import CLIPModel

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, UserError, lora_config, update_model_card
from safe_clip.card_text import read_blocks
from safe_clip.outputs import OutputFolder
from safe_clip.training.hub_folder import look

from ..card.test_card import make_results
from ..helpers import build_model, make_trainer
from ..hub import TOKEN, Hub

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
    monkeypatch.setattr("safe_clip.training.hub.upload_folder", api.upload_folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this hub can be reached
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{folder}-cache")  # each hub has its own
    if ("model", "user/safe-clip") not in hub.repos:
        hub.create("user/safe-clip")

    def init_hf_repo(self, **kwargs):
        self.hub_model_id, self.push_in_progress = "user/safe-clip", None
        self.hub = look(api, self.hub_model_id, self.args.hub_revision, self.args.overwrite_output_dir)

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


@pytest.mark.parametrize("names", [["safe"], ["default", "safe"], ["safe", "default"]], ids="-".join)
def test_the_trained_adapter_is_saved_alone_whatever_its_name(names, processor, rows, tmp_path):
    base = build_model(processor)
    base.name_or_path = base.config._name_or_path = str(tmp_path / "private" / "base")
    adapted = get_peft_model(base, lora_config(4, 8), adapter_name=names[0])
    for name in names[1:]:
        adapted.add_adapter(name, lora_config(2, 4))
        adapted.set_adapter(name)
    settings = {"max_steps": 2, "save_steps": 1, "learning_rate": 1e-2, "report_to": "none", "use_cpu": True}
    args = SafeCLIPTrainingArguments(str(tmp_path / "out"), **settings)
    trainer = SafeCLIPTrainer(adapted, args, rows, None, processor)
    trainer.train()
    trainer.save_model()
    files = {file.name for file in (tmp_path / "out" / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    saved = CLIPModel.from_pretrained(tmp_path / "out").state_dict()
    again = PeftModel.from_pretrained(build_model(processor), tmp_path / "out" / "adapter").merge_and_unload()
    original = build_model(processor).state_dict()
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, saved[name], atol=1e-6, rtol=0)
    assert any(not torch.equal(value, original[name]) for name, value in saved.items())
    leaks = [file for file in (tmp_path / "out").rglob("*.json") if str(tmp_path / "private") in file.read_text()]
    assert not leaks and not list((tmp_path / "out").rglob("README.md"))


def test_several_active_adapters_are_refused(processor, rows, tmp_path):
    adapted = get_peft_model(build_model(processor), lora_config(4, 8))
    adapted.add_adapter("safe", lora_config(4, 8))
    adapted.base_model.set_adapter(["default", "safe"])
    args = SafeCLIPTrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    with pytest.raises(UserError, match=r"2 active adapters \(default, safe\), of which one is trained"):
        SafeCLIPTrainer(adapted, args, rows, None, processor)


CARD = "---\nlicense: mit\n---\nMine.\n<!-- safe-clip: results -->\n99 %\n<!-- /safe-clip: results -->\n"


def test_no_commit_has_figures_of_other_weights(processor, rows, hub, tmp_path, monkeypatch):
    old = {"README.md": CARD, "results.json": "{}", "evaluation.json": '{"weights": {"model": "others"}}'}
    old |= {"model-00001-of-00002.safetensors": "old", "notes.txt": "mine", "onnx/model.onnx": "mine"}
    repo = hub.create("user/safe-clip", files={name: text.encode() for name, text in old.items()})
    first = set(repo.commits)
    options = {"save_strategy": "steps", "save_steps": 1, "hub_strategy": "every_save", "hub_always_push": True}
    trainer = pushing(processor, rows, tmp_path, hub, monkeypatch, **options)
    trainer.train()
    trainer._finish_current_push()
    commits = [files for sha, files in repo.commits.items() if sha not in first]
    assert commits
    for files in commits:
        assert "model.safetensors" in files and {"notes.txt", "onnx/model.onnx"} <= set(files)
        assert not {"results.json", "evaluation.json", "model-00001-of-00002.safetensors"} & set(files)
        card = files["README.md"].decode()
        assert "99 %" not in card and "Mine." in card and "license: mit" in card


def pushed_card(hub) -> ModelCard:
    return ModelCard(hub.model("user/safe-clip").files["README.md"].decode())


def measure(folder: Path) -> None:
    """As evaluation does, with figures by hand."""
    update_model_card(str(folder), make_results(weights=OutputFolder(folder).manifest["weights"]))


def test_a_push_alone_brings_the_full_card(processor, rows, hub, tmp_path, monkeypatch):
    rows = rows.add_column("category", ["weapons"] * len(rows))
    trainer = pushing(processor, rows, tmp_path, hub, monkeypatch, learning_rate=1e-3, eval_rows=rows.select(range(8)))
    trainer.train()
    trainer.push_to_hub(license="mit", tags=["mine"])
    card = pushed_card(hub)
    parts = read_blocks(card.text)
    assert set(parts) == {"about", "results", "worst", "use", "training"} and "## Limits" in card.text
    assert parts["about"].startswith("A model that was given in Python and has no name, fine-tuned with safe-clip")
    assert "- **weapons**" in parts["about"].splitlines()
    assert (
        "- Data: given in Python, without a name, licence: not stated; train 24, validation 8 quadruplets\n"
        in (parts["training"])
    )
    assert "- `learning_rate`: 0.001" in parts["training"] and "for 2 steps on 1 x" in parts["training"]
    assert "Not measured yet" in parts["results"] and "was not measured" in parts["worst"]
    assert "None" not in card.text and "datasets" not in card.data.to_dict()
    assert (card.data.license, card.data.tags) == ("mit", ["clip", "safe-clip", "safety", "mine"])
    assert card.data.model_name == "user/safe-clip" and not card.data.get("eval_results")
    assert "loss_curves.png" in hub.model("user/safe-clip").files
    (tmp_path / "theirs" / "mine").mkdir(parents=True)
    trainer.push_to_hub(dataset=str(tmp_path / "theirs" / "mine"))
    assert "- Data: `mine`, licence: not stated; train 24" in read_blocks(pushed_card(hub).text)["training"]
    assert b"theirs" not in b"".join(hub.model("user/safe-clip").files.values())


def test_a_pushed_card_has_the_figures_of_its_weights_and_no_others(processor, rows, hub, tmp_path, monkeypatch):
    trainer = pushing(processor, rows, tmp_path / "out", hub, monkeypatch)
    trainer.train()
    trainer.push_to_hub()
    measure(tmp_path / "out")
    trainer.push_to_hub()
    measured = pushed_card(hub)
    assert "| unsafe captions | 20.0 [10.0, 30.0] | 40.0 [30.0, 50.0] |" in read_blocks(measured.text)["results"]
    assert measured.data.eval_results
    # The same weights in another folder: what the repository knows of them stays.
    again = pushing(processor, rows, tmp_path / "again", hub, monkeypatch)
    again.train()
    again.push_to_hub()
    card = pushed_card(hub)
    assert read_blocks(card.text)["results"] == read_blocks(measured.text)["results"]
    assert "evaluation.json" in hub.model("user/safe-clip").files
    # Other weights, by a trainer that trains on, and by one that starts anew.
    again.args.max_steps = 3
    other = pushing(processor, rows, tmp_path / "other", hub, monkeypatch, learning_rate=1e-3)
    for run, steps in ((again, 3), (other, 2)):
        run.train()
        run.push_to_hub()
        files, card = hub.model("user/safe-clip").files, pushed_card(hub)
        assert "Not measured yet" in read_blocks(card.text)["results"]
        assert "was not measured" in read_blocks(card.text)["worst"] and not card.data.get("eval_results")
        assert "evaluation.json" not in files and f"for {steps} steps on" in card.text
        measure(Path(run.args.output_dir))
        run.push_to_hub()
        assert "evaluation.json" in hub.model("user/safe-clip").files and pushed_card(hub).data.eval_results


def test_pushes_in_training_bring_the_full_card_too(processor, rows, hub, tmp_path, monkeypatch):
    options = {"save_strategy": "steps", "save_steps": 1, "hub_always_push": True}
    trainer = pushing(processor, rows, tmp_path, hub, monkeypatch, **options)
    trainer.card_facts = {"settings": {"shuffle_buffer": 7}}  # as train.py gives them
    trainer.train()
    trainer._finish_current_push()
    cards = [files["README.md"].decode() for files in hub.model("user/safe-clip").commits.values() if len(files) > 1]
    assert cards
    for card in cards:
        assert set(read_blocks(card)) == {"about", "results", "worst", "use", "training"}
        assert "- `shuffle_buffer`: 7" in card and "- Took: not known" in card
    trainer.push_to_hub()
    assert "for 2 steps on" in pushed_card(hub).text


def test_files_of_others_in_a_repository_are_told_or_deleted(processor, rows, hub, tmp_path, monkeypatch):
    theirs = {"adapter_config.json": b"{}", "pytorch_model.bin": b"x", "README.md": b"# Another model", "a.txt": b"x"}
    repo = hub.create("user/safe-clip", files=theirs)
    said = "adapter_config.json, pytorch_model.bin, README.md. .*--overwrite_output_dir"
    with pytest.raises(UserError, match=said):
        pushing(processor, rows, tmp_path, hub, monkeypatch, overwrite_output_dir=False)
    assert repo.files == theirs
    trainer = pushing(processor, rows, tmp_path, hub, monkeypatch)
    trainer.train()
    trainer.push_to_hub()
    assert "model.safetensors" in repo.files and "a.txt" in repo.files
    assert not {"adapter_config.json", "pytorch_model.bin"} & set(repo.files)
    assert b"Another model" not in repo.files["README.md"]
    pushing(processor, rows, tmp_path, hub, monkeypatch, overwrite_output_dir=False)  # which is ours now


def test_a_branch_that_is_not_there_is_made(processor, rows, hub, tmp_path, monkeypatch):
    pushing(processor, rows, tmp_path, hub, monkeypatch, hub_revision="dev")
    assert "dev" in hub.model("user/safe-clip").refs
