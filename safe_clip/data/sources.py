"""Opening a data set, wherever it lies."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError

from ..errors import UserError, explained, hub_trouble
from ..store.damaged import check_digests, made_again, note_digests
from ..store.fingerprints import short_digest
from ..store.folders import folder_of
from ..store.tables import files_of
from .confinement import confined
from .content import cache_of, known_by_content
from .damage import CHECKED, NOT_OPENED, check_files, check_text, is_shard, whole_part
from .features import is_text
from .own_folders import load_files
from .places import Place, find_place, with_plain_tables
from .tables import as_parquet, check_json

logger = logging.getLogger(__name__)


def load_splits(
    name: str,
    config: str | None = None,
    token: str | None = None,
    option: str = "--dataset",
    whole: bool = False,
    split: str | None = None,
    streaming: bool = False,
    skip_damaged: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """Loads all splits of a data set.

    Args:
        name: as for `find_place`.
        config: the configuration of a Hub data set that has several.
        token: a Hub token; the one stored by `hf auth login` by default.
        option: the flag that errors name.
        split: load this split alone.
        whole: of a folder of files, take every one, as one split, whatever split its name sounds like.
        streaming: read rows as they are asked for, in place of all at once; not of what `save_to_disk` wrote.
        skip_damaged: of WebDataset shards that were cut off, take what there is, and say so.

    Returns:
        The splits; a data set without any is `train`.

    Raises:
        UserError: the data set cannot be found or opened.
    """
    place = find_place(name, option, whole)
    with _unreadable() as unreadable, _explaining(name, config, option, place, unreadable):
        place = _mended(place) if skip_damaged else place
        files = _files(place)
        check_files([file for file in files if file.name.lower().endswith(CHECKED)], option)
        for file in files:
            if re.search(r"\.([ct]sv|json|jsonl|ndjson)(\.(gz|bz2|xz))?\Z", file.name, re.IGNORECASE):
                check_text(file, option)
            if place.name == "json" and ".json" in file.name.lower() and file.suffix.lower() not in NOT_OPENED:
                check_json(file, option)
        cache = None if streaming else cache_of(files)
        place = _as_parquet(place, option)

        def load() -> DatasetDict | IterableDatasetDict | Dataset:
            if cache:
                check_digests(cache)
            kept = {"cache_dir": cache and str(cache), "streaming": streaming, **place.options}
            if place.saved:
                splits = load_from_disk(place.name)
            elif place.files:
                splits = load_files(place.name, place.files, place.folders, **kept)
            else:
                every = "**" if whole and place.home else None
                splits = load_dataset(place.name, config, data_files=every, split=split, token=token, **kept)
                splits = DatasetDict({split: splits}) if split else splits
            _check_text(splits)
            if streaming and place.home:  # what is broken at once is told at once
                for rows in splits.values() if isinstance(splits, Mapping) else [splits]:
                    next(iter(rows), None)
            if cache:
                every = splits.values() if isinstance(splits, DatasetDict) else [splits]
                note_digests(cache, {file for rows in every for file in files_of(rows)})
            return known_by_content(splits)

        splits = made_again(load, cache)
    if not splits and not isinstance(splits, Dataset):
        raise UserError(f"{option} {name} has no splits.")
    splits = splits if place.home else confined(splits, place.name)
    return DatasetDict(train=splits) if isinstance(splits, Dataset) else splits


def _mended(place: Place) -> Place:
    """The same rows without what is lost of shards that were cut off."""
    folder = folder_of("mended")

    def mended(file: str) -> str:
        path = Path(file)
        key = short_digest(f"{path.absolute()} {path.stat()[6:9]}")
        return str(whole_part(path, folder / key)) if is_shard(path) else file

    return replace(place, files={split: [mended(file) for file in files] for split, files in place.files.items()})


def _as_parquet(place: Place, option: str) -> Place:
    """The same rows, those of CSV and its like as Parquet, in which each cell is what it was meant to be."""
    if place.home is not None and not place.files and not place.saved and Path(place.name).is_dir():
        return with_plain_tables(place, lambda tables: as_parquet(tables, option, together=False))
    if place.name != "csv" or any(
        file.lower().endswith(NOT_OPENED) for files in place.files.values() for file in files
    ):
        return place
    made = iter(as_parquet([Path(file) for files in place.files.values() for file in files], option))
    files = {split: [str(next(made)) for _ in files] for split, files in place.files.items()}
    return replace(place, name="parquet", files=files, options={})


def _files(place: Place) -> list[Path]:
    """The files of this machine that are read, but for what `save_to_disk` wrote."""
    if place.files:
        return [Path(file) for files in place.files.values() for file in files]
    if place.home is None or place.saved:
        return []
    inside = ((path, path.relative_to(place.name).parts) for path in Path(place.name).rglob("*"))
    return sorted(path for path, parts in inside if not any(part.startswith(".") for part in parts) and path.is_file())


@contextmanager
def _unreadable() -> Iterator[list[str]]:
    """The files that `datasets` could not read, which its errors do not name, and its log does."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if named := re.search(r"from (?:file )?'(.*?)' with error|file '(.*?)' with error", record.getMessage()):
                found.append(next(filter(None, named.groups())))

    log = logging.getLogger("datasets")
    listener = Listener(logging.ERROR)
    log.addHandler(listener)
    try:
        yield found
    finally:
        log.removeHandler(listener)


