"""The command itself: its verbs, their help, what a mistake is answered with, and how several processes start."""

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from safe_clip import SafeCLIPTrainingArguments, UserError, __version__
from safe_clip.cli import VERBS, main
from safe_clip.cli import app as app_verb
from safe_clip.cli import audit as audit_verb
from safe_clip.cli import embed as embed_verb
from safe_clip.cli import eval as eval_verb
from safe_clip.cli import export as export_verb
from safe_clip.cli import generate as generate_verb
from safe_clip.cli import help as help_page
from safe_clip.cli import launch as launching
from safe_clip.cli import train as train_verb
from safe_clip.config import default_words, settings_parser
from safe_clip.generation.arguments import GenerationArguments
from safe_clip.models.export import FORMATS

ROOT = Path(__file__).parents[2]
ALONE = ("audit", "app")  # which several processes cannot share
DATACLASSES = {
    "train": [train_verb.ScriptArguments, SafeCLIPTrainingArguments],
    "eval": [eval_verb.EvaluationArguments],
    "embed": [embed_verb.EmbedArguments],
    "generate": [generate_verb.ComparedGenerators, GenerationArguments],
    "app": [app_verb.AppArguments],
    "audit": [audit_verb.AuditArguments],
}
SLOW = ("torch", "transformers", "datasets", "numpy", "accelerate")


