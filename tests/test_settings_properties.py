"""Whatever settings are given, they are taken, or one line says what is wrong with which."""

import contextlib
import json
import math
from dataclasses import fields

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from safe_clip import SafeCLIPTrainingArguments, UserError
from safe_clip.cli.eval import EvaluationArguments
from safe_clip.cli.train import ScriptArguments
from safe_clip.config import parse_arguments
from safe_clip.data.arguments import DataArguments
from safe_clip.generation.arguments import GenerationArguments
from safe_clip.ranges import check_ranges
from safe_clip.settings_file import read_settings

QUICK = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**32, 10**400, 1e308, -0.0, math.inf, -math.inf, math.nan, True]),
)
ANYTHING = st.one_of(NUMBERS, st.text(max_size=20), st.lists(st.integers(), max_size=3), st.none())


def one_line(error, name):
    said = str(error)
    assert "\n" not in said and 0 < len(said) < 500 and f"--{name}" in said, said


@QUICK
@given(name=st.sampled_from(sorted(SafeCLIPTrainingArguments.RANGES)), value=st.one_of(NUMBERS, st.text(max_size=5)))
@example(name="ddp_timeout", value=10**9)
@example(name="warmup_steps", value=1.5)
def test_a_number_is_taken_or_named(name, value):
    try:
        args = SafeCLIPTrainingArguments("out", report_to="none", **{name: value})
    except UserError as error:
        one_line(error, name)
    else:
        assert isinstance(value, int | float) and math.isfinite(value)
        assert args.ddp_timeout_delta.total_seconds() > 0 and args.get_warmup_steps(10) >= 0


@QUICK
@given(kind=st.sampled_from([0, 1, 2]), data=st.data())
def test_the_settings_of_the_other_programs_too(kind, data):
    chosen = (ScriptArguments, EvaluationArguments, GenerationArguments)[kind]
    name = data.draw(st.sampled_from(sorted(chosen.RANGES)))
    value = data.draw(st.one_of(NUMBERS, st.text(max_size=5)))
    holder = type("Holder", (), dict.fromkeys(chosen.RANGES) | {name: value})
    try:
        check_ranges(holder, chosen.RANGES)
    except UserError as error:
        one_line(error, name)
    else:
        assert chosen.RANGES[name].low <= value < math.inf


WORDS = sorted(
    each.name
    for each in fields(SafeCLIPTrainingArguments)
    # What starts or changes something outside of the settings, or is asked for by its name alone.
    if each.init and each.name not in ("tf32", "full_determinism", "torch_compile", "deepspeed", "parallelism_config")
)


@QUICK
@given(name=st.sampled_from(WORDS), value=ANYTHING)
def test_any_value_of_any_setting_is_taken_or_one_line(name, value):
    with contextlib.suppress(UserError):
        SafeCLIPTrainingArguments(**{"output_dir": "out", "report_to": "none", name: value})


NESTED = st.recursive(ANYTHING, lambda inner: st.dictionaries(st.text(max_size=3), inner), max_leaves=5)
YAML_TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.tuples(st.sampled_from([*WORDS[:20], "on", "1", "null", "<<", "max_steps"]), st.text(max_size=12)),
        max_size=4,
    ).map(lambda pairs: "".join(f"{name}: {value}\n" for name, value in pairs)),
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(ANYTHING, lambda inner: st.dictionaries(st.text(max_size=3), inner), max_leaves=5),
    ).map(yaml.safe_dump),
    st.binary(max_size=60),
)


@QUICK
@given(content=YAML_TEXT)
def test_any_file_of_settings_is_read_or_one_line(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    try:
        read = read_settings(file)
    except UserError as error:
        assert "\n" not in str(error) and str(file) in str(error)
        return
    assert all(isinstance(name, str) for name in read)
    with contextlib.suppress(UserError):
        parse_arguments([DataArguments], [], file)


@QUICK
@given(
    mapping=st.dictionaries(
        st.text(st.characters(categories=["L"], max_codepoint=1000), min_size=1),
        st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**15), 10**15), st.booleans()),
    )
)
def test_numbers_of_a_mapping_are_what_they_were(mapping, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "mapping.yaml"
    for written in (json.dumps({"a": mapping}), yaml.safe_dump({"a": mapping})):
        file.write_text(written)
        assert read_settings(file) == {"a": mapping}


@QUICK
@given(flags=st.lists(st.one_of(st.text(max_size=10), st.sampled_from(["--seed", "--max_steps", "--", "-1", "--x=1"]))))
@example(flags=["--seed"])
@example(flags=["--seed", "1", "--seed", "2"])
@example(flags=["--"])
def test_any_flags_are_taken_or_one_line(flags):
    if any(flag in ("-h", "--help") for flag in flags):
        return
    with contextlib.suppress(UserError):
        parse_arguments([DataArguments], flags)
