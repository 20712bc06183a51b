"""Programs as people type them, and what they then read."""

import csv
import json
import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def write_table(folder, count=40):
    with open(folder / "rows.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["safe_caption", "unsafe_caption"])
        rows.writerows([f"a dog {number}", f"a gun {number}"] for number in range(count))


TRAIN = ["safe-clip", "train", "--dataset", "rows.csv", "--report_to", "none", "--per_device_train_batch_size", "8"]


def last_line(done):
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stderr.splitlines()[-1]


def test_a_table_trains_and_is_measured(shell, model_dir):
    write_table(shell.folder)
    flags = ["--model", model_dir, "--max_steps", "2", "--disable_tqdm", "true"]
    done = shell(*TRAIN, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    out = shell.folder / "safe-clip"
    figures = json.loads((out / "results.json").read_text())
    assert {"before", "after"} <= set(figures) and (out / "model.safetensors").exists()
    assert "Not trained: " in done.stderr and "no safe_image" in done.stderr  # which the table lacks
    # What captions alone are trained for is a generator.
    (drawn,) = [line for line in done.stdout.splitlines() if "generate text_to_image" in line]
    assert f" --model {out.name} --baseline" in drawn and "--splits validation" in drawn
    done = shell("safe-clip", "eval", "--model", out, "--baseline", model_dir, "--dataset", "rows.csv")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((shell.folder / "evaluation" / "results.json").read_text())
    assert "~" not in {path.name for path in shell.folder.iterdir()}


KILL = """
import os, runpy, signal, sys
from transformers import Trainer

def step(self, *args, known=Trainer.training_step, **kwargs):
    if self.state.global_step == 2 and os.environ["AT"] == "a step":
        os.kill(os.getpid(), signal.SIGINT)
    return known(self, *args, **kwargs)

Trainer.training_step = step
if os.environ["AT"] == "the start":
    import safe_clip.models.load
    safe_clip.models.load.load_clip = lambda *args: os.kill(os.getpid(), signal.SIGINT)
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_ctrl_c_keeps_what_was_trained_and_says_how_to_go_on(shell, model_dir):
    write_table(shell.folder)
    flags = ["--model", model_dir, "--max_steps", "6", "--disable_tqdm", "true", "--hidden_state_terms", "false"]
    script = ["-c", KILL, shell.command, *TRAIN[1:], *flags]
    done = shell(*script, env={"AT": "the start"})
    assert done.returncode == 130 and last_line(done) == "interrupted."
    done = shell(*script, env={"AT": "a step"})
    assert done.returncode == 130, done.stderr[-3000:]
    assert last_line(done).startswith("stopped after step 3 of 6, with a checkpoint: ")
    out = shell.folder / "safe-clip"
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (out / "model.safetensors").exists()
    done = shell(*TRAIN, *flags, "--resume_from_checkpoint", "last")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "checkpoint-6" / "trainer_state.json").read_text())["global_step"] == 6
    assert (out / "model.safetensors").exists()


MISTAKES = [
    ("--raet 1", 2, "error: --raet is no setting."),
    ("--max_steps two", 2, "error: --max_steps: it must be a whole number, not 'two'."),
    ("--max_steps 0", 1, "error: --max_steps is 0; it must be 1 or more."),
    ("--num_train_epochs 0", 1, "error: --num_train_epochs is 0.0; it must be above 0"),
    ("--num_train_epochs nan", 1, "error: --num_train_epochs is nan; it must be above 0"),
    (
        "--per_device_train_batch_size 64 --dataloader_drop_last true",
        1,
        "error: --dataloader_drop_last leaves no",
    ),
    ("--per_device_train_batch_size 0", 1, "error: --per_device_train_batch_size is 0; it must be 1 or more."),
    ("--gradient_accumulation_steps 0", 1, "error: --gradient_accumulation_steps is 0; it must be 1 or more."),
    ("--learning_rate -1", 1, "error: --learning_rate is -1.0; it must be above 0."),
    ("--seed -1", 1, "error: --seed is -1; it must be from 0 to 4294967295."),
    ("--lora_r 0", 1, "error: --lora_r is 0; it must be from 1 to 65536."),
    ("--lora_dropout 2", 1, "error: --lora_dropout is 2.0; it must be 0 or more and below 1."),
    ("--dataloader_num_workers -1", 1, "error: --dataloader_num_workers is -1; it must be from 0 to 4096."),
    ("--report_to dvclive", 1, "error: --report_to dvclive requires dvclive, which is not installed: pip install"),
    ("--report_to wandbb", 1, "error: --report_to wandbb: it must be none, all, or among wandb, "),
    ("--eval_strategy stepz", 2, "error: --eval_strategy: it must be among 'no', 'steps', 'epoch', not 'stepz'."),
    ("--deepspeed nowhere.json", 1, "error: --deepspeed"),
    ("--fsdp full_shard", 1, "error: --fsdp requires several processes"),
    ("--lr_scheduler_type cosine_with_min_lr", 1, "error: --lr_scheduler_type cosine_with_min_lr does"),
    ('--lr_scheduler_kwargs {"a":1}', 1, "error: --lr_scheduler_type cosine does not go with"),
    ("--optim adamw_bnb_8bit", 1, "error: --optim adamw_bnb_8bit requires bitsandbytes, which is not installed"),
    ("--load_best_model_at_end true", 1, "error: --load_best_model_at_end True: "),
    ("--column_mapping 5", 1, "error: --column_mapping must be a JSON object, not 5."),
    ('--column_mapping {"a":5}', 1, "error: --column_mapping renames 'a' to 5; it must be a name, or null."),
    ("--output_dir=", 1, "error: --output_dir is ''; it must name a folder."),
    ("--strength 8", 1, "error: --strength is 8.0; it must be above 0 and up to 1."),
    ("--warmup_steps nan", 1, "error: --warmup_steps is nan; it must be"),
    ("--loss_weights {}x", 1, "error: --loss_weights must be a JSON object"),
    (
        '--loss_weights {"redirection_text_cosine":NaN}',
        1,
        "error: --loss_weights sets 'redirection_text_cosine' to",
    ),
]

ALL = """
import json, os, runpy, sys

script, cases = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, os.path.dirname(script))
for words in cases:
    sys.argv = [script, *words]
    print("case", file=sys.stderr)
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    print("code", code, file=sys.stderr)
"""


def test_mistakes_are_one_line_each_before_anything_slow(shell):
    """By one process, one after the other: most of the time that a program takes is its start."""
    write_table(shell.folder)
    cases = [[*TRAIN[1:], "--model", "no/such-model", *words.split(" ")] for words, _, _ in MISTAKES]
    done = shell("-c", ALL, shell.command, json.dumps(cases))
    said = [each.strip().splitlines() for each in done.stderr.split("case\n")[1:]]
    assert len(said) == len(MISTAKES), done.stderr[-3000:]
    for (words, code, line), lines in zip(MISTAKES, said, strict=True):
        *before, message, ended = lines
        assert message.startswith(line) and ended == f"code {code}", (words, lines)
        assert not any("Traceback" in each or each.startswith("error") for each in before), lines
    assert not list(shell.folder.rglob("*.safetensors"))


def test_the_other_programs_end_in_one_line_too(shell):
    for command, code, line in (
        (["safe-clip", "eval", "--max_samples", "x"], 2, "error: --max_samples: it must be a whole number, not 'x'."),
        (["safe-clip", "eval", "--strength", "nan"], 1, "error: --strength is nan; it must be from 0 to 1."),
        (
            ["safe-clip", "generate", "text_to_image", "--sides", "x"],
            1,
            "error: --sides x: it must be among unsafe, safe.",
        ),
        (["safe-clip", "cache", "--empty", "x"], 2, "error: --empty: it must be among 'embeddings', "),
        (["safe-clip", "export", "--format", "pickle"], 2, "error: --format: it must be among "),
        (
            ["safe-clip", "trian"],
            2,
            "error: safe-clip trian: there is no such command. Did you mean 'safe-clip train'?",
        ),
        # As earlier pages and cards have them.
        (["-m", "safe_clip.export", "--format", "pickle"], 2, "error: --format: it must be among "),
        (["-m", "safe_clip.data.fetch", "rows.csv"], 2, "error: the following arguments are required: --column"),
        (["-m", "safe_clip.data.audit", "--thresold", "1"], 2, "error: --thresold is no setting. Did you mean"),
    ):
        done = shell(*command)
        assert done.returncode == code and last_line(done).startswith(line), (command, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_person_s_ctrl_c_ends_a_real_program(shell):
    """Started as a shell does, which no helper of the tests has had its hands in."""
    write_table(shell.folder)
    process = subprocess.Popen(
        [sys.executable, shell.command, "train", "--max_steps", "3"],
        cwd=shell.folder,
        env=shell.environment | {"PYTHONWARNINGS": "ignore"},  # those of other libraries as they are imported
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("No --model or --dataset given")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "\ninterrupted.\n")
    assert os.listdir(shell.folder) == ["rows.csv"]


def test_what_was_trained_is_exported_and_data_are_audited(shell, model_dir):
    write_table(shell.folder)
    for words, said in (
        (["--version"], "safe-clip "),
        (
            ["export", "--model", model_dir, "--format", "open_clip", "--output_dir", "out"],
            " is in out/ for open_clip.",
        ),
        (["audit", "rows.csv"], "audit/ holds audit.json, with the numbers of all rows, and report.html."),
        (["cache"], "kind "),
        (["cache", "--empty", "audit"], "audit: "),
    ):
        done = shell("safe-clip", *words)
        assert done.returncode == 0 and said in done.stdout, (words, done.stderr[-3000:])
    assert (shell.folder / "out" / "open_clip_config.json").exists()