@contextmanager
def _explaining(name: str, config: str | None, option: str, place: Place, unreadable: list[str]) -> Iterator[None]:
    """Tells in one line what went wrong in opening a data set, and what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # unreadable files, unknown configurations, no connection: each its own type
        if trouble := hub_trouble(error) or explained(error):
            raise UserError(f"{option} {name}: {trouble}") from error
        if isinstance(error, DatasetNotFoundError | GatedRepoError):
            page = f"https://huggingface.co/datasets/{name}"
            if isinstance(error, GatedRepoError) or "gated" in str(error):
                raise UserError(
                    f"{option} {name} is gated: accept its terms at {page}, then log in with `hf auth login`."
                ) from error
            raise UserError(
                f"{option} {name} was found neither as a folder nor at {page}. Check the spelling; "
                "if it is private, log in with `hf auth login`."
            ) from error
        if names := re.search(r"(?:available configs|Available): \[(.+?)\]", str(error)):
            names = [each.strip(" '\"") for each in names[1].split(",")]
            cure = (
                f"name one, such as --dataset_config {names[0]}" if option == "--dataset" else "name the files of one"
            )
            had = f"no configuration '{config}', only" if config else "several configurations,"
            raise UserError(f"{option} {name} has {had} {', '.join(names)}: {cure}.") from error
        said = str(error.__cause__ or error) or "it holds no rows"
        cure = "Check its files." if place.home else "Check the spelling and the connection."
        if re.search(r"UTF-?8|codec can't decode", f"{error} {error.__cause__}", re.IGNORECASE):
            cure = "Save its texts as UTF-8."
        if place.home and "Couldn't cast" in said:
            there, _, asked = " ".join(said.split()).partition(" to {")
            differ = set(re.findall(r"'([^']+)': (?:Value|List|{|\[)", asked)) ^ set(re.findall(r"(\S+): ", there))
            named = " and ".join(f"'{each}'" for each in sorted(differ - {"schema", "cast"})) if asked else ""
            named = f", {named} too" if named else ""
            cure = f"Each row must have the same columns{named}, of one kind from the first on."
        if "truncated converting" in said:
            cure = "A column must hold numbers of one kind from its first row on: write 1.0 in place of 1."
        if "share the same prefix or the same types" in said:
            cure = "The first five samples of the shards must have every kind of file that later ones have."
        if "scripts are no longer supported" in str(error):
            cure = "Code from a repository is not run; its rows are required as files, such as Parquet."
        if missing := re.search("zstandard|zstd|lz4", said):
            cure = f"`pip install {missing[0].replace('zstd', 'zstandard')}`, or unpack it."
        where = f"{option} {name}"
        if unreadable and Path(unreadable[0]).name != Path(name).name:
            where += f", file {Path(unreadable[0]).name},"
        raise UserError(f"{where} could not be loaded ({said}). {cure}") from error


def _check_text(splits: Any) -> None:
    """Raises `pyarrow.ArrowInvalid` for texts of an encoding that is found out only when they are read."""
    for rows in splits.values() if isinstance(splits, DatasetDict) else ():
        texts = [name for name, feature in rows.features.items() if is_text(feature)]
        rows.data.table.select(texts).validate(full=True)
