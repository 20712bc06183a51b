"""Images behind a column of addresses, fetched into a folder."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..outputs import REPLACED, OutputFolder
from ..store.fingerprints import short_digest
from ..store.writing import write_whole
from .fetch_settings import FetchSettings
from .fetching import fetch_all, finish, without_secrets
from .image_join import ID_COLUMNS, IMAGE_SUFFIXES, image_name, image_names, stored_name
from .minors import refuse_minors
from .presets import known_columns
from .sources import load_splits

FAILED = "failed.csv"
KEPT = ".fetched.json"  # which address each image is of


def fetch_column(
    dataset: str,
    column: str,
    output: OutputFolder,
    settings: FetchSettings,
    id_column: str | None = None,
    template: str | None = None,
    overwrite: bool = False,
) -> tuple[set[str], dict[str, str]]:
    """Fetches the images that a column has the addresses of.

    Args:
        dataset: a Hub id, a folder or a file.
        column: its column of addresses, or of what `template` requires.
        output: gets the images, and `failed.csv`.
        settings: how patient, and how careful.
        id_column: the column that images are named after; by default the only one of numbers.
        template: an address with `{}` where the cell stands.
        overwrite: images of other addresses, under the same names, may be moved away.

    Returns:
        The names of the images that are there, and by name why others are not.

    Raises:
        UserError: a column cannot be found, or the folder cannot be written or holds what is not ours.
    """
    jobs, failed = _jobs(dataset, column, id_column, template)
    try:
        _check_kept(jobs, output, overwrite)
        failed |= finish(fetch_all(jobs, output.path, settings))
    except OSError as error:  # a full disk
        raise UserError(f"{output.path} cannot be written ({error}); what was fetched is kept.") from error
    listed = io.StringIO(newline="")
    csv.writer(listed).writerows(
        [("id", "address", "reason"), *((n, without_secrets(jobs.get(n) or ""), why) for n, why in failed.items())]
    )
    output.write(FAILED, listed.getvalue())
    return jobs.keys() - failed, failed


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
