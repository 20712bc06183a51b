"""Packs the emoji art of the bundled demo into `sprites.parquet`.

Run `python tools/build_sprites.py` with npm on the path; the packages below are fetched
from the npm registry. Licences of the three art styles: see `safe_clip/demo/ATTRIBUTION.md`.
"""

import io
import json
import subprocess
import tarfile
import tempfile
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


def _code_points(emoji: str) -> list[str]:
    """The file names under which art packages keep an emoji: they differ in the variation selector."""
    code = "-".join(f"{ord(character):04x}" for character in emoji)
    bare = code.replace("-fe0f", "")
    return list(dict.fromkeys([code, bare, f"{bare}-fe0f"]))


def _sprite(archive: tarfile.TarFile, pattern: str, emoji: str) -> bytes:
    for code in _code_points(emoji):
        try:
            member = archive.getmember(pattern.format(code=code))
        except KeyError:
            continue
        image = PILImage.open(archive.extractfile(member)).convert("RGBA")
        image.thumbnail((SPRITE_SIZE, SPRITE_SIZE), PILImage.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True, quality=100, method=6)
        return buffer.getvalue()
    raise FileNotFoundError(f"{archive.name} has no image for {emoji} ({_code_points(emoji)})")


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for style, (package, pattern) in PACKAGES.items():
            packed = subprocess.run(
                ["npm", "pack", "--json", package], cwd=folder, check=True, capture_output=True, text=True
            )
            with tarfile.open(Path(folder) / json.loads(packed.stdout)[0]["filename"]) as archive:
                for concept in tqdm(load_vocabulary(), desc=style):
                    rows.append(
                        {
                            "emoji": concept.emoji,
                            "style": style,
                            "sprite": {"bytes": _sprite(archive, pattern, concept.emoji), "path": None},
                        }
                    )
    features = Features({"emoji": Value("string"), "style": Value("string"), "sprite": Image()})
    Dataset.from_list(rows, features=features).to_parquet(SPRITES_FILE)
    print(f"{len(rows)} sprites, {SPRITES_FILE.stat().st_size / 1e6:.1f} MB in {SPRITES_FILE}")


if __name__ == "__main__":
    main()
