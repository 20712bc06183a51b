"""The package as people have it: installed from its wheel, and run in a folder that has nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..programs import run_python

ROOT = Path(__file__).parent.parent.parent
PACKED = ("safe_clip", "setup.py", "pyproject.toml", "README.md", "LICENSE", "THIRD_PARTY_NOTICES.md", "model_card.md")
BUILD = "import setuptools.build_meta as b; b.build_wheel('wheel')"


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """A folder with what pip makes of the wheel: the package, and `bin/safe-clip`."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in PACKED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    subprocess.run([sys.executable, "-c", BUILD], check=True, cwd=source, capture_output=True)
    (wheel,) = (source / "wheel").glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", folder, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    """One for all, since the libraries that read it are imported anew for each."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def shell(installed, home, tmp_path):
    """Runs a program as it is typed in an empty folder."""
    here = tmp_path / "here"
    here.mkdir()
    environment = os.environ | {"PYTHONPATH": str(installed), "HOME": str(home), "HF_HOME": str(home / "hf")}

    def run(*command: object, **options) -> subprocess.CompletedProcess:
        name, *flags = command
        if name == "safe-clip":
            name = installed / "bin" / name
        return run_python(name, *flags, cwd=here, env=environment | options.pop("env", {}), **options)

    run.folder, run.environment, run.command = here, environment, installed / "bin" / "safe-clip"
    return run
