"""Writing an index in shards, so that what is held does not grow with it, and nothing is embedded twice."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch.nn.functional import normalize

from .. import __version__
from ..data.allowance import check_bad_share
from ..data.indexed import ABOUT, Part, data_digest
from ..data.rows import check_caption
from ..errors import UserError
from ..outputs import OutputFolder
from ..store.writing import STAGE, remove
from ..terminal import phase
from .embedder import CHUNK, Embedder
from .index import FACTS, KEY, TABLE, Index, index_settings

FAISS = "index.faiss"
LEFT_OUT = "bad_rows.txt"
SHARD = 64 * CHUNK  # items that are held at a time: a row group
# What tells one index from another, and what a message calls it.
SAME = {
    "weights": "model",
    "settings": "model's configuration or processor",
    "precision": "--precision",
    "items": "--items",
    "data": "data",
}


def index_facts(embedder: Embedder, parts: list[Part], **named: Any) -> dict[str, Any]:
    """What an index says of itself.

    Args:
        embedder: embeds it.
        parts: what is embedded.
        **named: names of the model, its revision and the data.
    """
    return {
        "safe_clip": __version__,
        **named,
        "model_class": type(embedder.model.model).__name__,
        "weights": embedder.model.weights,
        "settings": index_settings(embedder),
        "precision": embedder.precision,
        "dimension": embedder.model.dimension,
        "normalised": True,
        "metric": "cosine",
        "items": sorted({part.modality for part in parts}),
        "data": data_digest(parts),
    }


def check_same(folder: Path, facts: dict[str, Any]) -> None:
    """Raises `UserError` where a folder holds a whole index that is another than the facts describe.

    One that was only begun is taken anew: what was embedded is kept elsewhere, known by its content and its model.
    """
    if not any(os.path.lexists(folder / name) for name in (TABLE, FAISS)):
        return
    try:
        known = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        differ = [what for name, what in SAME.items() if known[name] != facts[name]]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):
        known, differ = {}, ["facts, which cannot be read"]
    if differ:
        raise UserError(
            f"--output_dir {folder} holds an index of {known.get('dataset', 'unknown data')} by "
            f"{known.get('model', 'an unknown model')}, with another {differ[0]}: name another folder, or remove this "
            "one."
        )


def write_index(
    folder: OutputFolder, embedder: Embedder, parts: list[Part], facts: dict[str, Any], max_bad_fraction: float | None
) -> dict[str, Any]:
    """Embeds items and writes them as an index. All processes of the embedder's accelerator must call it.

    What was embedded is kept by the embedder's cache: a call that follows one that was cut off goes on where that was,
    and writes the same bytes.

    Args:
        folder: gets `index.parquet`, `index.json` and a list of what was left out; after its `check`.
        embedder: embeds.
        parts: what is embedded.
        facts: as `index_facts` gives them.
        max_bad_fraction: the share of items that may be left out because they cannot be used; `None` for none.

    Returns:
        The facts, with `count`, the number of embeddings, `unsafe`, how many of them are labelled so, and `left_out`.

    Raises:
        UserError: the folder holds another index, or an item cannot be used and may not be left out.
    """
    check_same(folder.path, facts)
    main = embedder.accelerator is None or embedder.accelerator.is_main_process
    processes = embedder.accelerator.num_processes if embedder.accelerator else 1
    total = sum(map(len, parts))
    faults: list[str] = []
    bad_captions = [_bad_captions(part) for part in parts]
    _refuse([fault for found in bad_captions for fault in found.values()], total, max_bad_fraction)
    schema = _schema(parts, facts)
    count = unsafe = 0
    with ExitStack() as stack:
        writer = None
        if main:
            stack.enter_context(folder.lock())
            for stage in folder.path.glob(f"{STAGE}*"):  # of a run that was killed
                remove(stage)
            folder.write(FACTS, _written(facts | {"whole": False}))
            path = stack.enter_context(folder.writing(TABLE))
            writer = stack.enter_context(pq.ParquetWriter(path, schema, use_dictionary=["modality", "split", "column"]))
        stack.enter_context(
            phase(f"Embedding by {embedder.label}", total // processes, not main or not embedder.progress)
        )
        for table, left_out in _tables(embedder, parts, bad_captions, schema):
            faults += left_out
            _refuse(faults[:1] if max_bad_fraction is None else [], total, max_bad_fraction)
            count += len(table)
            if "unsafe" in schema.names:
                unsafe += sum(filter(None, table["unsafe"].to_pylist()))
            if writer:
                writer.write_table(table, row_group_size=SHARD)
        _refuse(faults, total, max_bad_fraction)
    made = facts | {"whole": True, "count": count, "unsafe": unsafe, "left_out": len(faults)}
    if main:
        if faults or (folder.path / LEFT_OUT).exists():
            folder.write(LEFT_OUT, "".join(f"{fault}\n" for fault in faults))
        folder.write(FACTS, _written(made))
    return made | {"faults": faults}


def _written(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=1, sort_keys=True) + "\n"


def _schema(parts: list[Part], facts: dict[str, Any]) -> pa.Schema:
    """The columns that some item has something in."""
    known = [field for field in ABOUT if any(part.about[field.name].null_count < len(part) for part in parts)]
    fields = [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), facts["dimension"]), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
    ]
    return pa.schema([*fields, *known], {KEY: json.dumps(facts, sort_keys=True).encode()})


def _tables(
    embedder: Embedder, parts: list[Part], bad_captions: list[dict[int, str]], schema: pa.Schema
) -> Iterator[tuple[pa.Table, list[str]]]:
    """Each shard's rows of the index, and what is wrong with those items that have none."""
    first = 0  # the number of a part's first item
    for part, bad in zip(parts, bad_captions, strict=True):
        for start in range(0, len(part), SHARD):
            places = range(start, min(start + SHARD, len(part)))
            if part.modality == "image":
                items = embedder.images(part.rows.select(places), part.column)
                kept, faults = items.row.tolist(), list(items.unreadable.values())
            else:
                good = [place for place in places if place not in bad]
                faults = [bad[place] for place in places if place in bad]
                if not good:
                    yield schema.empty_table(), faults
                    continue
                items = embedder.texts(part.rows.select(good)[part.column])
                kept = [place - start for place in good]
            # In half precision, lengths are 1 to a thousandth.
            vectors = pa.array(normalize(items.embeds.float(), dim=1).flatten().numpy())
            columns = {
                "id": pa.array([first + start + place for place in kept], pa.int64()),
                "embedding": pa.FixedSizeListArray.from_arrays(vectors, embedder.model.dimension),
                "modality": pa.array([part.modality] * len(kept), pa.string()),
            }
            about = part.about.slice(start, len(places)).take(pa.array(kept, pa.int64()))
            columns |= {name: about[name] for name in schema.names if name not in columns}
            yield pa.table(columns, schema=schema), faults
        first += len(part)


