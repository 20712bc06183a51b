"""A log of queries, read row by row from where it lies: nothing of what it says is written anywhere."""

import json
import re
import unicodedata
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from ..errors import UserError, first_line
from ..store.fingerprints import content_id, digest
from ..terminal import progress_bar
from .allowance import check_bad_share
from .cells import short
from .column_names import modality, words
from .damage import CHECKED, NOT_OPENED, check_files, check_text
from .places import find_place
from .rows import INVISIBLE, check_caption
from .tables import Layout, looked_at, text_lines

OPTION = "--queries"
KINDS = ("csv", "json", "parquet")
BATCH = 10_000  # rows of a Parquet file that are held at a time
PERIODS = ("day", "week", "month")
WHOLE = "all"  # the one period of a log without times
EMPTY, NO_TEXT, NO_TIME = "empty", "no_text", "no_time"  # why a row is left out
TIME_WORDS = {"time", "date", "timestamp", "datetime", "created", "when", "ts", "day"}
ISO = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)"
    r"(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,]\d+)?)?)?\s*(?:(Z|UTC)|([+-])(\d\d):?(\d\d)?)?)?\s*\Z",
    re.IGNORECASE,
)
NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE]\+?\d+)?\Z")
EPOCHS = datetime(1990, 1, 1, tzinfo=timezone.utc).timestamp(), datetime(2100, 1, 1, tzinfo=timezone.utc).timestamp()
UNITS = (1, 10**3, 10**6, 10**9)  # of a second, in which epochs are counted


@dataclass(frozen=True)
class QueryLog:
    """A log that was found and whose columns are known.

    Attributes:
        name: as it was named.
        files: those it consists of.
        kind: one of `KINDS`.
        text: the column of texts.
        time: the column of times; `None` for none.
        doubt: a column that sounds like one of times and was not named; `None` for none.
        layouts: how each file of CSV is written, with the names of its columns.
    """

    name: str
    files: tuple[Path, ...]
    kind: str
    text: str
    time: str | None
    doubt: str | None = None
    layouts: dict[Path, tuple[Layout, list[str]]] = field(default_factory=dict)

    def rows(self) -> Iterator[tuple[Any, Any]]:
        """The text and the time of each row, as they are stored.

        Raises:
            UserError: a file cannot be read to its end.
        """
        for file in self.files:
            with _readable(file):
                yield from {"csv": self._of_csv, "json": self._of_json, "parquet": self._of_parquet}[self.kind](file)

    def _of_csv(self, file: Path) -> Iterator[tuple[Any, Any]]:
        layout, names = self.layouts[file]
        text, time = (names.index(name) if name else None for name in (self.text, self.time))
        records = layout.records(file)
        next(records)
        for _, cells, _ in records:
            yield _cell(cells, text), _cell(cells, time)

    def _of_json(self, file: Path) -> Iterator[tuple[Any, Any]]:
        for row in _json_rows(file):
            yield row.get(self.text), row.get(self.time) if self.time else None

    def _of_parquet(self, file: Path) -> Iterator[tuple[Any, Any]]:
        columns = [self.text] + [self.time] * bool(self.time)
        for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=columns):
            texts = batch[self.text].to_pylist()
            yield from zip(texts, _plain_times(batch[self.time]) if self.time else [None] * len(texts), strict=True)


@dataclass(frozen=True)
class Survey:
    """What a log holds, without any of its texts.

    Attributes:
        periods: the names of the P periods that have a query, in order.
        first: for each of the D different texts, the row where it first stands; increasing.
        ids: of each of them, 64 bits of a digest, which stay in memory.
        text, period, count: of each text in each period that it stands in, which they are, and how often; ordered by
            text.
        read: how many rows there are.
        left_out: how many rows have no text, no time, or nothing in their text.
    """

    periods: list[str]
    first: np.ndarray
    ids: np.ndarray
    text: np.ndarray
    period: np.ndarray
    count: np.ndarray
    read: int
    left_out: dict[str, int]

    @property
    def digest(self) -> str:
        """Changes with the log."""
        return digest([repr(self.periods).encode(), *(a.tobytes() for a in (self.ids, self.text, self.period))])


