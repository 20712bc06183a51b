"""Where what is computed once is kept, each kind in a folder of its own, and what is there."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .writing import STAGE

DIGESTS = "digests.json"  # of the files of a table
KIND = "kind"  # among these, what sort of table it is
# What is kept, by the name of its kind.
KINDS = {
    "embeddings": "embeddings that figures are computed from",
    "reference_embeddings": "the original model's embeddings of training rows",
    "pixels": "decoded images of training rows",
    "audit": "what an audit has read and scored",
    "demo": "the bundled demo's rows",
    "earlier": "tables of earlier versions",
    "rows": "what `datasets` has made of files of yours",
    "tables": "tables of text, as Parquet",
    "fetched": "images behind addresses",
    "mended": "what is whole of shards that were cut off",
    "links": "links to files of yours, under names that `datasets` reads",
    "generated": "generated images and captions of --output_dir",
}
TABLES = ("pixels", "audit", "demo", "earlier")  # which `store.tables` keeps
GENERATED = "generated"  # in the folder of a run
KEY = re.compile(r"[0-9a-f]{16}")
NAMES = {
    "fetched": re.compile(rf"[0-9a-f]{{64}}(-[0-9a-f]{{32}})?\.\w+|{re.escape(STAGE)}\w+\.\w+"),
    **dict.fromkeys(TABLES, re.compile(rf"default-fingerprint={KEY.pattern}")),
}


def folder_of(kind: str) -> Path:
    """Where a kind is kept, but for what is generated."""
    import datasets  # slow, and the kinds are named before it

    if kind == "embeddings":
        return Path(datasets.config.HF_CACHE_HOME) / "safe_clip" / "embeddings"
    if kind in TABLES:
        kind = "generator"
    elif kind in ("reference_embeddings", "rows", "tables", "fetched"):
        kind = Path("safe_clip", kind if kind != "rows" else "")
    return Path(datasets.config.HF_DATASETS_CACHE) / kind


@dataclass(frozen=True)
class Entry:
    """A file or folder that is kept.

    Attributes:
        path: the file or folder.
        size: bytes.
        time: when it was last written, in seconds since 1970.
    """

    path: Path
    size: int
    time: float


def entries(kind: str, folder: Path) -> Iterator[Entry]:
    """What this package wrote of a kind into its folder, and nothing else that is there."""
    names = NAMES.get(kind, KEY)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if names.fullmatch(path.name) and (kind not in TABLES or _kind_of_table(path) == kind):
            files = [each.lstat() for each in (path.rglob("*") if path.is_dir() else [path]) if not each.is_dir()]
            files = files or [path.lstat()]
            yield Entry(path, sum(file.st_size for file in files), max(file.st_mtime for file in files))


def _kind_of_table(folder: Path) -> str | None:
    """The kind that a table's folder notes; `None` where it is not of this package, or not whole."""
    try:
        kind = json.loads((folder / DIGESTS).read_text(encoding="utf-8")).get(KIND)
        return kind if kind in TABLES else "earlier"
    except (OSError, ValueError, AttributeError):
        return None
