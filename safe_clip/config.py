"""Settings from a YAML file and from flags."""

import argparse
import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import old_names
from .errors import UserError
from .settings_file import read_settings

if TYPE_CHECKING:
    from transformers import HfArgumentParser

RECIPES = Path(__file__).parent / "configs"
USAGE = 2  # what programs end with where flags are wrong, by custom


def settings_parser(dataclasses: list[type]) -> "HfArgumentParser":
    """The parser that fills dataclasses."""
    from transformers import HfArgumentParser  # slow, and the rest of this file is needed before it

    class Parser(OneLineParser, HfArgumentParser):
        pass

    return Parser(dataclasses)


def parse_arguments(dataclasses: list[type], flags: list[str], yaml_file: Path | None = None) -> tuple[Any, ...]:
    """Fills dataclasses from a YAML file and from flags, which win.

    Args:
        dataclasses: the classes to fill.
        flags: command-line arguments.
        yaml_file: a mapping of setting names to values, any subset of the classes' fields.

    Raises:
        UserError: the file cannot be read, a setting has no such name, or a value is not what it takes.
    """
    parser = settings_parser(dataclasses)
    if yaml_file is not None:
        # As flags, so that the file's values are checked like those of the command line.
        flags = _as_flags(yaml_file, parser, dataclasses) + _warned_of_repeats(list(flags), parser)
    else:
        flags = _warned_of_repeats(list(flags), parser)
    try:
        *filled, unknown = parser.parse_args_into_dataclasses(
            flags, return_remaining_strings=True, look_for_args_file=False
        )
    except UserError:
        raise
    except ValueError as error:  # settings that contradict each other
        raise UserError(str(error)) from error
    if unknown:
        parser.refuse(unknown[0])
    return tuple(filled)


class OneLineParser(argparse.ArgumentParser):
    """A parser of flags whose errors are one line, and which takes no flag for another that it is the beginning of."""

    def __init__(self, *args: Any, **options: Any):
        options |= {"allow_abbrev": False, "formatter_class": HelpFormatter}
        super().__init__(*args, **options)
        # Numbers such as -1e-3 too are values, not flags.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$|-(inf|nan)$")

    @property
    def settings(self) -> list[str]:
        """The names of what can be set."""
        return [action.dest for action in self._actions if action.dest != "help"]

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        filled, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown[0])
        return filled

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        return super().parse_known_args(self._without_unset(sys.argv[1:] if args is None else args), namespace)

    def _without_unset(self, flags: Iterable[str]) -> list[str]:
        """Flags without those that are set to `none` or `null` again, where that is what they are by default."""
        given: list[tuple[Any, list[str]]] = []  # each flag's setting, with its words
        for word in flags:
            if word.startswith("--") or not given:
                given.append((self._option_string_actions.get(word.partition("=")[0]), [word]))
            else:
                given[-1][1].append(word)
        kept: list[tuple[Any, list[str]]] = []
        for action, words in given:
            _, equals, value = words[0].partition("=")
            values = [value, *words[1:]] if equals else words[1:]
            optional = action is not None and action.default is None and not action.required
            if optional and len(values) == 1 and values[0].lower() in ("none", "null"):
                kept = [each for each in kept if each[0] is not action]
            else:
                kept.append((action, words))
        return [word for _, words in kept for word in words]

    def refuse(self, word: str) -> NoReturn:
        """Raises `UserError` for a word that is no flag's."""
        if not word.startswith("-"):
            file = " A file of settings comes first, and ends in .yaml." if word.endswith((".yaml", ".yml")) else ""
            raise UserError(f"'{word}' belongs to no flag.{file} --help lists them all.", USAGE)
        name = word.partition("=")[0]
        raise UserError(
            f"{name} is no setting.{suggest(name.lstrip('-'), self.settings)} --help lists them all.", USAGE
        )

    def error(self, message: str) -> NoReturn:
        """Raises `UserError` in place of printing how every flag is used."""
        found = re.fullmatch(r"argument (?P<flags>\S+): (?P<what>.*)", message, flags=re.DOTALL)
        if found is None:
            raise UserError(f"{message}. --help lists all settings.", USAGE)
        what = found["what"]
        for pattern, plain in FAULTS.items():
            what = re.sub(pattern, plain, what, flags=re.DOTALL)
        raise UserError(f"{found['flags'].split('/')[0]}: {what.rstrip('.')}.", USAGE)


