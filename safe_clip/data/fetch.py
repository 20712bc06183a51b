"""Fetches the pictures behind a column of addresses.

    python -m safe_clip.data.fetch NSFWCaps.jsonl --column image_coco_url --output_dir coco
    python -m safe_clip.data.fetch aimagelab/ViSU-Text --column coco_id --output_dir coco \\
        --address 'http://images.cocodataset.org/train2017/{:012}.jpg'

Pictures are named after the number in each row, so that `--safe_images coco` finds them. What was fetched is not
fetched again; what could not be had is listed, with the reason, in `failed.csv` beside the pictures, and tried again by
the same command.
"""

import argparse
import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

import xxhash

from ..config import OneLineParser
from ..errors import UserError, run
from ..outputs import OutputFolder
from .fetching import FetchSettings, fetch_all, finish, without_secrets
from .minors import refuse_minors
from .schema import ID_COLUMNS, known_columns, picture_name, picture_names
from .sources import load_splits

FAILED = "failed.csv"
LONGEST_NAME = 200  # bytes, of the 255 that file systems take


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(
        prog="python -m safe_clip.data.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="a Hub id, a folder or a file")
    parser.add_argument("--column", required=True, help="the column of addresses, or of what --address wants")
    parser.add_argument("--address", help="an address with {} where the cell stands, {:012} for twelve digits")
    parser.add_argument("--id", help="the column that pictures are named after; by default the only one of numbers")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the pictures")
    parser.add_argument("--tries", type=int, default=FetchSettings.tries, help="of each address")
    parser.add_argument("--timeout", type=float, default=FetchSettings.timeout, help="seconds for one try")
    parser.add_argument("--most_bytes", type=int, default=FetchSettings.most_bytes, help="of one picture")
    parser.add_argument("--at_once", type=int, default=FetchSettings.at_once, help="addresses side by side")
    parser.add_argument("--allow_private", action="store_true", help="fetch from inside the network too")
    parser.add_argument("--overwrite_output_dir", action="store_true", help=f"replace a {FAILED} of somebody else's")
    args = parser.parse_args(argv)
    OutputFolder(args.output_dir).check(args.overwrite_output_dir, files=[FAILED])
    jobs, failed = _jobs(args.dataset, args.column, args.id, args.address)
    settings = FetchSettings(args.tries, args.timeout, args.most_bytes, args.at_once, args.allow_private)
    try:
        failed |= finish(fetch_all(jobs, args.output_dir, settings))
    except OSError as error:  # a full disk
        raise UserError(f"{args.output_dir} cannot be written ({error}); what was fetched is kept.") from error
    with open(args.output_dir / FAILED, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("id", "address", "reason"), *((n, without_secrets(jobs.get(n) or ""), why) for n, why in failed.items())]
        )
    had = len(jobs.keys() - failed)
    print(f"{had:,} of {len(jobs.keys() | failed):,} pictures are in {args.output_dir}/.")
    for reason, count in Counter(failed.values()).most_common(5):
        print(f"{count:,} could not be had: {reason}")
    if failed:
        print(f"{args.output_dir / FAILED} lists them; the same command tries them again.")
    if not had:
        raise UserError("no picture could be had.")


def _jobs(
    dataset: str, column: str, id_column: str | None, template: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Addresses by the name that each picture gets, and rows that have no address or no name, with which."""
    jobs: dict[str, str] = {}
    failed: dict[str, str] = {}
    for split, rows in load_splits(dataset, option="the data set").items():
        where = f"split '{split}' of {dataset}"
        if column not in rows.column_names:
            raise UserError(f"--column {column}: {where} has no such column; it has {', '.join(rows.column_names)}.")
        rows = refuse_minors(rows.rename_columns((known_columns(rows.column_names, sure=False) or ("", {}))[1]), where)
        id_column = id_column or (column if template else _id_column(rows.column_names, column))
        names = picture_names(rows, "unsafe_image", where, "--id", id_column)
        for row, (name, cell) in enumerate(zip(names, rows[column], strict=True)):
            address = _filled(template, cell) if template else cell
            if name is None or not isinstance(address, str) or not address.strip():
                failed[f"{split}, row {row}"] = "the row has no address" if name else "the row has no number"
                continue
            # A name from elsewhere must not be a way out of the folder, nor longer than a file's may be.
            name = _file_name(name)
            if jobs.setdefault(name, address) != address:
                raise UserError(
                    f"{where}, row {row}: another address than this one goes by the number {name} too. Name a "
                    "column that tells them apart with --id."
                )
    return jobs, failed


def _file_name(name: str) -> str:
    """A name that is no way out of a folder, nor longer than a file's may be; of long ones, each has its own."""
    name = re.sub(r"[^\w-]", "_", name)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    return f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{xxhash.xxh3_64_hexdigest(name.encode())}"


def _filled(template: str, cell: Any) -> str | None:
    """The address of a cell; a cell of digits is a number."""
    if (name := picture_name(cell)) is None:
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
        raise UserError(f"--id: name the column that pictures shall be named after, one of {', '.join(present)}.")
    return present[0] if present else column


if __name__ == "__main__":
    run(main)