def open_log(name: str, text_column: str | None = None, time_column: str | None = None) -> QueryLog:
    """Finds a log and its columns.

    Args:
        name: a file of CSV, JSON lines or Parquet, maybe compressed; a folder of them; or a pattern (`logs/*.csv`).
        text_column: the column of texts; by default the only one whose name says so.
        time_column: the column of times.

    Raises:
        UserError: there is no such file, it is of another kind, a column is missing, or it is not clear which holds the
            texts.
    """
    place = find_place(name, OPTION)
    files = tuple(sorted(Path(file) for found in place.files.values() for file in found))
    if not files or place.name not in KINDS:
        raise UserError(f"{OPTION} {short(name)} is no log: name a file of CSV, JSON lines or Parquet on this machine.")
    check_files([file for file in files if file.name.lower().endswith(CHECKED)], OPTION)
    layouts: dict[Path, tuple[Layout, list[str]]] = {}
    columns = {file: _columns(file, place.name, layouts) for file in files}
    found = columns[files[0]]
    listed = ", ".join(map(short, found))
    if text_column is None:
        likely = [column for column, feature in found.items() if modality(column, feature) == "text"]
        if len(likely) != 1:
            raise UserError(
                f"{OPTION} {short(name)}: which column holds the texts is not clear "
                f"({', '.join(likely) or 'none looks like one'}, of {listed}): name it with --text_column."
            )
        text_column = likely[0]
    for option, column in (("--text_column", text_column), ("--time_column", time_column)):
        for file, there in columns.items():
            if column is not None and column not in there:
                raise UserError(f"{option} {column}: {short(file)} has no such column, only {listed}.")
    doubt = next((column for column in found if TIME_WORDS & set(words(column))), None)
    return QueryLog(name, files, place.name, text_column, time_column, None if time_column else doubt, layouts)


def survey(log: QueryLog, by: str = "day", max_bad_fraction: float | None = None) -> Survey:
    """Reads a log once, checks each row, and counts.

    Rows with an empty text are left out. About 40 bytes are held for each other row.

    Args:
        log: what is read.
        by: one of `PERIODS`.
        max_bad_fraction: the share of rows whose text or time cannot be used that is left out; by default the first one
            raises.

    Raises:
        UserError: such a row, a log without any query, or a file that cannot be read.
    """
    labels: dict[str, int] = {}
    ids, when, row_of = array("q"), array("q"), array("q")
    left_out = dict.fromkeys((EMPTY, NO_TEXT, NO_TIME), 0)
    read = 0
    for row, (text, time) in enumerate(progress_bar(log.rows(), desc=f"Reading {short(log.name)}", unit=" rows")):
        read += 1
        if text is None or (
            isinstance(text, str) and all(unicodedata.category(letter) in INVISIBLE for letter in text)
        ):
            left_out[EMPTY] += 1
            continue
        fault = _text_fault(text, row, log.text)
        label = (WHOLE if log.time is None else period_of(time, by)) if fault is None else None
        if label is None:
            left_out[NO_TIME if fault is None else NO_TEXT] += 1
            fault = fault or f"row {row}, column '{log.time}': the time is neither ISO 8601 nor an epoch."
            if max_bad_fraction is None:
                raise UserError(f"{OPTION} {short(log.name)}, {fault} Or have such rows left out: --on_bad_row skip.")
            continue
        ids.append(_id(text))
        when.append(labels.setdefault(label, len(labels)))
        row_of.append(row)
    bad = left_out[NO_TEXT] + left_out[NO_TIME]
    if max_bad_fraction is not None:
        counted = f"{left_out[NO_TEXT]:,} have no text and {left_out[NO_TIME]:,} no time"
        summary = f"{OPTION} {short(log.name)}: {bad:,} of {read:,} rows cannot be used ({counted})"
        check_bad_share(bad, read - left_out[EMPTY], max_bad_fraction, summary, ".")
    if not ids:
        raise UserError(f"{OPTION} {short(log.name)} holds no query: it has {read:,} rows, none with a text.")
    return _counted(np.array(ids), np.array(when), np.array(row_of), labels, read, left_out)


def _counted(
    ids: np.ndarray, when: np.ndarray, row_of: np.ndarray, labels: dict[str, int], read: int, left_out: dict[str, int]
) -> Survey:
    periods = sorted(labels)
    when = np.argsort(np.argsort([*labels]))[when]  # numbered in their order
    different, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    order = np.argsort(first)
    keys, count = np.unique(np.argsort(order)[inverse] * len(periods) + when, return_counts=True)
    text, period = np.divmod(keys, len(periods))
    return Survey(periods, row_of[first[order]], different[order], text, period, count, read, left_out)


def _id(text: str) -> int:
    return content_id(text.encode(errors="surrogatepass"))


