"""What a person means by the name of a data set: which files, of which kind, or none of this machine."""

import glob
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

from ..errors import UserError
from ..outputs import MANIFEST, REPLACED, OutputFolder
from ..store.fingerprints import short_digest
from ..store.folders import folder_of
from ..store.writing import whole_file, write_whole
from .cells import file_path, short
from .image_join import IMAGE_SUFFIXES

# An empty cell is none; "NA" and "None" are words like others.
CSV = {"keep_default_na": False, "na_values": [""]}
# Kinds of files, and how `datasets` calls them.
FILES: dict[str, tuple[str, dict]] = {
    ".csv": ("csv", CSV),
    ".tsv": ("csv", CSV | {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".feather": ("arrow", {}),
    ".tar": ("webdataset", {}),
}
PACKED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")  # endings behind one of those
CURES = {
    ".xlsx .xls .xlsm .ods": "a spreadsheet; save it as CSV (UTF-8)",
    ".pkl .pickle .pt .pth .joblib .dill": "a pickle, which could run code when it is read; save it as Parquet",
    ".npz .npy .h5 .hdf5 .mat": "an archive of arrays; save it as Parquet, with images encoded or as arrays",
    ".zip .7z .rar": "an archive; unpack it and name the folder (a zip of images that rows name by a number: "
    "--safe_images, --unsafe_images)",
    ".txt .text .md .list": "a text without columns; save it as CSV with a line of names, such as safe_caption",
    ".db .sqlite .sqlite3 .sql": "a database; save the table as CSV or Parquet",
    ".yaml .yml .xml .html": "no table; save it as JSON lines or CSV",
}
SAVED = ("dataset_dict.json", "dataset_info.json")  # what `save_to_disk` writes
METADATA = re.compile(r"metadata\.(?:csv|jsonl|parquet)\Z")  # beside images, for `datasets`
TEXT_TABLE = re.compile(r"\.[ct]sv(?:\.(?:gz|bz2|xz))?(?![\w.])", re.IGNORECASE)
OWN_READING = re.compile(r"^\s+(?:- )?(?:sep|delimiter|names|column_names|header|quoting|skiprows)\s*:", re.MULTILINE)
PATTERN = re.compile(r"[*?\[{]")
MISREAD = re.compile(r"[*?\[\]{}$]|::|://")  # what `datasets` reads as a pattern or a chain of addresses
HUB_PAGE = re.compile(r"(?:https?://(?:www\.)?huggingface\.co/|hf://)datasets/([\w.-]+(?:/[\w.-]+)?)/?\Z")


@dataclass(frozen=True)
class Place:
    """Where the rows lie.

    Attributes:
        name: what `load_dataset` or `load_from_disk` takes: a folder, a kind of files, or the id of a data set.
        files: of a kind of files, those, by split where their names tell.
        folders: where each of `files` lies, links aside.
        options: for `load_dataset`.
        home: the folder from which paths in the rows are meant; `None` for what does not lie on this machine.
        saved: whether `save_to_disk` wrote it.
    """

    name: str
    files: dict[str, list[str]] = field(default_factory=dict)
    folders: dict[str, list[Path]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    home: Path | None = None
    saved: bool = False


def find_place(name: str, option: str = "--dataset", whole: bool = False) -> Place:
    """Where the rows of a name lie.

    Args:
        name: the id of a data set on the Hub, or its page; a folder; a file of one of the `FILES`, maybe compressed; or
            a pattern such as `shards/*.tar` or `shards/{0000..0063}.tar`. What exists is meant as it is, whatever
            characters it has; `~` and `$HOME` are understood.
        option: the flag that errors name.
        whole: take a folder as it is, and look for no table beside images.

    Raises:
        UserError: a file is of no known kind, a pattern fits none, or a folder has several tables beside its images
            whose names say no split.
    """
    if page := HUB_PAGE.match(name):
        return Place(page[1])
    path = local_path(name)
    if path is not None:
        if path.is_dir():
            return _folder(path, f"{option} {short(name)}", whole)
        if not path.is_file():
            raise UserError(f"{option} {short(name)} is neither a file nor a folder, but a device, pipe or socket.")
        return _files([path], f"{option} {short(name)}", name)
    if "://" in name:
        raise UserError(f"{option} {short(name)} is an address; download the file and name it.")
    if PATTERN.search(name):
        there, rest = _literal_part(_expanded(name))
        patterns = [glob.escape(there) + each for each in _braces(rest)]
        found = sorted({file for each in patterns for file in glob.glob(each, recursive=True)})
        found = [Path(file) for file in found if os.path.isfile(file)]
        if not found:
            raise UserError(f"{option} {short(name)} fits no file of this machine. Check the pattern; quote it.")
        return _files(found, f"{option} {short(name)}", name)
    if name.startswith((".", "/", "~", "$")) or "\\" in name or _suffix(Path(name)) in FILES or name.count("/") > 1:
        raise UserError(
            f"{option} {short(name)} could not be loaded (there is no such file or folder). Check the spelling."
        )
    return Place(name)


def local_path(name: str) -> Path | None:
    """The path of this machine that a name stands for, if there is something."""
    if name.startswith("file://"):
        name = file_path(name)
    for each in (name, _expanded(name), name.replace("\\", "/")):
        try:
            if each and os.path.exists(each):
                return Path(each)
        except ValueError:  # a NUL
            return None
    return None


def _expanded(name: str) -> str:
    return os.path.expanduser(os.path.expandvars(name))


def _literal_part(pattern: str) -> tuple[str, str]:
    """The folders that a pattern begins with and that exist as they are called, and the rest of it."""
    parts, there = pattern.split("/"), 0
    while there < len(parts) - 1 and os.path.isdir("/".join(parts[: there + 1]) or "/"):
        there += 1
    literal = "".join(f"{part}/" for part in parts[:there])
    return literal, pattern[len(literal) :]


def _braces(pattern: str) -> Iterator[str]:
    """The patterns that `{a,b}` and `{00..12}` stand for, as shells and WebDataset have them."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") or len(span[1]) == len(span[2]) else 0
        words = (str(number).zfill(width) for number in range(int(span[1]), int(span[2]) + 1))
    else:
        words = iter(found[1].split(","))
    for word in words:
        yield from _braces(f"{pattern[: found.start()]}{word}{pattern[found.end() :]}")


def _suffix(path: Path) -> str:
    """The ending that tells a file's kind, in small letters, without that of its compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".tgz"]:
        return ".tar"
    if len(suffixes) > 1 and suffixes[-1] in PACKED and suffixes[-2] in FILES:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def _files(paths: list[Path], where: str, name: str) -> Place:
    """Files of one kind, as the split `train`."""
    kinds = Counter(_kind(path) for path in paths)
    for suffix in kinds:
        if suffix not in FILES:
            cure = next((cure for endings, cure in CURES.items() if suffix in endings.split()), None)
            known = f"is a file of no known kind; those are {', '.join(FILES)}"
            raise UserError(f"{where} {known}.{f' It is {cure}.' if cure else ''}")
    if len({FILES[suffix][0] for suffix in kinds}) > 1:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(kinds.items()))
        raise UserError(f"{where} fits files of several kinds ({listed}); name those of one kind.")
    home = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    # As a person wrote it, so that errors name paths as they are known.
    home = paths[0].parent if len({path.parent for path in paths}) == 1 else home
    kind, options = FILES[next(iter(kinds))]
    files = {"train": [readable(path) for path in paths]}
    return Place(kind, files, {"train": [path.parent for path in paths]}, options, home)


def _kind(path: Path) -> str:
    suffix = _suffix(path)
    if suffix == ".zip" and zipfile.is_zipfile(path):  # of one table, as spreadsheets and Kaggle give them
        with zipfile.ZipFile(path) as archive:
            inside = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
        inside = [entry for entry in inside if "__MACOSX" not in entry]
        suffix = _suffix(Path(inside[0])) if len(inside) == 1 and _suffix(Path(inside[0])) in FILES else suffix
    return suffix


def _folder(path: Path, where: str, whole: bool) -> Place:
    """A folder: as it is, or the tables that lie in it, which `datasets` would not see beside images."""
    if any((path / name).exists() for name in SAVED):
        return Place(str(_beside(path, data_alone=True)), home=path, saved=True)
    if whole:
        return Place(readable(path), home=path)
    images, tables = False, []
    for folder, inside, names in os.walk(path, followlinks=False):
        inside[:] = sorted(each for each in inside if not each.startswith((".", "__")) and each != REPLACED)
        images = images or any(each.lower().endswith(IMAGE_SUFFIXES) for each in names)
        tables += [Path(folder, each) for each in sorted(names) if not each.startswith(".") and _is_table(each)]
    # No pipe, no link that leads nowhere, nor what this package lists of images that it could not fetch.
    tables = [table for table in tables if table.is_file() and not _is_list_of_ours(table)]
    if _has_configurations(path) or not tables or any(METADATA.match(table.name) for table in tables):
        return Place(readable(path), home=path)
    notes = [table for table in tables if _suffix(table) != ".json"]  # settings and logs are often JSON
    tables = notes or tables
    found = _files(tables, where, str(path))
    if images and len(tables) == 1:
        return found
    splits = _by_split(path, tables)
    by_name = {table for named in splits.values() for table in named}
    said = [str(table.relative_to(path)) for table in tables if table in by_name]
    left = [str(table.relative_to(path)) for table in tables if table not in by_name]
    if said and left:
        raise UserError(
            f"{where}: the names of some tables say a split ({', '.join(said[:5])}), and those of others none: "
            f"{', '.join(left[:5])}. Say it in all names, such as train-{Path(left[0]).name}, or name the file or a "
            "pattern of those meant."
        )
    if left and images:
        raise UserError(
            f"{where} holds {len(left)} tables beside its images: {', '.join(left[:5])}{', …' * (len(left) > 5)}. Name "
            f"the one that is meant, such as {short(str(tables[0]))}, or several by a pattern."
        )
    splits = splits or {"train": tables}
    files = {split: [readable(table) for table in named] for split, named in splits.items()}
    folders = {split: [table.parent for table in named] for split, named in splits.items()}
    return replace(found, files=files, folders=folders)


def _by_split(path: Path, tables: list[Path]) -> dict[str, list[Path]]:
    """Those tables of a folder whose names, or their folders', say a split, as `datasets` sees it."""
    base = Path(readable(path)).absolute()
    links = {str(base / table.relative_to(path)): table for table in tables}
    try:
        patterns = get_data_patterns(str(base))
    except EmptyDatasetError:  # below names that it passes over
        return {}
    if list(patterns.values()) == [["**"]]:  # no name says one
        return {}
    seen = DataFilesDict.from_patterns(patterns, base_path=str(base))
    splits = {str(split): [links[file] for file in named if file in links] for split, named in seen.items()}
    return {split: named for split, named in splits.items() if named}


def _has_configurations(path: Path) -> bool:
    """Whether a folder says itself, as those on the Hub do, what its rows are."""
    card = path / "README.md"
    return card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace")


def with_plain_tables(place: Place, convert: Callable[[list[Path]], list[Path]]) -> Place:
    """A folder that `datasets` itself reads, with its tables of text as they are converted, and its card's names for
    them changed accordingly; the same folder where it has none, or says itself how they are read.

    Args:
        place: a folder.
        convert: gives for each table another file.
    """
    path, card = Path(place.name), Path(place.name, "README.md")
    inside = (Path(folder, name) for folder, _, names in os.walk(path) for name in sorted(names))
    tables = [file for file in inside if TEXT_TABLE.search(file.name) and not file.name.startswith((".", "~$"))]
    if not tables:
        return place
    said = card.read_text(encoding="utf-8", errors="replace") if _has_configurations(path) else ""
    head, mark, rest = said.partition("\n---")
    if OWN_READING.search(head):
        return place
    others = {file.absolute(): made for file, made in zip(tables, convert(tables), strict=True)}
    if said:
        text = f"{TEXT_TABLE.sub('.parquet', head)}{mark}{rest}"
        changed = others[tables[0].absolute()].with_name(f"{short_digest(text)}.md")
        write_whole(changed, text)
        others[card.absolute()] = changed
    return replace(place, name=str(_beside(path, others=others)))


def _is_table(name: str) -> bool:
    return _suffix(Path(name)) in FILES.keys() - {".tar"} and not name.startswith("~$")  # a lock of Excel


def _is_list_of_ours(table: Path) -> bool:
    return table.name == MANIFEST or OutputFolder(table.parent).is_ours(table.name)


def readable(path: Path) -> str:
    """A path that `datasets` takes for what it is: itself, or a link whose name has none of what it reads as a
    pattern."""
    return str(_beside(path)) if MISREAD.search(str(path.absolute())) else str(path)


def _beside(path: Path, data_alone: bool = False, others: Mapping[Path, Path] | None = None) -> Path:
    """Links to a file, or to all files of a folder, in the cache of `datasets`, under a name that it reads as it is.

    What it writes beside a data set goes there then, not into a folder that is somebody's own, or cannot be written.

    Args:
        path: a file or folder.
        data_alone: leave out what `datasets` itself kept in the folder.
        others: files that stand for some of the folder, under their own endings.
    """
    path = path.absolute()
    files = (
        [path] if path.is_file() else sorted(Path(folder, each) for folder, _, names in os.walk(path) for each in names)
    )
    files = [file for file in files if not (data_alone and file.name.startswith(("cache-", "tmp")))]
    others = others or {}
    known = [path.resolve(), *sorted(files), *others.values()]
    key = short_digest("\n".join(map(str, known)))
    root = folder_of("links") / key
    plain = re.sub(MISREAD, "_", path.name)
    for file in files:
        link = root / plain if file == path else root / plain / file.relative_to(path)
        link.parent.mkdir(parents=True, exist_ok=True)
        if file in others:
            link, file = link.with_name(TEXT_TABLE.sub(others[file].suffix, link.name)), others[file]
        try:
            if not link.is_symlink() or link.readlink() != file:
                with whole_file(link) as partial:
                    partial.symlink_to(file)
        except OSError:  # a file system or a system without links
            return path
    return root / plain
