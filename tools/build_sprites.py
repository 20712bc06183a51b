"""Packs the emoji art of the bundled demo into `sprites.parquet`.

Run `python tools/build_sprites.py` with npm on the path; the packages below are fetched
from the npm registry. Licences of the three art styles: see `safe_clip/demo/ATTRIBUTION.md`.
"""

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from tqdm.auto import tqdm

from safe_clip.demo.vocabulary import load_vocabulary
from safe_clip.demo.world import SPRITE_SIZE, SPRITES_FILE

PACKAGES = {
    "noto": ("emoji-datasource-google@16.0.0", "package/img/google/64/{code}.png"),
    "twemoji": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/{code}.png"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/{code}.webp"),
}


# How images are written: the smallest that lossless WebP can be, which takes a while.
SMALLEST = {"format": "WEBP", "lossless": True, "quality": 100, "method": 6}


def _code_points(emoji: str) -> list[str]:
    """The file names under which art packages keep an emoji: they differ in the variation selector."""
    code = "-".join(f"{ord(character):04x}" for character in emoji)
    bare = code.replace("-fe0f", "")
    return list(dict.fromkeys([code, bare, f"{bare}-fe0f"]))


def _members(file: Path, wanted: set[str]) -> dict[str, bytes]:
    """Some members of an archive by name, read in one pass: one that is compressed cannot be entered in its middle."""
    with tarfile.open(file, "r|gz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.name in wanted}


def _sprite(members: dict[str, bytes], pattern: str, emoji: str, size: int, encoding: dict) -> bytes:
    for code in _code_points(emoji):
        if (content := members.get(pattern.format(code=code))) is None:
            continue
        image = PILImage.open(io.BytesIO(content)).convert("RGBA")
        image.thumbnail((size, size), PILImage.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, **encoding)
        return buffer.getvalue()
    raise FileNotFoundError(f"there is no {pattern} for {emoji} ({_code_points(emoji)})")


def fetch(package: str, folder: Path) -> Path:
    """The archive of an npm package, such as `"name@1.0.0"`, in a folder; it is fetched where it is not there.

    npm checks it against the registry's digest, and it takes its name only when it is whole.
    """
    archive = folder / f"{package.lstrip('@').replace('/', '-')}.tgz"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as beside:
            done = subprocess.run(
                ["npm", "pack", "--json", package], cwd=beside, check=True, capture_output=True, text=True
            )
            (Path(beside) / json.loads(done.stdout)[0]["filename"]).rename(archive)
    return archive


def pack(emojis: Iterable[str], archives: Path, file: Path, size: int = SPRITE_SIZE, encoding: dict = SMALLEST) -> int:
    """Writes a sprite of each emoji in each style.

    Args:
        emojis: which ones.
        archives: the folder where packages are kept.
        file: the Parquet file to write, with the columns `emoji`, `style` and `sprite`.
        size: pixels of the longer side, at most.
        encoding: how they are written, for `PIL.Image.Image.save`.

    Returns:
        How many there are.
    """
    emojis, rows = list(emojis), []
    for style, (package, pattern) in PACKAGES.items():
        wanted = {pattern.format(code=code) for emoji in emojis for code in _code_points(emoji)}
        members = _members(fetch(package, archives), wanted)
        for emoji in tqdm(emojis, desc=style):
            sprite = {"bytes": _sprite(members, pattern, emoji, size, encoding), "path": None}
            rows.append({"emoji": emoji, "style": style, "sprite": sprite})
    features = Features({"emoji": Value("string"), "style": Value("string"), "sprite": Image()})
    Dataset.from_list(rows, features=features).to_parquet(file)
    return len(rows)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        count = pack((concept.emoji for concept in load_vocabulary()), Path(folder), SPRITES_FILE)
    print(f"{count} sprites, {SPRITES_FILE.stat().st_size / 1e6:.1f} MB in {SPRITES_FILE}")


if __name__ == "__main__":
    main()
