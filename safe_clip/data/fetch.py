"""Fetches the images behind a column of addresses.

    python -m safe_clip.data.fetch NSFWCaps.jsonl --column image_coco_url --output_dir coco
    python -m safe_clip.data.fetch aimagelab/ViSU-Text --column coco_id --output_dir coco \\
        --address 'http://images.cocodataset.org/train2017/{:012}.jpg'

Images are named after the number in each row, so that `--safe_images coco` finds them. What was fetched from the same
address is not fetched again; what could not be had is listed, with the reason, in `failed.csv` beside the images, and
tried again by the same command.
"""

import argparse
import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from ..config import OneLineParser
from ..errors import UserError, run
from ..outputs import REPLACED, OutputFolder
from ..ranges import COUNT, POSITIVE, check_ranges
from ..store.fingerprints import short_digest
from ..store.writing import write_whole
from .fetching import FetchSettings, fetch_all, finish, without_secrets
from .image_join import ID_COLUMNS, IMAGE_SUFFIXES, image_name, image_names, stored_name
from .minors import refuse_minors
from .presets import known_columns
from .sources import load_splits

FAILED = "failed.csv"
KEPT = ".fetched.json"  # which address each image is of
RANGES = {"tries": COUNT, "timeout": POSITIVE, "most_bytes": COUNT, "at_once": COUNT}


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(
        prog="python -m safe_clip.data.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="a Hub id, a folder or a file")
    parser.add_argument("--column", required=True, help="the column of addresses, or of what --address requires")
    parser.add_argument("--address", help="an address with {} where the cell stands, {:012} for twelve digits")
    parser.add_argument("--id", help="the column that images are named after; by default the only one of numbers")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the images")
    parser.add_argument("--tries", type=int, default=FetchSettings.tries, help="of each address")
    parser.add_argument("--timeout", type=float, default=FetchSettings.timeout, help="seconds for one try")
    parser.add_argument("--most_bytes", type=int, default=FetchSettings.most_bytes, help="of one image")
    parser.add_argument("--at_once", type=int, default=FetchSettings.at_once, help="addresses side by side")
    parser.add_argument("--allow_private", action="store_true", help="fetch from inside the network too")
    parser.add_argument("--overwrite_output_dir", action="store_true", help=f"move others' files into {REPLACED}")
    args = parser.parse_args(argv)
    check_ranges(args, RANGES)
    output = OutputFolder(args.output_dir)
    output.check(args.overwrite_output_dir, files=[FAILED])
    jobs, failed = _jobs(args.dataset, args.column, args.id, args.address)
    settings = FetchSettings(args.tries, args.timeout, args.most_bytes, args.at_once, args.allow_private)
    try:
        _check_kept(jobs, output, args.overwrite_output_dir)
        failed |= finish(fetch_all(jobs, args.output_dir, settings))
    except OSError as error:  # a full disk
        raise UserError(f"{args.output_dir} cannot be written ({error}); what was fetched is kept.") from error
    listed = io.StringIO(newline="")
    csv.writer(listed).writerows(
        [("id", "address", "reason"), *((n, without_secrets(jobs.get(n) or ""), why) for n, why in failed.items())]
    )
    output.write(FAILED, listed.getvalue())
    had = len(jobs.keys() - failed)
    print(f"{had:,} of {len(jobs.keys() | failed):,} images are in {args.output_dir}/.")
    for reason, count in Counter(failed.values()).most_common(5):
        print(f"{count:,} could not be had: {reason}")
    if failed:
        print(f"{args.output_dir / FAILED} lists them; the same command tries them again.")
    if not had:
        raise UserError("no image could be had.")


def _jobs(
    dataset: str, column: str, id_column: str | None, template: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Addresses by the name that each image gets, and rows that have no address or no name, with which."""
    jobs: dict[str, str] = {}
    failed: dict[str, str] = {}
    for split, rows in load_splits(dataset, option="the data set").items():
        where = f"split '{split}' of {dataset}"
        if column not in rows.column_names:
            raise UserError(f"--column {column}: {where} has no such column; it has {', '.join(rows.column_names)}.")
        rows = refuse_minors(rows.rename_columns((known_columns(rows.column_names, sure=False) or ("", {}))[1]), where)
        id_column = id_column or (column if template else _id_column(rows.column_names, column))
        names = image_names(rows, "unsafe_image", where, "--id", id_column)
        for row, (name, cell) in enumerate(zip(names, rows[column], strict=True)):
            address = _filled(template, cell) if template else cell
            if name is None or not isinstance(address, str) or not address.strip():
                failed[f"{split}, row {row}"] = "the row has no address" if name else "the row has no number"
                continue
            # A name from elsewhere must not be a way out of the folder, nor longer than a file's may be.
            name, address = stored_name(name), address.strip()
            if jobs.setdefault(name, address) != address:
                raise UserError(
                    f"{where}, row {row}: another address than this one goes by the number {name} too. Name a "
                    "column that tells them apart with --id."
                )
    return jobs, failed


def _check_kept(jobs: dict[str, str], output: OutputFolder, overwrite: bool) -> None:
    """Notes which address each image is of, by a digest.

    Raises:
        UserError: images that are there already are of other addresses, or nobody knows of which; they are moved away
            where they may be.
    """
    own = {name: short_digest(address) for name, address in jobs.items()}
    try:
        known = json.loads((output.path / KEPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    there = sorted(path.name for path in output.path.glob("*") if path.suffix in IMAGE_SUFFIXES and path.stem in own)
    others = [name for name in there if known.get(Path(name).stem) != own[Path(name).stem]]
    if others and not overwrite:
        known_one = Path(others[0]).stem in known
        raise UserError(
            f"--output_dir {output.path} holds {len(others):,} images under the same names that "
            f"{'are of other addresses' if known_one else 'were not fetched by this program'}, such as {others[0]}. "
            f"Name another folder, or add --overwrite_output_dir: they are then moved into {output.path / REPLACED}."
        )
    output.make_room(*others)
    output.path.mkdir(parents=True, exist_ok=True)
    write_whole(output.path / KEPT, json.dumps(known | own))


def _filled(template: str, cell: Any) -> str | None:
    """The address of a cell; a cell of digits is a number."""
    if (name := image_name(cell)) is None:
        return None
    try:
        return template.format(int(name) if name.isdigit() else name)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"--address {template} cannot hold '{name}' ({error}); write {{}} where it belongs.") from error


def _id_column(columns: list[str], column: str) -> str:
    """The one column of numbers, or, where there is none, the addresses, whose last parts are names."""
    known = dict.fromkeys([*ID_COLUMNS["safe_image"], *ID_COLUMNS["unsafe_image"]])
    present = [name for name in known if name in columns and name != column]
    if len(present) > 1:
        raise UserError(f"--id: name the column that images shall be named after, one of {', '.join(present)}.")
    return present[0] if present else column


if __name__ == "__main__":
    run(main)
