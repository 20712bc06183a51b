import importlib
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from transformers import SchedulerType, TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, IntervalStrategy
from transformers.training_args import OptimizerNames

from safe_clip import SafeCLIPTrainingArguments, UserError
from safe_clip.cli import eval as evaluation
from safe_clip.cli import train
from safe_clip.config import parse_arguments
from safe_clip.objectives import build_objective
from safe_clip.old_names import DROPPED, RENAMED

MODULES = [
    "safe_clip.cli.train",
    "safe_clip.cli.eval",
    "safe_clip.cli.audit",
    "safe_clip.cli.fetch",
    "safe_clip.cli.export",
]
CONFIGS = Path(__file__).parent.parent / "safe_clip" / "configs"


@dataclass
class Settings:
    rate: float = field(default=1.0)
    name: str = field(default="x")
    fast: bool = field(default=False)
    kind: str = field(default="a")
    several: list[str] | None = field(default=None)

    def __post_init__(self):
        if self.kind == "z":
            raise ValueError("z is no kind")


def parse(tmp_path, text, *flags):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    (settings,) = parse_arguments([Settings], list(flags), path)
    return settings


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    settings = parse(tmp_path, "rate: 1e-3\nfast: true\n", "--name", "y")
    assert settings == Settings(rate=1e-3, name="y", fast=True)
    assert parse(tmp_path, "rate: 2\n", "--rate", "3").rate == 3
    assert parse(tmp_path, "several: [a, b]\nname: null\n") == Settings(several=["a", "b"])
    assert parse(tmp_path, "several: test\n").several == ["test"]


def test_none_and_null_unset_what_the_file_sets(tmp_path):
    text = "several: [a, b]\nname: y\n"
    for word in ("none", "null", "None"):
        assert (
            parse(tmp_path, text, "--several", word) == parse(tmp_path, text, f"--several={word}") == Settings(name="y")
        )
    assert parse(tmp_path, text, "--several", "none", "--several", "c").several == ["c"]
    assert parse(tmp_path, text, "--several", "c", "none").several == ["c", "none"]
    assert parse(tmp_path, text, "--name", "none").name == "none"  # which is no setting that can be left out
    with pytest.raises(UserError, match="--rate: it must be a number, not 'none'"):
        parse(tmp_path, text, "--rate", "none")


def test_training_without_what_a_recipe_sets():
    flags = ["--early_stopping_patience", "null", "--logit_scale=none", "--bf16", "none", "--report_to", "none"]
    _, args = parse_arguments([train.ScriptArguments, SafeCLIPTrainingArguments], flags, CONFIGS / "paper.yaml")
    assert args.early_stopping_patience is None and args.logit_scale is None and args.report_to == []
    assert args.num_train_epochs == 50


@pytest.mark.parametrize("program", MODULES)
def test_help_can_be_formatted(program, capsys):
    main = importlib.import_module(program).main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    said = capsys.readouterr().out
    assert not ended.value.code and "--output_dir" in said and len(said.splitlines()) > 20


def test_values_of_the_file_are_checked_like_flags(tmp_path, capsys):
    with pytest.raises(UserError, match="^--rate: it must be a number, not 'fast'.$") as error:
        parse(tmp_path, "rate: fast\n")
    assert error.value.code == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("rait: 1", [], r"settings.yaml sets 'rait', which is no setting. Did you mean 'rate'\?"),
        ("rate: 1", ["--raet", "2"], r"--raet is no setting. Did you mean 'rate'\? --help lists them all."),
        ("- rate", [], "must hold `name: value` lines"),
        ("rate: [", [], "settings.yaml is not YAML"),
        ("kind: z", [], "is no kind"),
    ],
)
def test_bad_settings(tmp_path, text, flags, message):
    with pytest.raises(UserError, match=message):
        parse(tmp_path, text, *flags)


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match="nowhere.yaml cannot be read: No such file"):
        parse_arguments([Settings], [], Path("nowhere.yaml"))


