"""Opening a data set, wherever it lies."""

import re
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import GatedRepoError

from ..errors import UserError, explained, hub_trouble
from .content import cache_of, known_by_content, made_again
from .features import is_text

# An empty cell is none; "NA" and "None" are words like others.
CSV = {"keep_default_na": False, "na_values": [""]}
# Kinds of files, and how `datasets` calls them.
FILES: dict[str, tuple[str, dict]] = {
    ".csv": ("csv", CSV),
    ".tsv": ("csv", CSV | {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".tar": ("webdataset", {}),
}


def load_splits(
    name: str,
    config: str | None = None,
    token: str | None = None,
    option: str = "--dataset",
    whole: bool = False,
    split: str | None = None,
    streaming: bool = False,
) -> DatasetDict | IterableDatasetDict:
    """Loads all splits of a data set.

    Args:
        name: the id of a data set on the Hub, a folder written by `save_to_disk`, any folder that
            `datasets.load_dataset` reads, a file of one of the `FILES`, or a pattern such as `shards/*.tar`.
        config: the configuration of a Hub data set that has several.
        token: a Hub token; the one stored by `hf auth login` by default.
        option: the flag that errors name.
        split: load this split alone.
        whole: of a folder of files, take every one, as one split, whatever split its name sounds like.
        streaming: read rows as they are asked for, in place of all at once; not of what `save_to_disk` wrote.

    Returns:
        The splits; a data set without any is `train`.

    Raises:
        UserError: the data set cannot be found or opened.
    """
    cache = None if streaming else cache_of(name)

    def load() -> DatasetDict | IterableDatasetDict | Dataset:
        if (Path(name) / "dataset_dict.json").exists() or (Path(name) / "dataset_info.json").exists():
            splits = load_from_disk(name)
        elif Path(name).is_file() or Path(name).suffix == ".tar":
            splits = _file(name, option, streaming, cache)
        else:
            files = "**" if whole and Path(name).is_dir() else None
            kept = {"cache_dir": cache and str(cache), "streaming": streaming}
            splits = load_dataset(name, config, data_files=files, split=split, token=token, **kept)
            splits = DatasetDict({split: splits}) if split else splits
        _check_text(splits)
        return known_by_content(splits)

    try:
        splits = made_again(load, cache)
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
        cure = "Check its files." if Path(name).exists() else "Check the spelling and the connection."
        if re.search(r"UTF-?8|codec can't decode", f"{error} {error.__cause__}", re.IGNORECASE):
            cure = "Save its texts as UTF-8."
        if "share the same prefix or the same types" in str(error.__cause__ or error):
            cure = "The first five samples of the shards must have every kind of file that later ones have."
        if "scripts are no longer supported" in str(error):
            cure = "Code from a repository is not run; its rows are wanted as files, such as Parquet."
        raise UserError(f"{option} {name} could not be loaded ({error.__cause__ or error}). {cure}") from error
    if not splits and not isinstance(splits, Dataset):
        raise UserError(f"{option} {name} has no splits.")
    return DatasetDict(train=splits) if isinstance(splits, Dataset) else splits


def _check_text(splits: Any) -> None:
    """Raises `pyarrow.ArrowInvalid` for texts of an encoding that is found out only when they are read."""
    for rows in splits.values() if isinstance(splits, DatasetDict) else ():
        texts = [name for name, feature in rows.features.items() if is_text(feature)]
        rows.data.table.select(texts).validate(full=True)


def _file(name: str, option: str, streaming: bool, cache: Path | None) -> DatasetDict | IterableDatasetDict:
    suffix = Path(name).suffix.lower()
    if suffix not in FILES:
        raise UserError(f"{option} {name} is a file of no known kind; those are {', '.join(FILES)}.")
    kind, options = FILES[suffix]
    return load_dataset(kind, data_files=name, streaming=streaming, cache_dir=cache and str(cache), **options)
