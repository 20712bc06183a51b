"""Leaving out rows that cannot be used, where a person asks for it."""

import logging
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader, Subset
from torch.utils.data import Dataset as TorchDataset

from ..terminal import progress_bar
from .allowance import check_bad_share
from .arguments import LIST_FILE
from .columns import numbered
from .items import ROW_COLUMN
from .plain import plain_rows
from .rows import StoredQuadruplet, undecoded

logger = logging.getLogger(__name__)

LISTED = 3  # rows that an error names


class _Faults(TorchDataset):
    """What is wrong with each row, or nothing."""

    def __init__(self, rows: Dataset):
        self.rows = undecoded(rows, rows.column_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str | None:
        row = self.rows[index]
        return StoredQuadruplet(row, row.get(ROW_COLUMN, index)).fault()


def leave_out_bad_rows(
    rows: Dataset,
    where: str,
    folder: Path,
    max_bad_fraction: float,
    workers: int = 0,
    progress: bool = True,
    left_out: list[int] | None = None,
) -> Dataset:
    """The rows that can be used; the others are counted, and listed in a file with what is wrong with each.

    Every row is read once, each process of a launch reading its share.

    Args:
        rows: quadruplets.
        where: what messages call them.
        folder: gets `bad_rows.txt`, or more lines in it.
        max_bad_fraction: the largest share of bad rows that is still taken for bad luck, in [0, 1].
        workers: processes that read images.
        progress: show a bar.
        left_out: gets the places of the rows that are left out.

    Raises:
        UserError: there are more bad rows than that, or no others.
    """
    rows = plain_rows(rows, where)
    state = PartialState()
    mine = range(state.process_index, len(rows), state.num_processes)
    loader = DataLoader(Subset(_Faults(rows), mine), batch_size=None, num_workers=workers)
    bar = progress_bar(loader, desc=f"Checking {where}", disable=not (progress and state.is_main_process))
    found = [(index, fault) for index, fault in zip(mine, bar, strict=True) if fault]
    bad = dict(sorted(gather_object(found)))
    if not bad:
        return rows
    lines = [f"{where}, {fault}" for fault in bad.values()]
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LIST_FILE, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    summary = f"{len(bad):,} of {len(rows):,} rows of {where} cannot be used"
    details = f"; {folder / LIST_FILE} lists them. The first: {'; '.join(lines[:LISTED])}"
    check_bad_share(len(bad), len(rows), max_bad_fraction, summary, details)
    if state.is_main_process:
        logger.warning("%s and are left out; they are listed in %s.", summary, folder / LIST_FILE)
    if left_out is not None:
        left_out += bad
    return numbered(rows).select([index for index in range(len(rows)) if index not in bad])
