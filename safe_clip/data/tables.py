"""Tables of text, CSV and its like: each cell as its author wrote it, kept as Parquet.

`datasets` reads CSV by chunks of some thousand rows, each of which guesses anew what its columns hold, and shifts the
columns of a line with a cell too many. Here a whole table is looked at first.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError
from ..store.damaged import check_digests, note_digests, read_kept
from ..store.fingerprints import file_digest, short_digest
from ..store.folders import folder_of
from ..store.writing import whole_file
from .column_names import modality
from .damage import opened

SEPARATORS = ",;\t|"
NO_SEPARATOR = "\x1f"  # of a table of one column, whose lines are cells
TEXTS = ("category", "concept")  # columns of words, besides those of captions
BATCH = 10_000  # rows
INTEGER = re.compile(r"-?(?:0|[1-9]\d*)\Z")
NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?\Z")
TRUTHS = {"True": True, "true": True, "TRUE": True, "False": False, "false": False, "FALSE": False}
TYPES = {"bool": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "text": pa.string()}


class _Unfit(Exception):
    """A table is not written this way; says at which line, and why."""


@dataclass(frozen=True)
class Layout:
    """How a table is written.

    Attributes:
        separator: what stands between cells.
        quotes: whether a cell may stand in quotation marks.
        spaces: whether spaces before a cell are none of it.
        escapes: whether a backslash, not a second mark, stands before a mark inside a cell.
        start: how many lines stand before that of the names.
        surplus: how many empty cells each row has more than there are names.
    """

    separator: str
    quotes: bool = True
    spaces: bool = False
    escapes: bool = False
    start: int = 0
    surplus: int = 0

    def records(self, path: Path) -> Iterator[tuple[int, list[str], list[str]]]:
        """The number of each record's last line, its cells, and its lines as they stand there."""
        csv.field_size_limit(sys.maxsize)  # images may stand in cells
        lines: list[str] = []
        with text_lines(path) as file:

            def kept_lines() -> Iterator[str]:
                for number, line in enumerate(file):
                    if number >= self.start:
                        lines.append(line)
                        yield line

            reader = csv.reader(
                kept_lines(),
                delimiter=self.separator,
                quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
                skipinitialspace=self.spaces,
                escapechar="\\" if self.escapes else None,
                doublequote=not self.escapes,
                strict=True,
            )
            while True:
                first = self.start + reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    if "unexpected end" in str(error):
                        raise _Unfit(first, "a quotation mark is opened and never closed") from error
                    line = self.start + reader.line_num
                    raise _Unfit(line, "a quotation mark stands inside a cell in quotation marks") from error
                if self.escapes:
                    self._check_marks(first, lines)
                if any(cells):
                    yield self.start + reader.line_num, cells, lines
                lines.clear()

    def _check_marks(self, line: int, lines: list[str]) -> None:
        """What `strict` does not see where backslashes stand before marks."""
        plain = [re.sub(r"\\.", "", each) for each in lines]
        try:
            list(csv.reader(plain, delimiter=self.separator, strict=True))
        except csv.Error as error:
            raise _Unfit(line, "a quotation mark stands inside a cell in quotation marks") from error


def text_lines(path: Path) -> io.TextIOWrapper:
    """A file of text for reading, unpacked where it is packed."""
    return io.TextIOWrapper(opened(path), "utf-8-sig", newline="")


def check_json(path: Path, option: str) -> None:
    """Raises `UserError` for a file of JSON that is one object in which rows are not where `datasets` looks."""
    with text_lines(path) as file:
        first = next((line for line in file if line.strip()), "")
        if not first.lstrip().startswith("{") or (first.rstrip().endswith("}") and any(map(str.strip, file))):
            return  # a list, or a row in each line
    try:
        with text_lines(path) as file:
            held = json.load(file)
    except ValueError:  # which is told where it is read
        return
    lists = [key for key, each in held.items() if isinstance(each, list) and each and isinstance(each[0], dict)]
    inner = [set(each) for each in held.values() if isinstance(each, dict)]
    if lists and not any(modality(key) for key in held):
        cure = "Save the list behind it alone" if len(lists) == 1 else "Save the list behind each in a file of its own"
        fault = f"its rows stand behind {' and '.join(repr(key) for key in lists)}. {cure}."
    elif len(inner) == len(held) > 1 and all(each == inner[0] and "0" in each for each in inner):
        fault = 'it has columns in place of rows. Save it with df.to_json(path, orient="records", lines=True).'
    else:
        return
    raise UserError(f"{option} {path} could not be loaded: {fault}")