# What argparse says, in plain words.
FAULTS = {
    r"invalid int value: (.*)": r"it must be a whole number, not \1",
    r"invalid float value: (.*)": r"it must be a number, not \1",
    r"Truthy value expected: got (.*) but expected one of .*": r"it must be true or false, not '\1'",
    r"expected (?:one|at least one) argument": "a value must follow it",
    r"invalid choice: (.*) \(choose from (.*)\)": r"it must be among \2, not \1",
}


def split_config(argv: list[str], recipes: bool = False) -> tuple[Path | None, list[str]]:
    """Takes a leading YAML file off the flags, or the name of a recipe of training that comes with the package."""
    if not argv or argv[0].startswith("-"):
        return None, argv
    for recipe in RECIPES.glob("*.yaml") if recipes else ():
        # The last as recipes were named before they came with the package.
        named = argv[0] in (recipe.stem, recipe.name, f"configs/{recipe.name}")
        if named and not Path(argv[0]).is_file():
            return recipe, argv[1:]
    return (Path(argv[0]), argv[1:]) if argv[0].endswith((".yaml", ".yml")) else (None, argv)


def changed(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass that have another value than their default."""
    defaults = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(settings)
        if each.init
    }
    return {name: value for name in defaults if (value := getattr(settings, name)) != defaults[name]}


def as_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command."""
    words = []
    for name, value in settings.items():
        value = [json.dumps(value)] if isinstance(value, dict) else value if isinstance(value, list) else [str(value)]
        words += [f"--{name}", *value]
    return words


def json_object(option: str, value: dict | str | None) -> dict | None:
    """The object that a flag gives as JSON.

    Raises:
        UserError: it is no JSON object, or names something twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise UserError(f"{option} names '{twice[0]}' twice; leave one.")
        return dict(pairs)

    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=once)
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{option} must be a JSON object, not {value[:80]!r} ({error}).") from error
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{option} must be a JSON object, not {value!r}.")
    return value


def suggest(name: str, known: list[str]) -> str:
    """Which known name may have been meant, as a sentence after a space; nothing where none is like it."""
    if said := old_names.now(name.replace("-", "_"), known):
        return f" {said}"
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The description's lines as they are, and beside each setting its default, if it has one."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, max_help_position=32, **options)

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.required:
            return f"{action.help} (required)"
        shown = default_words(action.default)
        return (action.help or "") + (f" (default: {shown.replace('%', '%%')})" if shown else "")


def default_words(default: Any) -> str:
    """A default as `--help` shows it; nothing where it is none."""
    if default is None or default == argparse.SUPPRESS or default in ([], ""):
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)


def _as_flags(yaml_file: Path, parser: OneLineParser, dataclasses: list[type]) -> list[str]:
    """The settings of a file as flags.

    Raises:
        UserError: there is no such setting, or it does not take a list or a mapping.
    """
    # Of what has a `--no_` flag too, the first is the setting.
    actions = {each.dest: each for each in reversed(parser._actions) if each.default is not argparse.SUPPRESS}
    mappings = {each.name for kind in dataclasses for each in fields(kind) if "dict" in str(each.type)}
    mappings |= {name for kind in dataclasses for name in getattr(kind, "_VALID_DICT_FIELDS", ())}
    words = []
    for name, value in read_settings(yaml_file).items():
        action = actions.get(name)
        if action is None:
            raise UserError(f"{yaml_file} sets '{name}', which is no setting.{suggest(name, parser.settings)}", USAGE)
        if isinstance(value, dict) and name not in mappings:
            raise UserError(f"{yaml_file} sets '{name}' to a mapping, but it takes a single value.", USAGE)
        if isinstance(value, list) and (action.nargs != "+" or any(not isinstance(item, str) for item in value)):
            takes = "texts" if action.nargs == "+" else "a single value"
            raise UserError(f"{yaml_file} sets '{name}' to a list, but it takes {takes}.", USAGE)
        if getattr(action.type, "__name__", None) == "string_to_bool" and isinstance(value, str):
            value = {"on": "true", "off": "false"}.get(value.lower(), value)  # as YAML has them
        words += _flag(name, value)
    return words


def _flag(name: str, value: Any) -> list[str]:
    if value is None or value == []:
        return []
    if isinstance(value, list):
        return [f"--{name}", *value]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def _warned_of_repeats(flags: list[str], parser: OneLineParser) -> list[str]:
    """The same flags; says which of them stand there more than once, of which the last counts."""
    given = [parser._option_string_actions.get(word.partition("=")[0]) for word in flags if word.startswith("--")]
    for action, times in Counter(filter(None, given)).items():
        if times > 1:
            print(f"warning: --{action.dest} is given {times} times; the last counts.", file=sys.stderr)
    return flags
