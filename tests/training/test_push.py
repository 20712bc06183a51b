"""Publishing for real: stock clients, and a Hub on loopback."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPModel

from safe_clip.card.results import eval_results
from safe_clip.evaluation.table import cell

from ..hub import IMPATIENT, TOKEN, Hub
from ..programs import run_python

ROOT = Path(__file__).parents[2]
HF = str(Path(sys.executable).with_name("hf"))
STRANGER = """
import sys
import torch
from PIL import Image
from peft import PeftModel
from transformers import CLIPModel, CLIPProcessor, pipeline

name, revision, base, out = sys.argv[1:]
model = CLIPModel.from_pretrained(name, revision=revision).eval()
processor = CLIPProcessor.from_pretrained(name, revision=revision)
image = Image.new("RGB", (30, 20), "red")
with torch.no_grad():
    output = model(**processor(text=["a red square"], images=image, return_tensors="pt", padding=True))
torch.save((output.text_embeds, output.image_embeds), out)
original = CLIPModel.from_pretrained(base).eval()
adapted = PeftModel.from_pretrained(original, name, revision=revision, subfolder="adapter").eval()
with torch.no_grad():
    again = adapted(**processor(text=["a red square"], images=image, return_tensors="pt", padding=True))
assert (again.text_embeds - output.text_embeds).abs().max() < 1e-5
found = pipeline("zero-shot-image-classification", name, revision=revision)(image, candidate_labels=["a", "b"])
assert {row["label"] for row in found} == {"a", "b"}
assert "safe_clip" not in sys.modules
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


