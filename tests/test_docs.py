"""README, CONTRIBUTING and docs/: what they tell people to type, their links and their site."""

import argparse
import ast
import operator
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

import safe_clip
from safe_clip.cli import VERBS, main
from safe_clip.cli.launch import LAUNCH

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOORS = {"train.py": "train", "eval.py": "eval"}
OF_LAUNCHERS = {"--config_file", "--nproc_per_node", *(f"--{name}" for name in LAUNCH)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def spans(page: Path) -> list[str]:
    """What stands between backticks in the text, on one line."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


def typed(page: Path) -> Iterator[list[str]]:
    """The words of each command of a page, in its blocks and in its text."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *spans(page)]:
        if not re.match(r"(safe-clip|python3?|\.venv|accelerate|torchrun|bash) ", line) or "VERB" in line:
            continue
        for command in re.split(r" && | \| ", line):
            yield shlex.split(command.replace("…", ""), comments=True)


COMMANDS = [(page.name, words) for page in PAGES for words in typed(page)]


class Parsed(Exception):
    """Flags were understood, and nothing is to be run."""


@pytest.fixture
def parse(monkeypatch):
    """Has a verb read its flags, and returns the names that it knows, with nothing run."""

    def parse(words: list[str]) -> set[str]:
        known = set()
        read = argparse.ArgumentParser.parse_known_args

        def stop(parser, *args, **options):
            known.update(parser._option_string_actions)
            _, unknown = read(parser, *args, **options)
            assert not unknown, f"{words[0]} does not know {unknown}"
            raise Parsed

        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
            # What --accelerate_config starts.
            patch.setattr(os, "execv", lambda _, command: main(command[command.index("safe_clip") + 1 :]))
            with pytest.raises((Parsed, SystemExit)) as ended:
                main(words)
        assert ended.type is Parsed or not ended.value.code  # --help ends it too
        return known

    return parse


def words_of_ours(words: list[str]) -> list[str] | None:
    """A verb and its flags, of a command that is one of ours in whatever way it is started."""
    for place, word in enumerate(words):
        if word in ("safe-clip", "safe_clip") and (place == 0 or words[place - 1] == "-m"):
            return words[place + 1 :]
        if Path(word).name in DOORS and not word.startswith("-"):
            return [DOORS[Path(word).name], *words[place + 1 :]]
    return None


def named(command: tuple[str, list[str]]) -> str:
    return f"{command[0]}: {' '.join(command[1])}"[:90]


@pytest.mark.parametrize("command", COMMANDS, ids=named)
def test_a_command_is_one_that_the_parsers_understand(command, parse):
    _, words = command
    ours = words_of_ours(words)
    if ours is not None:
        # A verb alone is a name in a sentence.
        assert not ours or ours[0] in VERBS or ours == ["--help"]
        if len(ours) > 1:
            parse(ours)
        return
    if words[:3] == ["python3", "-m", "venv"] or words[0] == ".venv/bin/pip" or words == ["accelerate", "launch"]:
        return
    script = next(ROOT / word for word in words if re.fullmatch(r"[\w/.]+\.(py|sh)", word))
    source = script.read_text()
    for word in words:
        if word.startswith("--") and " " in word:  # flags that the script hands on
            parse(["train", *shlex.split(word)])
        elif word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, f"{script.name} does not know {word}"


def test_a_flag_in_the_text_is_one_of_a_verb(parse):
    ours = [verb for _, words in COMMANDS if len(verb := words_of_ours(words) or []) > 1]
    known = OF_LAUNCHERS.union(*map(parse, ours))
    for script in (ROOT / "benchmarks").glob("*.py"):
        known.update(re.findall(r'"(--\w+)"', script.read_text()))
    for page in PAGES:
        for span in spans(page):
            if span.startswith("-"):
                names = {word.partition("=")[0] for word in shlex.split(span.replace("…", "")) if word.startswith("--")}
                assert names <= known, f"{page.name} names {names - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


def tables(page: Path) -> list[list[tuple[str, ...]]]:
    """The rows of each table, without their headings and first cells, that hold figures."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        rows = [tuple(cell.strip() for cell in line.strip("|").split("|"))[1:] for line in table.splitlines()[2:]]
        found.append([row for row in rows if len(row) > 1 and any(re.search(r"\d", cell) for cell in row)])
    return found


def test_no_table_stands_twice():
    everything = [(page.name, set(rows)) for page in PAGES for rows in tables(page)]
    for (one, rows), (other, others) in combinations(everything, 2):
        # A line may be what two tables compare with, such as the base.
        assert len(rows & others) < 2, f"a table stands twice, in {one} and {other}: {rows & others}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) < 12_000


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        if re.match(r"https?:", target):
            continue
        file = page.parent / name if name else page
        assert file.is_file(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text()
    documented = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith(":::")}
    assert documented >= set(safe_clip.__all__)


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    (tmp_path / "safe_clip").symlink_to(ROOT / "safe_clip")
    built = subprocess.run(
        [Path(sys.executable).parent / "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {page.stem for page in PAGES if page.parent != ROOT} - {"index"}
    assert {folder.name for folder in (tmp_path / "site").iterdir() if (folder / "index.html").exists()} >= pages


# ---- The errors of docs/faq.md ----


def templates() -> list[list[str]]:
    """The constant parts, one after the other, of each text of the package that a message may be made of."""
    found = []
    for file in (ROOT / "safe_clip").rglob("*.py"):
        tree = ast.parse(file.read_text())
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                found.append([part.value for part in node.values if isinstance(part, ast.Constant)])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                found.append(node.value.split("{}"))
    return [parts for parts in found if max(map(len, parts), default=0) >= 12]


def unexplained(line: str, known: list[list[str]]) -> float:
    """The share of an error's line that no text of the package says; what stands in quotes and brackets, and so may be
    anything, is not counted."""
    spoken, counted = bytearray(len(line)), bytearray(b"\1" * len(line))
    for parts in known:
        if all(part in line for part in parts):
            fit = re.search(".*?".join(f"({re.escape(part)})" for part in parts), line)
            for start, end in fit.regs[1:] if fit else ():
                spoken[start:end] = b"\1" * (end - start)
    for anything in re.finditer(r"'[^']*'|\([^)]*\)", line):
        counted[anything.start() : anything.end()] = bytes(len(anything.group()))
    return 1 - sum(map(operator.and_, spoken, counted)) / sum(counted)


def test_errors_of_the_faq_are_those_that_the_package_prints():
    lines = [block.strip() for block in blocks(ROOT / "docs" / "faq.md", "text")]
    assert len(lines) >= 15 and all(line.startswith("error: ") and "\n" not in line for line in lines)
    known = templates()
    for line in lines:
        assert unexplained(line.removeprefix("error: "), known) < 0.4, f"the package does not say: {line}"
    for reworded in ("--dataset rows.csv has just train, no part 'test'.", "--index index lacks an index.parquet."):
        assert unexplained(reworded, known) > 0.6
