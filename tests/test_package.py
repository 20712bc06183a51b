import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import safe_clip

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "safe_clip").rglob("*.py"))

# Data flows one way; a module imports only from rooms before its own.
ROOMS = [
    "names",
    "old_names",
    "stopping",
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
    "evaluation",
    "card",
    "training",
    "generation",
    "export",
]


def test_importing_the_package_imports_no_heavy_library():
    code = (
        "import sys, safe_clip; safe_clip.__version__; dir(safe_clip); "
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'PIL'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_public_name_is_there():
    for name in safe_clip.__all__:
        assert getattr(safe_clip, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        safe_clip.nothing  # noqa: B018


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_only_from_rooms_before_them(source):
    parts = source.relative_to(ROOT / "safe_clip").with_suffix("").parts
    if parts[0] == "__init__":
        return
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        above = parts[: len(parts) - node.level]
        module = node.module.split(".") if node.module else []
        targets = [[*above, *module]] if module else [[*above, alias.name] for alias in node.names]
        for target in targets:
            if target[0] == "__version__":  # of the package itself
                continue
            assert ROOMS.index(target[0]) <= ROOMS.index(parts[0]), f"{source.name} imports {'.'.join(target)}"


def test_files_stay_small():
    for source in [*SOURCES, ROOT / "train.py", ROOT / "eval.py"]:
        assert len(source.read_text().splitlines()) <= 400, source


def lower_bounds() -> dict[str, str]:
    """Of every requirement of `setup.py`, extras included, the version it begins at."""
    bounds = {}
    for name, version in re.findall(r'"([A-Za-z][\w-]*)>=([\d.]+)"', (ROOT / "setup.py").read_text()):
        assert bounds.setdefault(name, version) == version, f"{name} has two lower bounds"
    return bounds


def test_lower_bounds_admit_the_oldest_supported_stack():
    bounds = lower_bounds()
    as_tuple = lambda version: tuple(map(int, version.split(".")))  # noqa: E731
    assert as_tuple(bounds["torch"]) <= (2, 11)
    assert as_tuple(bounds["transformers"]) <= (5, 17)


def test_the_constraints_of_the_oldest_environment_are_the_lower_bounds():
    lines = (ROOT / "tests/lower_bounds.txt").read_text().splitlines()
    wanted = sorted(f"{name}=={version}" for name, version in lower_bounds().items())
    assert [line for line in lines if not line.startswith("#")] == wanted


def test_the_art_is_attributed():
    text = (ROOT / "safe_clip/demo/ATTRIBUTION.md").read_text()
    for words in ("Noto Emoji", "Apache-2.0", "Twemoji", "CC-BY 4.0", "Fluent Emoji", "Copyright (c) Microsoft"):
        assert words in text


def test_ci_runs_the_test_command_of_the_readme_as_it_stands():
    blocks = re.findall(r"```bash\n(.+?)\n```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    main, tests = (block for block in blocks if "python3 -m venv" in block)
    assert main.endswith("python train.py")
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == tests


@pytest.mark.slow
def test_what_is_installed_holds_every_file_that_the_package_opens(tmp_path):
    """The files of a built wheel, since an editable install would hide one that is left out."""
    for item in (
        "safe_clip",
        "setup.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "THIRD_PARTY_NOTICES.md",
        "model_card.md",
    ):
        source = ROOT / item
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / item, ignore=ignore) if source.is_dir() else shutil.copy(source, tmp_path)
    subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b; b.build_wheel('wheel')"], check=True, cwd=tmp_path
    )
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    installed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("safe_clip/")}
    tracked = subprocess.run(["git", "ls-files", "safe_clip"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) | {"safe_clip/card/model_card.md"} <= installed