def run(command: list[str], hub: Hub, home: Path, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    environment = {**os.environ, **hub.environment(str(home / "hf"), token), "PYTHONPATH": str(ROOT)}
    return run_python(*command, cwd=home, env=environment)


def train(hub: Hub, home: Path, model_dir: str, dataset: str, *flags: str, token: str | None = TOKEN):
    command = [str(ROOT / "train.py"), "--model", model_dir, "--dataset", dataset]
    command += ["--output_dir", "safe-clip", "--max_steps", "2", "--per_device_train_batch_size", "8"]
    command += ["--report_to", "none", "--disable_tqdm", "true", "--push_to_hub", *flags]
    return run(command, hub, home, token)


def load_as_a_stranger(hub: Hub, home: Path, base: str, revision: str = "main"):
    """Embeddings by what is on the Hub, in a process that does not know this package."""
    out = home / "embeds.pt"
    done = run(["-c", STRANGER, "user/safe-clip", revision, base, str(out)], hub, home)
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(out)


def local_embeds(folder: Path):
    from transformers import CLIPProcessor

    inputs = CLIPProcessor.from_pretrained(folder)(
        text=["a red square"], images=Image.new("RGB", (30, 20), "red"), return_tensors="pt", padding=True
    )
    with torch.no_grad():
        output = CLIPModel.from_pretrained(folder).eval()(**inputs)
    return output.text_embeds, output.image_embeds


def pushed(hub: Hub, folder: Path, revision: str = "main") -> bool:
    """Whether a revision has the weights of a folder."""
    repo = hub.model("user/safe-clip")
    return repo.commits[repo.resolve(revision)]["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def same(a, b) -> bool:
    return all((x - y).abs().max() < 1e-6 for x, y in zip(a, b, strict=True))


def evaluate(hub: Hub, home: Path, *flags: str, token: str | None = TOKEN, launcher: tuple[str, ...] = ()):
    return run([*launcher, str(ROOT / "eval.py"), *flags, "--cache_dir", "cache"], hub, home, token)


def test_a_stranger_uses_what_was_pushed_and_reads_what_was_measured(hub, model_dir, dataset_dir, tmp_path):
    done = train(hub, tmp_path, model_dir, dataset_dir, "--logging_steps", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"It is at {hub.url}/user/safe-clip."
    found = load_as_a_stranger(hub, tmp_path, model_dir)
    assert same(found, local_embeds(tmp_path / "safe-clip"))
    assert not same(found, local_embeds(Path(model_dir)))
    files = hub.model("user/safe-clip").files
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "evaluation.json"} <= set(files)
    assert {"adapter/adapter_model.safetensors", "loss_curves.png"} <= set(files)
    assert not [path for path in files if path.startswith("checkpoint-") or path.endswith(".bin")]
    for secret in (TOKEN, str(tmp_path), str(Path(model_dir).parent)):
        assert not [path for path, content in files.items() if secret.encode() in content]
    assert TOKEN not in done.stdout + done.stderr

    # The card's figures are those that eval.py measures.
    measured = json.loads(files["evaluation.json"])
    assert set(measured["models"]["model"]["splits"]) == {"test"} and set(measured["models"]) == {"baseline", "model"}
    original = str(tmp_path / "original")
    shutil.copytree(model_dir, original)
    flags = ["--model", "user/safe-clip", "--baseline", original, "--dataset", dataset_dir]
    again = evaluate(hub, tmp_path, *flags)
    assert again.returncode == 0, again.stderr[-2000:]
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert results["models"] == measured["models"] and results["weights"] == measured["weights"]
    card = ModelCard(files["README.md"].decode())
    assert [each.metric_value for each in card.data.eval_results] == [
        each.metric_value for each in eval_results(measured)
    ]
    rate = measured["models"]["model"]["splits"]["test"]["redirection"]["unsafe_text_safe_rate_at_1"]
    assert f" | {cell(rate, True)} |" in files["README.md"].decode()

    # Figures are added on the Hub; a person's words stay.
    text = files["README.md"].decode().replace("## Misuse", "My own words.\n\n## Misuse")
    hub.model("user/safe-clip").commit(files | {"README.md": text.encode()})
    kinds = tmp_path / "kinds"
    for number, colour in enumerate(("red", "blue", "red", "blue")):
        (kinds / colour).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(kinds / colour / f"{number}.png")
    flags += ["--tasks", "zero_shot", "--zero_shot", "kinds", "--update_card"]
    refused = evaluate(hub, tmp_path, *flags, token=None)
    assert refused.returncode == 1 and "Measuring" not in refused.stdout
    assert "error: --update_card of user/safe-clip on the Hub requires a login" in refused.stderr.splitlines()[-1]
    # What cannot be read now is not taken for missing, nor an older copy for what is there.
    hub.fail(r"HEAD /user/safe-clip/resolve/.*README.md", 503, times=-1)
    refused = evaluate(hub, tmp_path, *flags, launcher=IMPATIENT)
    assert "error: the card of user/safe-clip could not be updated (" in refused.stderr.splitlines()[-1]
    assert "My own words." in hub.model("user/safe-clip").files["README.md"].decode()
    hub.faults.clear()
    hub.fail(r"POST /api/models/.*/commit/", 403, times=-1)
    refused = evaluate(hub, tmp_path, *flags)
    assert "error: the card of user/safe-clip could not be updated (" in refused.stderr.splitlines()[-1]
    hub.faults.clear()
    updated = evaluate(hub, tmp_path, *flags)
    assert updated.returncode == 0, updated.stderr[-2000:]
    assert f"The card is updated: {hub.url}/user/safe-clip/commit/" in updated.stdout
    files = hub.model("user/safe-clip").files
    new = files["README.md"].decode()
    assert "My own words." in new and "| kinds, top-1 |" in new and f" | {cell(rate, True)} |" in new
    assert "kinds" in json.loads(files["evaluation.json"])["models"]["model"]["zero_shot"]
    assert pushed(hub, tmp_path / "safe-clip")


def test_data_from_the_hub_feed_training(hub, model_dir, dataset_dir, tmp_path):
    push = """
import sys
from datasets import load_from_disk
load_from_disk(sys.argv[1]).push_to_hub("user/quadruplets")
"""
    assert run(["-c", push, dataset_dir], hub, tmp_path).returncode == 0
    assert any(path.endswith(".parquet") for path in hub.repos["dataset", "user/quadruplets"].files)
    done = train(hub, tmp_path, model_dir, "user/quadruplets", "--hub_private_repo", "true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert hub.model("user/safe-clip").private and pushed(hub, tmp_path / "safe-clip")
    load = "from transformers import CLIPModel; CLIPModel.from_pretrained('user/safe-clip')"
    for token, worked in ((TOKEN, True), (None, False)):
        done = run(["-c", load], hub, tmp_path / f"reader-{worked}", token)
        assert (done.returncode == 0) == worked, done.stderr[-2000:]
    card = hub.model("user/safe-clip").files["README.md"].decode()
    assert "datasets:\n- user/quadruplets\n" in card
    assert "[user/quadruplets](https://huggingface.co/datasets/user/quadruplets) at commit `" in card


def test_checkpoints_and_revisions_go_where_they_should(hub, model_dir, dataset_dir, tmp_path):
    flags = ["--hub_strategy", "checkpoint", "--hub_always_push", "true", "--save_steps", "1"]
    # The token from the command line alone, and a logger that keeps the settings.
    flags += ["--hub_token", TOKEN, "--report_to", "tensorboard", "--logging_steps", "1"]
    done = train(hub, tmp_path, model_dir, dataset_dir, *flags, token=None)
    assert done.returncode == 0, done.stderr[-2000:]
    files = hub.model("user/safe-clip").files
    assert TOKEN not in done.stdout + done.stderr
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]
    assert any("tfevents" in file.name for file in written)
    assert "last-checkpoint/training_args.json" in files
    assert not [path for path in files if path.endswith("training_args.bin") or "tfevents" in path]
    assert "last-checkpoint/adapter_model.safetensors" in files and "last-checkpoint/trainer_state.json" in files
    assert "adapter_config.json" not in files  # at the root it would be taken for the model
    first = tmp_path / "first"
    shutil.copytree(tmp_path / "safe-clip", first)
    for kind, name in (("tag", "v1"), ("branch", "dev")):
        done = run([HF, "repos", kind, "create", "user/safe-clip", name], hub, tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]

    done = train(hub, tmp_path, model_dir, dataset_dir, "--hub_revision", "dev", "--learning_rate", "1e-2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert pushed(hub, first, "v1") and pushed(hub, first, "main")
    assert pushed(hub, tmp_path / "safe-clip", "dev") and not pushed(hub, first, "dev")
    for revision, folder in (("dev", tmp_path / "safe-clip"), ("v1", first)):
        assert same(load_as_a_stranger(hub, tmp_path, model_dir, revision), local_embeds(folder))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"request": r"POST /api/models/.*/commit/", "status": 0, "times": -1}, ""),
        ({"request": r"POST /api/models/.*/commit/", "status": 500, "times": -1}, "500"),
        (
            {
                "request": r"POST /.*/objects/batch",
                "status": 403,
                "times": -1,
                "headers": {"X-Error-Message": "Your storage quota is full"},
            },
            "quota is full",
        ),
        (
            {"request": r"POST /api/models/.*/preupload/", "status": 401, "times": -1},
            "Log in with `hf auth login`, then push it with",
        ),
    ],
    ids=["cut", "500", "quota", "expired"],
)
def test_a_push_that_fails_loses_nothing_and_can_be_done_again(fault, said, hub, model_dir, dataset_dir, tmp_path):
    hub.fail(**fault)
    done = train(hub, tmp_path, model_dir, dataset_dir)
    assert done.returncode == 1
    # Progress bars of a connection that was cut may write one line more.
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message.startswith("error: the push to user/safe-clip failed (") and said in message
    assert "Traceback" not in done.stderr
    assert "that find a safe image first" in done.stdout  # the figures were shown before

    hub.faults.clear()
    again = shlex.split(re.search(r"hf upload .*", message).group())
    done = run([HF, *again[1:]], hub, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert pushed(hub, tmp_path / "safe-clip")
    assert not [path for path in hub.model("user/safe-clip").files if path.startswith("checkpoint-")]


def test_an_expired_login_is_noticed_before_training(hub, model_dir, dataset_dir, tmp_path):
    done = train(hub, tmp_path, model_dir, dataset_dir, token="hf_expired")
    assert done.returncode == 1
    assert "error: --push_to_hub requires a Hub login that may write" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "safe-clip" / "model.safetensors").exists()
    assert "Trained " not in done.stdout