def _bad_captions(part: Part) -> dict[int, str]:
    """By place, what is wrong with captions that cannot be embedded."""
    found: dict[int, str] = {}
    if part.modality != "text":
        return found
    for place, (row, text) in enumerate(zip(part.about["row"].to_pylist(), part.rows[part.column], strict=True)):
        try:
            check_caption(text, row, part.column)
        except UserError as error:
            found[place] = str(error)
    return found


def _refuse(faults: list[str], total: int, max_bad_fraction: float | None) -> None:
    if faults and max_bad_fraction is None:
        raise UserError(f"{faults[0]} Or have such items left out with --on_bad_row skip.")
    if faults:
        summary = f"{len(faults):,} of {total:,} items cannot be used"
        check_bad_share(len(faults), total, max_bad_fraction or 0, summary, f". The first: {faults[0]}")


def write_faiss(folder: OutputFolder) -> None:
    """Writes a whole index as a FAISS one too: exact, of inner products, known by the same ids.

    Raises:
        UserError: FAISS is not installed.
    """
    faiss = import_faiss()
    index = Index(folder.path)
    made = faiss.IndexIDMap2(faiss.IndexFlatIP(index.dimension))
    for ids, vectors in index.blocks():
        made.add_with_ids(vectors.numpy(), ids.numpy())
    with folder.writing(FAISS) as path:
        faiss.write_index(made, str(path))


def import_faiss() -> Any:
    """The library; raises `UserError` where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise UserError("--format faiss requires FAISS: `pip install 'safe-clip[index]'`.") from error
    return faiss