def printed(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    assert not ended.value.code
    return capsys.readouterr().out


def settings_in(text: str) -> dict[str, str]:
    """What a printed help lists, with the defaults that it shows, read as a person reads it."""
    listed = re.split(r"\n\n(?=[A-Z].*:\n  )", text, maxsplit=1)[1]
    found = {}
    for entry in re.split(r"\n(?=  -)", listed):
        if name := re.match(r"\s*(?:.*:\n)?  --(\w+)", entry):
            said = re.sub(r"-?\n\s+", lambda part: "-" if part[0][0] == "-" else " ", entry.partition("\n\n")[0])
            default = re.search(r"\(default: ((?:[^()]|\([^()]*\))*)\)$", said)
            found[name[1]] = default[1] if default else ""
    return found


@pytest.mark.parametrize("verb", DATACLASSES)
def test_the_help_has_every_setting_with_the_default_that_the_parser_has(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    found = settings_in(printed(capsys, verb, "--help"))
    actions = settings_parser(DATACLASSES[verb])._actions
    real = {action.dest: action for action in reversed(actions) if action.dest != "help"}
    others = set(launching.LAUNCH) if verb not in ALONE else set()
    assert found.keys() - others == real.keys() and others <= found.keys()
    # Of what is a switch, the parser's second flag, `--no_`, has the same default.
    assert {name: found[name] for name in real} == {name: default_words(real[name].default) for name in real}


@pytest.mark.parametrize("verb", DATACLASSES)
def test_the_help_knows_which_flags_take_a_value(verb):
    shown = {
        flag: action
        for action in helper(verb).parser._actions
        for flag in action.option_strings
        if action.dest != "help"
    }
    for action in settings_parser(DATACLASSES[verb])._actions:
        if action.dest == "help":
            continue
        own = [flag for flag in action.option_strings if "-" not in flag.removeprefix("--")]
        assert all(flag in shown for flag in own)
        alone = action.nargs == 0 or action.nargs == "?"
        if shown[own[0]].nargs == 0:
            assert alone, own  # a switch that the help shows can be given alone


def helper(verb: str) -> help_page.Help:
    return importlib.import_module(f"safe_clip.cli.{verb}").helper()


def test_own_settings_come_first_and_all_of_them_stand_in_a_group(capsys):
    text = printed(capsys, "train", "--help")
    titles = re.findall(r"^([A-Z].*):$", text, re.MULTILINE)
    assert titles[:3] == ["What is trained", "Data", "Objective"] and titles[-1] == "Of transformers' Trainer"
    own = help_page.training_settings()[0].keys() | help_page.settings_of(train_verb.ScriptArguments).keys()
    grouped = {name for members in train_verb.GROUPS.values() for name in members.split()}
    assert own <= grouped
    for verb in ("eval", "embed", "generate", "audit", "app"):
        groups = importlib.import_module(f"safe_clip.cli.{verb}").GROUPS
        settings = help_page.settings_of(*DATACLASSES[verb]).keys() | (set() if verb in ALONE else launching.LAUNCH)
        assert {name for members in groups.values() for name in members.split()} == settings


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_slow(verb):
    code = f"import sys\nfrom safe_clip.cli import main\ntry:\n    main(['{verb}', '--help'])\nexcept SystemExit:\n"
    code += f"    assert not set(sys.modules) & {set(SLOW)}, sys.modules\n"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and f"safe-clip {verb}" in done.stdout, done.stderr
    assert time.monotonic() - start < 10  # on a busy machine; 0.5 s on a quiet one


def test_a_trainer_that_cannot_be_read_is_named(capsys, monkeypatch):
    monkeypatch.setattr(help_page.importlib.util, "find_spec", lambda _: None)
    text = printed(capsys, "train", "--help")
    assert "--objective TEXT" in text and "--weight_decay" not in text and help_page.TRAINER_PAGE in text
    train_verb.helper().answer(["--weight_decay", "1"])  # which may be one


def test_a_misspelt_flag_is_answered_before_anything_slow():
    code = "import sys\nfrom safe_clip.cli import main\nfrom safe_clip import UserError\ntry:\n    main(sys.argv[1:])\n"
    code += f"except UserError as error:\n    print(error, error.code, set(sys.modules) & {set(SLOW)})\n"
    for words, said in (
        ("train --raet 1", "--raet is no setting. --help lists them all. 2 set()"),
        ("train paper --leaning-rate=1", "--leaning-rate is no setting. Did you mean 'learning_rate'? --help lists"),
        ("train papr", "'papr' is no YAML file of settings, nor a recipe (demo, paper, safer_clip, shield_clip). Did"),
        ("eval paper", "'paper' is no YAML file of settings. 2 set()"),
        ("train --no_objective", "--no_objective is no setting."),
        ("eval --tsks geometry", "--tsks is no setting. Did you mean 'tasks'?"),
        (
            "eval --generator x",
            "--generator is no setting of eval, but of safe-clip generate text_to_image and image_to",
        ),
        ("generate text_to_image --zero_shot x", "--zero_shot is no setting."),
        ("audit data --thresold 1", "--thresold is no setting. Did you mean 'threshold'?"),
        (
            "export --format pickle",
            "--format: it must be among 'transformers', 'open_clip', 'onnx', not 'pickle'. 2 set()",
        ),
        ("fetch rows.csv --output_dir x", "the following arguments are required: --column."),
        ("search --index x --kk 3 dog", "--kk is no setting."),
        ("cache --older_than soon", "--older_than: it must be a number, not 'soon'. 2 set()"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *words.split()], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.startswith(said) and done.stdout.endswith("2 set()\n"), (words, done.stdout, done.stderr)


def test_export_names_the_formats_that_there_are():
    assert list(export_verb.FORMATS) == list(FORMATS)


# ---- Verbs ----


def test_the_command_alone_lists_its_verbs_and_two_commands_to_paste(capsys):
    main([])
    alone = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == alone
    assert all(re.search(rf"^  {verb} +\w", alone, re.MULTILINE) for verb in VERBS)
    assert re.findall(r"^  (safe-clip \w+) {2,}", alone, re.MULTILINE) == ["safe-clip train", "safe-clip eval"]
    main(["--version"])
    assert capsys.readouterr().out == f"safe-clip {__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], r"safe-clip trian: there is no such command. Did you mean 'safe-clip train'\?"),
        (
            ["pictures"],
            "safe-clip pictures: there is no such command. It must be among train, eval, embed, search, generate",
        ),
        (["--model", "x"], "safe-clip --model: there is no such command"),
        (["generate"], "safe-clip generate requires a task: text_to_image or image_to_text comes first"),
        (["generate", "text2image"], r"there is no such task. Did you mean 'text_to_image'\?"),
        (["generate", "--model", "x"], "safe-clip generate requires a task"),
    ],
)
def test_what_is_no_command_is_told_with_what_is(words, said):
    with pytest.raises(UserError, match=said) as error:
        main(words)
    assert error.value.code == 2 and "\n" not in str(error.value)


def test_every_verb_says_how_it_was_called():
    for command, said in (
        ([ROOT / "train.py"], "usage: train.py [CONFIG.yaml]"),
        ([ROOT / "eval.py"], "usage: eval.py [CONFIG.yaml]"),
        (["-m", "safe_clip", "train"], "usage: safe-clip train [CONFIG.yaml]"),
        (["-m", "safe_clip.data.audit"], "usage: safe-clip audit "),
        (["-m", "safe_clip.data.fetch"], "usage: safe-clip fetch DATASET "),
        (["-m", "safe_clip.export"], "usage: safe-clip export --format "),
        (["-m", "safe_clip.store"], "usage: safe-clip cache "),
    ):
        done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith(said) and not done.stderr, (command, done)


# ---- Several processes ----


def test_recipes_of_accelerate_start_a_verb_in_processes(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    flags = ["paper", "--accelerate_config", "ddp", "--dataset", "x", "--num-processes=2"]
    launching.launch("train", flags)
    (words,) = started
    assert words[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert words[-5:] == ["safe_clip", "train", "paper", "--dataset", "x"]
    read = launch_command_parser().parse_args(words[3:])
    assert Path(read.config_file).name == "ddp.yaml" and Path(read.config_file).is_file() and read.module
    assert (read.num_processes, read.training_script) == (2, "safe_clip")
    own = tmp_path / "own.yaml"
    own.write_text("num_processes: 1\n")
    launching.launch("eval", ["--accelerate_config", str(own)])
    assert started[1][4] == str(own)
    launching.launch("train", ["--max_steps", "1"])
    assert len(started) == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--accelerate_config", "dpp"], r"--accelerate_config dpp: it must be a file, or among .* Did you mean 'ddp'"),
        (["--accelerate_config"], "--accelerate_config: a value must follow it"),
        (["--accelerate_config", "--max_steps"], "--accelerate_config: a value must follow it"),
        (["--num_processes", "2"], "--num_processes requires --accelerate_config, such as --accelerate_config ddp"),
    ],
)
def test_how_not_to_start_several_processes(flags, said):
    with pytest.raises(UserError, match=said) as error:
        launching.launch("train", flags)
    assert error.value.code == 2


def test_settings_of_starting_are_none_of_a_verb():
    for classes in DATACLASSES.values():
        assert not launching.LAUNCH.keys() & {action.dest for action in settings_parser(classes)._actions}


@pytest.mark.slow
def test_two_processes_train_from_a_recipe(model_dir, dataset_dir, tmp_path):
    flags = ["--model", model_dir, "--dataset", dataset_dir, "--max_steps", "1", "--per_device_train_batch_size", "4"]
    flags += ["--report_to", "none", "--accelerate_config", "two_cpus", "--use_cpu", "--output_dir", "out"]
    flags += ["--eval_splits", "test"]
    done = subprocess.run(
        [sys.executable, "-m", "safe_clip", "train", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    settings = json.loads((tmp_path / "out" / "results.json").read_text())
    assert settings["after"] and (tmp_path / "out" / "model.safetensors").exists()
    assert done.stdout.count("The model is in out.") == 1
