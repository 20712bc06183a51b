"""A YAML file of settings, read into words for the command line's parser."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

LARGEST = 1_000_000  # bytes of a file of settings
MOST = 10_000  # values of one, each counted as often as an alias repeats it
MERGE = "tag:yaml.org,2002:merge"
PLAIN = "tag:yaml.org,2002:"


def read_settings(file: Path) -> dict[str, Any]:
    """The settings of a YAML file, by name.

    Values are kept as they are written, since they are then checked like flags, which is where `off`, `1e-4` or a date
    is read as what the setting takes; only within mappings, which are given on as JSON, they are numbers and booleans.

    Returns:
        For each name a text, a list of texts, a mapping, or `None` for what is left empty.

    Raises:
        UserError: the file cannot be read, is no YAML, or names a setting twice.
    """
    try:
        node = yaml.compose(_text(file), Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{file} must hold `name: value` lines.")
        reader = _Reader(file)
        return {name: reader.value(value, name) for name, value in reader.pairs(node)}
    except RecursionError as error:
        raise UserError(f"{file} is nested too deep for a file of settings.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {' '.join(str(error).split())}.") from error


class _Reader:
    """Makes values of YAML's nodes, of as many as a file of settings may have."""

    def __init__(self, file: Path):
        self.file, self.left = file, MOST

    def pairs(self, node: yaml.MappingNode, inside: str = "") -> Iterator[tuple[str, yaml.Node]]:
        """The names and values of a mapping; those that it merges from others (`<<`) come first, and lose."""
        names = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a name must be a word")
            if key.tag != MERGE and key.value in names:
                raise self._error(key, f"'{inside}{key.value}' is set twice; leave one")
            names.add(key.value)
        for key, value in node.value:
            if key.tag == MERGE:
                self._count(value)
                # Of several, the first wins.
                for each in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(each, yaml.MappingNode):
                        raise self._error(value, "`<<` takes mappings")
                    yield from self.pairs(each, inside)
        yield from ((key.value, value) for key, value in node.value if key.tag != MERGE)

    def value(self, node: yaml.Node, name: str) -> Any:
        """A setting as it is written."""
        self._count(node)
        if isinstance(node, yaml.MappingNode):
            return self._typed(node, name)
        if isinstance(node, yaml.SequenceNode):
            if any(not isinstance(each, yaml.ScalarNode) for each in node.value):
                return [self._typed(each, name) for each in node.value]
            return [each.value for each in node.value if not self._count(each)]
        return None if node.tag == PLAIN + "null" else node.value

    def _typed(self, node: yaml.Node, name: str) -> Any:
        """A part of a mapping, as JSON has it."""
        self._count(node)
        if isinstance(node, yaml.MappingNode):
            return {key: self._typed(value, f"{name}.{key}") for key, value in self.pairs(node, f"{name}.")}
        if isinstance(node, yaml.SequenceNode):
            return [self._typed(each, name) for each in node.value]
        if node.tag == PLAIN + "null":
            return None
        if node.tag == PLAIN + "bool":
            return yaml.SafeLoader.bool_values[node.value.lower()]
        if node.style is None:  # in no quotes: a number where Python reads one, among them 1e-4, a text for YAML 1.1
            for number in (int, float):
                with contextlib.suppress(ValueError):
                    return number(node.value)
        return node.value

    def _count(self, node: yaml.Node) -> None:
        self.left -= 1
        if self.left < 0:
            raise self._error(node, f"there are more than {MOST:,} values, with what aliases repeat")

    def _error(self, node: yaml.Node, what: str) -> UserError:
        return UserError(f"{self.file}, line {node.start_mark.line + 1}: {what}.")


def _text(file: Path) -> str:
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is not a file of settings, but a folder or device.")
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # the latter of a name that no file can have
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > LARGEST:
        raise UserError(f"{file} is larger than {LARGEST:,} bytes, so that it is hardly a file of settings.")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: this is not UTF-8, which YAML is in; save the file as UTF-8.") from error
