"""Settings from a YAML file and from flags."""

import argparse
import difflib
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError


def parse_arguments(
    dataclasses: list[type], flags: list[str], yaml_file: Path | None = None, **parser_options
) -> tuple[Any, ...]:
    """Fills dataclasses from a YAML file and from flags, which win.

    Args:
        dataclasses: the classes to fill.
        flags: command-line arguments.
        yaml_file: a mapping of setting names to values, any subset of the classes' fields.
        **parser_options: passed to `argparse.ArgumentParser`.

    Raises:
        UserError: the file cannot be read, or a setting has no such name.
    """
    from transformers import HfArgumentParser  # slow, and the rest of this file is wanted before it

    parser = HfArgumentParser(dataclasses, formatter_class=_HelpFormatter, **parser_options)
    known = [action.dest for action in parser._actions]
    if yaml_file is not None:
        settings = _read(yaml_file)
        for name in settings:
            if name not in known:
                raise UserError(f"{yaml_file} sets '{name}', which is no setting.{_suggest(name, known)}")
        # As flags, so that the file's values are checked like those of the command line.
        flags = [word for name, value in settings.items() for word in _flag(name, value)] + list(flags)
    try:
        *filled, unknown = parser.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:  # settings that contradict each other
        raise UserError(str(error)) from error
    if unknown:
        raise UserError(f"{unknown[0]} is no setting.{_suggest(unknown[0].lstrip('-'), known)} --help lists them all.")
    return tuple(filled)


def split_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Takes a leading YAML file off the flags."""
    if argv and argv[0].endswith((".yaml", ".yml")):
        return Path(argv[0]), argv[1:]
    return None, argv


def changed(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that have another value than their default."""
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(settings)
        if each.init
    }
    return {name: value for name in defaults if (value := getattr(settings, name)) != defaults[name]}


def json_object(option: str, value: dict | str | None) -> dict | None:
    """The object that a flag gives as JSON.

    Raises:
        UserError: it is no JSON object.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{option} is not JSON ({error}).") from error
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{option} must be a JSON object, not {value!r}.")
    return value


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the settings, and the description's lines as they are."""


def _flag(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    return [f"--{name}", *(str(item) for item in (value if isinstance(value, list) else [value]))]


def _read(yaml_file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(yaml_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{yaml_file} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{yaml_file} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{yaml_file} must hold `name: value` lines.")
    return settings


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""
