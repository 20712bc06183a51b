"""What `safe-clip VERB --help` prints, and quick answers to misspelt flags, before anything slow is imported."""

import ast
import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from ..config import USAGE, OneLineParser, suggest
from ..errors import UserError

TRAINER_PAGE = "https://huggingface.co/docs/transformers/main_classes/trainer#transformers.TrainingArguments"
OWN = Path(__file__).parents[1] / "training" / "arguments.py"
KINDS = {"dict": "JSON", "bool": "BOOL", "float": "FLOAT", "int": "INT"}  # else a text


@dataclass(frozen=True)
class Setting:
    """A setting as `--help` shows it.

    Attributes:
        name: the flag without its dashes.
        default: what it is where nobody sets it; `None` for nothing.
        help: what it does.
        kind: the type that it was declared with, in words.
        switch: the flag alone turns it on.
    """

    name: str
    default: Any
    help: str
    kind: str = "bool"
    switch: bool = False

    def add_to(self, parser: Any) -> None:
        """Adds it to a parser or a group of one."""
        flags = [f"--{self.name}"] + [f"--no_{self.name}"] * (self.switch and self.default is True)
        if self.switch:
            parser.add_argument(*flags, dest=self.name, action="store_true", default=self.default, help=self.help)
            return
        value = next((word for kind, word in KINDS.items() if re.search(rf"\b{kind}\b", self.kind)), "TEXT")
        value += " ..." * ("list[" in self.kind and "str | " not in self.kind)
        parser.add_argument(*flags, default=self.default, help=self.help, metavar=value)


def settings_of(*classes: type) -> dict[str, Setting]:
    """The settings of dataclasses, by name."""
    found = {}
    for each in (each for settings in classes for each in fields(settings) if each.init):
        kind = each.type.__name__ if type(each.type) is type else str(each.type)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        default = None if default is MISSING else default
        found[each.name] = Setting(each.name, default, each.metadata["help"], kind, kind == "bool")
    return found


def training_settings() -> tuple[dict[str, Setting], dict[str, Setting] | None]:
    """Our own settings of training, and the others of `transformers`' Trainer.

    Both are read from their source: to import them takes many seconds. `None` where the source of `transformers` is
    not as it is known.
    """
    own = {each.name: each for each in _declared(OWN, "SafeCLIPTrainingArguments")}
    with contextlib.suppress(Exception):  # whatever another version of `transformers` has there
        (folder,) = importlib.util.find_spec("transformers").submodule_search_locations
        declared = _declared(Path(folder, "training_args.py"), "TrainingArguments")
        return own, {each.name: each for each in declared if each.name not in own} or None
    return own, None


def _declared(source: Path, name: str) -> Iterator[Setting]:
    """The fields of a dataclass, from its source."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    # What defaults are named after; of several, the last is that of the torch that this package requires.
    known = {
        node.targets[0].id: node.value
        for node in ast.walk(found)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in found.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Call):
            continue
        given = {each.arg: each.value for each in node.value.keywords}
        metadata = dict(zip((key.value for key in given["metadata"].keys), given["metadata"].values, strict=True))
        default = given.get("default")
        default = ast.literal_eval(known.get(getattr(default, "id", None), default)) if default else []
        kind, said = ast.unparse(node.annotation), ast.literal_eval(metadata["help"])
        # As HfArgumentParser has it.
        switch = kind == "bool" or (kind == "bool | None" and default is not None) or "nargs" in metadata
        yield Setting(node.target.id, default, said, kind, switch)


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.?!])\s+(?=[A-Z`'\"(])", text)[0]


class Help:
    """The help of a verb, and what its flags are.

    Args:
        verb: as it is typed, such as `"train"`.
        text: what it does, with commands to paste.
        groups: titles, each with the names of settings below it.
        settings: all that the verb has, by name.
        further: settings that are listed last, by their first sentences, under the title `title`; `None` where they
            are not known.
        what: what stands after the verb.
        recipes: what may stand there in place of a file of settings.
    """

    def __init__(
        self,
        verb: str,
        text: str,
        groups: Mapping[str, str],
        settings: Mapping[str, Setting],
        further: Mapping[str, Setting] | None = (),
        title: str = "",
        what: str = "[CONFIG.yaml] [--flag value ...]",
        recipes: Sequence[str] = (),
    ):
        self.recipes = list(recipes)
        self.parser = OneLineParser(usage=usage(verb, what), description=text.strip(), add_help=False)
        self.is_complete = further is not None
        further = dict(further or {})
        every = {**further, **settings}
        for name, members in groups.items():
            group = self.parser.add_argument_group(name)
            for member in members.split():
                if member in every or self.is_complete:
                    every.pop(member).add_to(group)
        rest = self.parser.add_argument_group(title) if title else self.parser
        for each in every.values():
            Setting(each.name, each.default, first_sentence(each.help), each.kind, each.switch).add_to(rest)
        if not self.is_complete:
            self.parser.epilog = f"The settings of transformers' Trainer are flags too: {TRAINER_PAGE}"

    def answer(self, flags: Sequence[str]) -> None:
        """Prints the help and ends, if it is asked for; raises `UserError` for a flag that is none."""
        if "--help" in flags or "-h" in flags:
            self.parser.print_help()
            sys.exit()
        if flags and not flags[0].startswith("-"):
            recipes = f", nor a recipe ({', '.join(self.recipes)})" if self.recipes else ""
            raise UserError(
                f"'{flags[0]}' is no YAML file of settings{recipes}.{suggest(flags[0], self.recipes)}", USAGE
            )
        known = {flag.replace("-", "_") for action in self.parser._actions for flag in action.option_strings}
        for word in flags if self.is_complete else ():
            if word.startswith("--") and word != "--" and word.partition("=")[0].replace("-", "_") not in known:
                self.parser.refuse(word)


def usage(verb: str, what: str) -> str:
    """How a verb is used, as it was called."""
    script = Path(sys.argv[0]).name
    return f"{script if script in ('train.py', 'eval.py') else f'safe-clip {verb}'} {what}"