def as_parquet(paths: Sequence[Path], option: str, together: bool = True) -> list[Path]:
    """Tables of text as Parquet files in the cache of `datasets`.

    Cells that are empty are none; "NA" and "None" are words like others. A column holds numbers or truth values where
    all its cells, in all the tables, do and none would be changed by it; captions and categories are always texts.

    Args:
        paths: CSV and its like, maybe compressed; whatever stands between cells.
        option: the flag that errors name.
        together: whether they are parts of one data set, which have the same columns.

    Raises:
        UserError: a table has no names, a line with too many cells, or a quotation mark that swallows what follows.
        UnicodeDecodeError: a table is not UTF-8.
    """
    known = [(str(path.absolute()), file_digest(path, sys.maxsize)) for path in paths]
    key = short_digest(repr([known, together]))
    folder = folder_of("tables") / key
    made = [folder / f"{number:05}" / _plain(path) for number, path in enumerate(paths)]
    if read_kept(partial(check_digests, folder, sys.maxsize), folder):
        return made
    read = [(path, *looked_at(path, option)) for path in paths]
    if together and not any(kind for _, _, _, own in read for kind in own):
        raise UserError(f"{option} {paths[0]} could not be loaded: it has no rows below its line of names.")
    kinds: dict[frozenset[str], dict[str, str | None]] = {}  # of tables that have the same columns
    for path, _, names, own in read:
        if together and kinds and frozenset(names) not in kinds:
            other = sorted(set(names) ^ set(read[0][2]))[0]
            raise UserError(
                f"{option} {path} could not be loaded: {path.name} and {paths[0].name} have different columns: only "
                f"one has '{other}'. Give them the same, or name one alone."
            )
        held = kinds.setdefault(frozenset(names), dict.fromkeys(names))
        held.update({name: _joined(held[name], kind) for name, kind in zip(names, own, strict=True)})
    for (path, layout, names, _), to in zip(read, made, strict=True):
        held = kinds[frozenset(names)]
        _write(path, layout, names, {name: kind or "text" for name, kind in held.items()}, to)
    note_digests(folder, made, sys.maxsize)
    return made


def _plain(path: Path) -> str:
    return re.sub(r"[*?\[\]{}$:]", "_", path.name) + ".parquet"


def looked_at(path: Path, option: str) -> tuple[Layout, list[str], list[str | None]]:
    """How a table is written, the names of its columns, and what each holds."""
    faults: list[_Unfit] = []
    for layout in _layouts(path, option):
        try:
            return _fitting(path, layout)
        except _Unfit as fault:
            faults.append(fault)
    # A fault of the plainest way of writing says most.
    line, said = faults[0].args
    raise UserError(
        f"{option} {path} could not be loaded: line {line}: {said}. Put a cell that holds the separator, a quotation "
        'mark or a new line into quotation marks, and double the marks inside: "so ""called""".'
    )


def _layouts(path: Path, option: str) -> Iterator[Layout]:
    """The ways in which a table may be written, the likeliest first."""
    start, separator, head, following = 0, None, "", ""
    with text_lines(path) as file:
        for number, line in enumerate(file):
            if head:
                following = line
                break
            if named := re.fullmatch(r"\s*\"?sep=(.)\"?\s*", line):  # as Excel has it
                separator = named[1]
            elif line.strip(' \r\n"'):
                start, head = number, line
            if number > 1000:
                break
        if head.startswith("#") and max(map(following.count, SEPARATORS)) > max(map(head.count, SEPARATORS)):
            start, head = start + 1, following  # a comment
    if not head:
        raise UserError(f"{option} {path} could not be loaded: it is empty, without a line of names. Check its files.")
    own = "\t" if ".tsv" in path.name.lower() else ","
    counts = {each: len(next(csv.reader([head], delimiter=each), [])) for each in SEPARATORS}
    found = sorted((each for each in SEPARATORS if counts[each] > 1), key=lambda each: (-counts[each], each != own))
    if counts[own] > 1:
        found = [own, *(each for each in found if each != own)]
    for each in [separator] if separator else found or [NO_SEPARATOR]:
        yield Layout(each, start=start)
        yield Layout(each, start=start, spaces=True)
        yield Layout(each, start=start, escapes=True)
        if each in ("\t", NO_SEPARATOR):  # where quotation marks may be letters like others
            yield Layout(each, start=start, quotes=False)


