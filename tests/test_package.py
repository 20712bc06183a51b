import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import safe_clip

ROOT = Path(__file__).parent.parent


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


def test_every_place_that_names_the_version_names_the_same():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## \[(.+?)\](?: - (\S+))?", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert citation["version"] == safe_clip.__version__
    assert safe_clip.__version__ in newest.groups()