def different_texts(log: QueryLog, found: Survey, start: int = 0) -> Iterator[str]:
    """The different texts of a log that was surveyed, in the order in which they first stand there.

    Args:
        start: how many of them are passed over.

    Raises:
        UserError: the log is not what it was.
    """
    wanted = iter(zip(found.first[start:].tolist(), found.ids[start:].tolist(), strict=True))
    place, known = next(wanted, (None, None))
    for row, (text, _) in enumerate(log.rows()):
        if row != place:
            continue
        if not isinstance(text, str) or _id(text) != known:
            break
        yield text
        place, known = next(wanted, (None, None))
    if place is not None:
        raise UserError(f"{OPTION} {short(log.name)} was changed while it was read. Run again on a copy of it.")


# ---- Times ----


def period_of(time: Any, by: str) -> str | None:
    """The period of a time: `2024-01-31`, `2024-W05` (ISO 8601) or `2024-01`; `None` for what is no time.

    Days are those of UTC where a time says its zone or is an epoch, and else as they are written.

    Args:
        time: a text in ISO 8601, an epoch in seconds, or in thousandths, millionths or billionths of one, or a date.
        by: one of `PERIODS`.
    """
    found = _day(time)
    return None if found is None else _label(found, by)


@lru_cache(maxsize=4096)
def _label(day: date, by: str) -> str:
    if by == "week":
        year, week, _ = day.isocalendar()
        return f"{year:04}-W{week:02}"
    return f"{day:%Y-%m}" if by == "month" else day.isoformat()


def _day(time: Any) -> date | None:
    if isinstance(time, datetime):
        return (time.astimezone(timezone.utc) if time.tzinfo else time).date()
    if isinstance(time, date):
        return time
    if isinstance(time, str):
        time = time.strip()
        written = ISO.match(time)
        if written:
            return _written_day(written)
        return _epoch_day(float(time)) if NUMBER.match(time) else None
    if isinstance(time, int | float) and not isinstance(time, bool):
        return _epoch_day(time)
    return None


def _written_day(written: re.Match) -> date | None:
    year, month, day, hour, minute, second, _, sign, hours, minutes = written.groups()
    try:
        found = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), min(59, int(second or 0)))
        if sign:
            away = timedelta(hours=int(hours), minutes=int(minutes or 0))
            found = found - away if sign == "+" else found + away
        return found.date()
    except (ValueError, OverflowError):  # a month of 13
        return None


def _epoch_day(number: float) -> date | None:
    low, high = EPOCHS
    for unit in UNITS:
        if low <= number / unit < high:
            return datetime.fromtimestamp(number / unit, timezone.utc).date()
    return None


# ---- Files ----


def _columns(file: Path, kind: str, layouts: dict[Path, tuple[Layout, list[str]]]) -> dict[str, Any]:
    """The columns of a file, with their features as far as they are known; notes how one of CSV is written."""
    if file.name.lower().endswith(NOT_OPENED):
        raise UserError(f"{OPTION} {short(file)} is packed in a way that is not opened here; unpack it.")
    with _readable(file):
        if kind == "parquet":
            return dict(Features.from_arrow_schema(pq.read_schema(file)))
        check_text(file, OPTION)
        if kind == "csv":
            layouts[file] = looked_at(file, OPTION)[:2]
            return dict.fromkeys(layouts[file][1])
        first = next(_json_rows(file), None)
        if first is None:
            raise UserError(f"{OPTION} {short(file)} holds no query: it is empty.")
        return dict.fromkeys(first)


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    with text_lines(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    f"{OPTION} {short(file)}, line {number}: it is no JSON object. A log has one a line: "
                    'df.to_json(path, orient="records", lines=True) writes it so.'
                )
            yield row


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Tells in one line, without a word of the log, that a file cannot be read."""
    try:
        yield
    except UnicodeError:
        raise UserError(f"{OPTION} {short(file)} could not be read: save its texts as UTF-8.") from None
    except (OSError, EOFError, pa.ArrowException) as error:
        what = first_line(error) if isinstance(error, OSError) else type(error).__name__
        raise UserError(f"{OPTION} {short(file)} could not be read ({what}).") from None


def _cell(cells: list[str], place: int | None) -> str | None:
    return cells[place] if place is not None and len(cells) > place and cells[place] else None


def _plain_times(times: pa.Array) -> list[Any]:
    """Times as Python has them; of what is finer than a millionth of a second, without the rest."""
    if pa.types.is_timestamp(times.type):
        times = times.cast(pa.timestamp("us", tz=times.type.tz), safe=False)
    return times.to_pylist()


def _text_fault(text: Any, row: int, column: str) -> str | None:
    """What is wrong with a text, in words that show nothing of it."""
    if not isinstance(text, str):
        return (
            f"row {row}, column '{column}': it holds a {type(text).__name__} and no text; name another: --text_column."
        )
    try:
        check_caption(text, row, column)
    except UserError as error:
        return str(error)
    return None
