"""Files of settings as people write them, and what is wrong with some."""

import pytest

from safe_clip import SafeCLIPTrainingArguments, UserError
from safe_clip.config import json_object, parse_arguments
from safe_clip.settings_file import read_settings


def read(tmp_path, content):
    file = tmp_path / "settings.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_settings(file)


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (
            "a: 1e-4\nb: off\nc: 2024-01-01\nd: 0x10\ne: no\n",
            {"a": "1e-4", "b": "off", "c": "2024-01-01", "d": "0x10", "e": "no"},
        ),
        ("a: null\nb: ~\nc:\nd: 'null'\n", {"a": None, "b": None, "c": None, "d": "null"}),
        ("a: [x, 1, yes]\n", {"a": ["x", "1", "yes"]}),
        (
            "a: {b: 1e-4, c: 2, d: '3', e: true, f: x, g: .5, h: ~, i: [1, {j: 2}]}\n",
            {"a": {"b": 1e-4, "c": 2, "d": "3", "e": True, "f": "x", "g": 0.5, "h": None, "i": [1, {"j": 2}]}},
        ),
        ("x: &x {b: 1, c: 2}\ny: {<<: *x, c: 3}\n", {"x": {"b": 1, "c": 2}, "y": {"b": 1, "c": 3}}),
        ("1: a\non: b\nnull: c\n2024-01-01: d\n", {"1": "a", "on": "b", "null": "c", "2024-01-01": "d"}),
        ("\ufeffa: ü\n", {"a": "ü"}),
        ("a: ü\n".encode("utf-16"), {"a": "ü"}),
    ],
)
def test_values_are_kept_as_they_are_written(tmp_path, content, settings):
    assert read(tmp_path, content) == settings


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must hold `name: value` lines"),
        ("- a\n", "must hold `name: value` lines"),
        ("a", "must hold `name: value` lines"),
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is set twice; leave one"),
        ("a:\n  b: 1\n  b: 2\n", "line 3: 'a.b' is set twice"),
        ("a:\n\tb: 1\n", "is not YAML: .*'\\\\t'"),
        ("a: 1\n---\na: 2\n", "is not YAML: expected a single document"),
        ("a: caf\xe9\n".encode("latin-1"), "line 1: this is not UTF-8, which YAML is in"),
        (b"a: \x00\n", "is not YAML: "),
        ("{a: 1}: 2\n", "line 1: a name must be a word"),
        (BOMB, "more than 10,000 values"),
        ("a: &a [*a]\n", "more than 10,000 values|nested too deep"),
        ("a: &a {<<: *a}\n", "more than 10,000 values|nested too deep"),
        ("a: " + "[" * 5000, "nested too deep"),
        ("#" * 1_000_001, "larger than 1,000,000 bytes"),
        ("a: *b\n", "is not YAML: found undefined alias"),
    ],
)
def test_what_is_no_file_of_settings_is_one_line(tmp_path, content, said):
    with pytest.raises(UserError, match=said) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value) and "settings.yaml" in str(error.value) and len(str(error.value)) < 400


def test_what_is_no_file(tmp_path):
    for file, said in (
        (tmp_path / "nowhere.yaml", "cannot be read: No such file"),
        (tmp_path, "is not a file of settings"),
        (tmp_path / "nul\0.yaml", "cannot be read"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
    ):
        with pytest.raises(UserError, match=said):
            read_settings(file)


def parse(tmp_path, text, *flags):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return parse_arguments([SafeCLIPTrainingArguments], ["--output_dir", str(tmp_path), *flags], file)[0]


def test_words_that_yaml_reads_as_booleans_are_what_the_setting_takes(tmp_path):
    args = parse(
        tmp_path,
        "cache_images: off\nreference_cache: off\neval_strategy: no\nhidden_state_terms: off\nbf16: no\n"
        "dataloader_persistent_workers: on\nlearning_rate: 1e-4\nlog_level: passive\nhub_token: 12\n",
    )
    assert (args.cache_images, args.reference_cache, args.eval_strategy.value) == ("off", "off", "no")
    assert args.hidden_state_terms is False and args.bf16 is False
    assert args.learning_rate == 1e-4 and args.hub_token == "12"


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("max_steps: [1, 2]\n", [], "sets 'max_steps' to a list, but it takes a single value"),
        ("max_steps: {a: 1}\n", [], "sets 'max_steps' to a mapping, but it takes a single value"),
        ("report_to: {a: 1}\n", [], "sets 'report_to' to a mapping"),
        ("max_steps: yes\n", [], "--max_steps: it must be a whole number, not 'yes'"),
        ("bf16: maybe\n", [], "--bf16: it must be true or false, not 'maybe'"),
        ("on: 1\n", [], "sets 'on', which is no setting"),
        ("help: true\n", [], "sets 'help', which is no setting"),
        ("", ["--learning_rate"], "must hold"),
        ("seed: 1\n", ["--learning_rate"], "--learning_rate: a value must follow it"),
        ("seed: 1\n", ["--learning", "1"], "--learning is no setting. .*--help lists them all"),
        ("seed: 1\n", ["--leaning_rate=1"], "--leaning_rate is no setting. Did you mean 'learning_rate'"),
        ("seed: 1\n", ["--learning_rate", "-1e-3"], "--learning_rate is -0.001; it must be above 0"),
        ("seed: 1\n", ["--seed", "1", "rows.csv"], "'rows.csv' belongs to no flag"),
        ("seed: 1\n", ["--seed", "1", "b.yaml"], "A file of settings comes first"),
        ("loss_weights: {preservation_text_cosine: high}\n", [], "to 'high'; a weight is a number"),
    ],
)
def test_mistakes_are_one_line_and_end_with_2_where_they_are_of_flags(tmp_path, text, flags, said, capsys):
    with pytest.raises(UserError, match=said) as error:
        parse(tmp_path, text, *flags)
    assert capsys.readouterr().err == "" and "\n" not in str(error.value)
    if "setting" in said or "must be a whole" in said:
        assert error.value.code == 2


def test_a_flag_that_is_given_twice_is_said(tmp_path, capsys):
    args = parse(tmp_path, "seed: 1\n", "--seed=2", "--max_steps", "3", "--seed", "4")
    assert args.seed == 4 and args.max_steps == 3
    assert capsys.readouterr().err == "warning: --seed is given 2 times; the last counts.\n"
    parse(tmp_path, "seed: 1\n", "--seed=2")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("5", "must be a JSON object, not 5"),
        ("[1]", "must be a JSON object"),
        ("{", "must be a JSON object, not '{' "),
        ('{"a": 1, "a": 2}', "--x names 'a' twice"),
        ("[" * 100_000, "must be a JSON object"),
        ("", "must be a JSON object, not ''"),
    ],
)
def test_what_is_no_json_object(value, said):
    with pytest.raises(UserError, match=said) as error:
        json_object("--x", value)
    assert len(str(error.value)) < 300
    assert json_object("--x", '{"a": 1}') == {"a": 1} and json_object("--x", None) is None
