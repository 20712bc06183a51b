"""What linters do not know of this repository; one line for each fault, and a status of 1.

python tools/lint.py
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST = 400  # lines of a file
DOOR = 6  # of a door to a verb
# Data flow one way: a module imports only from rooms before its own.
ROOMS = [
    "names",
    "old_names",
    "stopping",
    "terminal",
    "card_text",
    "errors",
    "metrics",
    "ranges",
    "settings_file",
    "config",
    "store",
    "demo",
    "items",
    "objectives",
    "outputs",
    "data",
    "models",
    "embedding",
    "evaluation",
    "card",
    "training",
    "generation",
    "app",
    "export",
    "cli",
    "__main__",
]
OLDEST = {"torch": (2, 11), "transformers": (5, 17)}  # that the package works with
# What starts a verb of the command under a name that published cards and pages have, and holds nothing else.
DOORS = ("export.py", "data/fetch.py", "data/audit/__main__.py", "store/__main__.py")
ART = ("Noto Emoji", "Apache-2.0", "Twemoji", "CC-BY 4.0", "Fluent Emoji", "Copyright (c) Microsoft")


def imports(source: Path, room: str, parts: tuple[str, ...]) -> Iterator[str]:
    """The rooms after its own that a module imports from."""
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        above = parts[: len(parts) - node.level]
        module = node.module.split(".") if node.module else []
        targets = [[*above, *module]] if module else [[*above, alias.name] for alias in node.names]
        for target in targets:
            if target[0] != "__version__" and ROOMS.index(target[0]) > ROOMS.index(room):
                yield f"imports {'.'.join(target)}, a room after {room}"


def modules() -> Iterator[str]:
    """Files that are too long, or import upwards."""
    sources = sorted((ROOT / "safe_clip").rglob("*.py"))
    for source in [*sources, ROOT / "train.py", ROOT / "eval.py"]:
        name = source.relative_to(ROOT)
        if (lines := len(source.read_text().splitlines())) > LONGEST:
            yield f"{name} has {lines} lines; at most {LONGEST} are read at a stretch"
    for source in sources:
        parts = source.relative_to(ROOT / "safe_clip").with_suffix("").parts
        if parts[0] == "__init__":
            continue
        if parts[0] not in ROOMS:
            yield f"{source.relative_to(ROOT)} is in no room; add it to ROOMS of tools/lint.py and to CONTRIBUTING.md"
        elif source.relative_to(ROOT / "safe_clip").as_posix() in DOORS:
            if len(source.read_text().splitlines()) > DOOR:
                yield f"{source.relative_to(ROOT)} is a door to a verb, and holds more than that"
        else:
            yield from (f"{source.relative_to(ROOT)} {fault}" for fault in imports(source, parts[0], parts))


def requirements() -> Iterator[str]:
    """Lower bounds that contradict one another."""
    bounds: dict[str, str] = {}
    for name, version in re.findall(r'"([A-Za-z][\w-]*)>=([\d.]+)"', (ROOT / "setup.py").read_text()):
        if bounds.setdefault(name, version) != version:
            yield f"setup.py gives {name} two lower bounds"
    for name, oldest in OLDEST.items():
        if tuple(map(int, bounds[name].split("."))) > oldest:
            yield f"setup.py requires {name} {bounds[name]}, and not {'.'.join(map(str, oldest))}"
    lines = (ROOT / "tests/lower_bounds.txt").read_text().splitlines()
    if [line for line in lines if not line.startswith("#")] != sorted(f"{n}=={v}" for n, v in bounds.items()):
        yield "tests/lower_bounds.txt has other versions than the lower bounds of setup.py"


def texts() -> Iterator[str]:
    """Commands that differ from those that README gives, and art that is not attributed."""
    blocks = re.findall(r"```bash\n(.+?)\n```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    commands = [block for block in blocks if block.startswith(("python3 -m venv", "bash tests/"))]
    if len(commands) != 2 or not commands[0].endswith("python train.py") or "\n" in "".join(commands):
        yield "README.md has to have two set-up commands: one that ends in 'python train.py', one that runs the tests"
    elif (ROOT / ".ci/run").read_text().splitlines()[-1] != commands[1]:
        yield ".ci/run does not end in README's test command"
    attribution = (ROOT / "safe_clip/demo/ATTRIBUTION.md").read_text()
    yield from (f"safe_clip/demo/ATTRIBUTION.md lacks '{words}'" for words in ART if words not in attribution)


if __name__ == "__main__":
    faults = [*modules(), *requirements(), *texts()]
    print("\n".join(faults) or "All is as this repository asks.")
    sys.exit(bool(faults))