def _fitting(path: Path, layout: Layout) -> tuple[Layout, list[str], list[str | None]]:
    """The same, of a way of writing; raises `_Unfit` where the table is written in another."""
    records = layout.records(path)
    _, names, _ = next(records, (0, [], []))
    quoted_names = any(name.startswith('"') for name in names)
    if not layout.quotes and quoted_names:
        raise _Unfit(layout.start + 1, "the names stand in quotation marks")
    width, surplus, full, rows = len(names), 0, False, 0
    kinds: list[str | None] = [None] * width
    texts = [modality(name) == "text" or name.strip().lower() in TEXTS for name in names]
    for line, cells, lines in records:
        rows += 1
        over = len(cells) - width
        if over > 0 and any(cells[width:]):
            raise _Unfit(line, f"it has {len(cells)} cells, and the line of names {width}")
        if rows > 1 and max(over, 0) != surplus:
            raise _Unfit(line, f"it has {len(cells)} cells, and other lines {width + surplus}")
        surplus, full = max(over, 0), full or over >= 0
        if not layout.quotes and over != 0:
            raise _Unfit(line, f"it has {len(cells)} cells, and the line of names {width}")
        if layout.separator == NO_SEPARATOR and "\t" in cells[0]:
            raise _Unfit(line, "it has several cells, and the line of names one")
        if len(lines) > 1 and _swallowed(lines, layout, width):
            raise _Unfit(line - len(lines) + 1, "a quotation mark makes one cell of the lines that follow")
        for place, cell in enumerate(cells[:width]):
            if cell[:1] == " " and layout.quotes and not layout.spaces and cell.lstrip()[:1] == '"':
                raise _Unfit(line, "a space stands before a quotation mark")
            if cell and kinds[place] != "text":
                kinds[place] = "text" if texts[place] else _joined(kinds[place], _kind(cell))
    if rows and not full:
        raise _Unfit(layout.start + 1, f"it names {width} columns, and no line has as many cells")
    layout = Layout(layout.separator, layout.quotes, layout.spaces, layout.escapes, layout.start, surplus)
    return layout, _distinct(names), kinds


def _swallowed(lines: list[str], layout: Layout, width: int) -> bool:
    """Whether the lines of one record look like a record each."""
    if width == 1 or any(line.count(layout.separator) != width - 1 for line in lines):
        return False
    return layout.separator == "\t" or len(lines) > 2


def _kind(cell: str) -> str:
    if INTEGER.match(cell):
        return "integer" if abs(int(cell[:21])) < 2**63 else "text"
    if NUMBER.match(cell):
        digits = re.sub(r"[eE].*|\D", "", cell).strip("0")
        return "number" if len(digits) <= 17 and abs(float(cell)) < float("inf") else "text"
    return "bool" if cell in TRUTHS else "text"


def _joined(one: str | None, other: str | None) -> str | None:
    if one is None or other is None or one == other:
        return one or other
    return "number" if {one, other} == {"integer", "number"} else "text"


def _distinct(names: Iterable[str]) -> list[str]:
    """Names of columns, where several are alike with a number behind, and with one where there is none."""
    found: list[str] = []
    for place, name in enumerate(names):
        name = own = name or f"Unnamed: {place}"
        count = 0
        while name in found:
            count += 1
            name = f"{own}.{count}"
        found.append(name)
    return found


def _write(path: Path, layout: Layout, names: list[str], kinds: dict[str, str], to: Path) -> None:
    """Writes a table as Parquet, whole or not at all, its columns in the order of the kinds."""
    schema = pa.schema([(name, TYPES[kind]) for name, kind in kinds.items()])
    readers = {"bool": TRUTHS.__getitem__, "integer": int, "number": float, "text": str}
    to.parent.mkdir(parents=True, exist_ok=True)
    records = layout.records(path)
    next(records)
    with whole_file(to) as file, pq.ParquetWriter(file, schema) as writer:
        rows: list[list[str]] = []

        def flush() -> None:
            held = {}
            for place, name in enumerate(names):
                read = readers[kinds[name]]
                held[name] = [read(row[place]) if len(row) > place and row[place] else None for row in rows]
            writer.write_table(pa.table({name: held[name] for name in kinds}, schema=schema))
            rows.clear()

        for _, cells, _ in records:
            rows.append(cells)
            if len(rows) == BATCH:
                flush()
        flush()