def test_loss_weights_from_flags_and_from_files(tmp_path):
    flags = ["--loss_weights", '{"redirection_image_ranking": 0.4}', "--output_dir", str(tmp_path)]
    (args,) = parse_arguments([SafeCLIPTrainingArguments], flags)
    assert args.loss_weights == {"redirection_image_ranking": 0.4}
    path = tmp_path / "settings.yaml"
    path.write_text("loss_weights:\n  redirection_text_ranking: 0\n")
    (args,) = parse_arguments([SafeCLIPTrainingArguments], ["--output_dir", str(tmp_path)], path)
    assert args.loss_weights == {"redirection_text_ranking": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_weights": {"redirect": 1}}, "--loss_weights names 'redirect'"),
        ({"loss_weights": "high"}, "--loss_weights must be a JSON object"),
        ({"logit_scale": 0.0}, "--logit_scale is 0.0; it must be above 0"),
        ({"early_stopping_patience": 3}, "--early_stopping_patience requires --load_best_model_at_end"),
        ({"neftune_noise_alpha": 5.0}, "--neftune_noise_alpha is for language models"),
        ({"torch_compile_mode": "x"}, "--torch_compile_mode x: .*mode"),
        ({"torch_compile_backend": "x"}, "--torch_compile_backend x: it must be among .*inductor"),
        ({"optim_args": "zz"}, "--optim_args zz: it must be NAME=VALUE,NAME=VALUE, and 'zz' is none"),
        ({"accelerator_config": {"zz": True}, "seed": 3}, "^--accelerator_config {'zz': True}: .*'zz'$"),
        ({"warmup_ratio": 0.1}, "^warmup_ratio is no setting .* It is called warmup_steps now .below 1"),
        ({"group_by_length": True}, r"It is called train_sampling_strategy now \(group_by_length\).$"),
        ({"logging_dir": "logs"}, "environment variable TENSORBOARD_LOGGING_DIR"),
        ({"evaluation_strategy": "no"}, "It is called eval_strategy now.$"),
        ({"leaning_rate": 1e-3}, "Did you mean 'learning_rate'"),
        ({"remove_unused_columns": True}, "--remove_unused_columns must stay off"),
    ],
)
def test_bad_training_arguments(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        SafeCLIPTrainingArguments(output_dir=str(tmp_path), **settings)


@pytest.mark.parametrize(
    "taken",
    [
        {"fsdp": False},
        {"fsdp": []},
        {"debug": None},
        {"debug": [DebugOption.UNDERFLOW_OVERFLOW]},
        {"optim": OptimizerNames.SGD},
        {"eval_strategy": IntervalStrategy.NO},
        {"hub_strategy": HubStrategy.END},
        {"lr_scheduler_type": SchedulerType.LINEAR},
        {"lr_scheduler_kwargs": {}},
        {"accelerator_config": AcceleratorConfig()},
        {"accelerator_config": {"split_batches": False}},
        {"report_to": []},
        {"report_to": None},
        {"include_num_input_tokens_seen": True},
        {"max_grad_norm": None},
        {"resume_from_checkpoint": True},
        {"hub_token": True},
        {"trackio_static_space_id": False},
        {"output_dir": Path("out")},
        {"warmup_steps": 10},
    ],
    ids=str,
)
def test_what_transformers_takes_is_taken(taken):
    args = SafeCLIPTrainingArguments(**{"output_dir": "out", "report_to": "none"} | taken)
    TrainingArguments(**{"output_dir": "out", "report_to": "none"} | taken)
    assert args.output_dir is not None


def test_fsdp_is_true_or_a_text_as_of_transformers():
    for value in (True, "full_shard"):
        with pytest.raises(UserError, match="--fsdp requires several processes"):  # and not: another type
            SafeCLIPTrainingArguments("out", fsdp=value)
    with pytest.raises(UserError, match="--fsdp is 3; it must be a text"):
        SafeCLIPTrainingArguments("out", fsdp=3)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("no_cuda", "use_cpu"),
        ("push_to_hub_token", "hub_token"),
        ("use_mps_device", "leave it out"),
        ("warmup-ratio", "warmup_steps"),
        ("cache_pictures", "cache_images"),
        ("generators", "hidden_state_terms"),
        ("no_generators", "--no_hidden_state_terms"),
    ],
)
def test_old_names_on_the_command_line_and_in_files(old, now, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(f"{old}: 1\n")
    for flags, path in ([f"--{old}", "1"], None), ([], file):
        with pytest.raises(UserError, match=rf"is no setting.*{now}") as error:
            parse_arguments([SafeCLIPTrainingArguments], flags, path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("old", "now"), [("task", "tasks"), ("missing_pictures", "missing_images")])
def test_old_names_of_evaluation(old, now):
    with pytest.raises(UserError, match=f"--{old} is no setting. It is called {now} now."):
        parse_arguments([evaluation.EvaluationArguments], [f"--{old}", "skip"])


@pytest.mark.parametrize("old", [*RENAMED, *DROPPED])
def test_old_names_are_none_that_there_are(old):
    kinds = SafeCLIPTrainingArguments, train.ScriptArguments, evaluation.EvaluationArguments
    known = [each.name for kind in kinds for each in fields(kind)]
    assert old not in known and (old in DROPPED or RENAMED[old][0] in known)


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_parse(config, tmp_path):
    script, args = parse_arguments(
        [train.ScriptArguments, SafeCLIPTrainingArguments],
        ["--model", "demo", "--dataset", "demo", "--max_steps", "2"],
        config,
    )
    assert args.learning_rate > 0 and script.lora_r > 0
    built = build_objective(args.objective, 1.0, args.term_weights, args.objective_options)
    assert built.weights and config.stem in ("demo", "paper", args.objective)


def test_the_demo_trains_for_as_long_as_others_are_told():
    _, args = parse_arguments([train.ScriptArguments, SafeCLIPTrainingArguments], [], train.DEMO_CONFIG)
    assert args.max_steps == train.USUAL_STEPS


def test_the_paper_s_recipe():
    script, args = parse_arguments([train.ScriptArguments, SafeCLIPTrainingArguments], [], CONFIGS / "paper.yaml")
    assert script.model == "openai/clip-vit-large-patch14"
    assert (script.lora_r, script.lora_alpha, script.lora_dropout) == (16, 1, 0.1)
    assert (args.learning_rate, args.lr_scheduler_type, args.weight_decay) == (1e-3, "constant", 0)
    assert (args.logit_scale, args.num_train_epochs, args.early_stopping_patience) == (100, 50, 5)
    assert args.objective == "safe_clip"
    assert args.loss_weights is None and args.max_grad_norm == 0
