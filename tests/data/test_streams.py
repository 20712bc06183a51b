"""Streams of rows, by one process and by several, with and without workers."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, IterableDataset

from safe_clip import QuadrupletCollator, QuadrupletRows, UserError
from safe_clip.data.streams import QuadrupletStream, StreamLoader, row_keys

from ..helpers import FEATURES, make_rows
from ..programs import run_python

ROOT = Path(__file__).parent.parent.parent


def stream_of(rows, shards=4, **options):
    return QuadrupletStream(rows.to_iterable_dataset(shards), **options)


def captions_of(batch, processor):
    count = int(batch["layout"].present[:, 0].sum())
    return [
        text.strip() for text in processor.tokenizer.batch_decode(batch["input_ids"][:count], skip_special_tokens=True)
    ]


def test_a_stream_gives_what_rows_give(rows):
    streamed = list(stream_of(rows, 1, shuffle_buffer=0))
    for item, expected in zip(streamed, QuadrupletRows(rows), strict=True):
        assert item["unsafe_image"].tobytes() == expected["unsafe_image"].tobytes()
        assert {name: item[name] for name in ("safe_caption", "unsafe_caption", "relabelled", "half_unsafe")} == {
            name: expected[name] for name in ("safe_caption", "unsafe_caption", "relabelled", "half_unsafe")
        }


def test_labels_and_gaps_are_filed_as_those_of_rows(rows):
    labelled = rows.remove_columns("unsafe_image").add_column("unsafe_caption_is_safe", [True, None] * 12)
    streamed, expected = list(stream_of(labelled, 3, shuffle_buffer=0)), list(QuadrupletRows(labelled))
    assert len(streamed) == len(expected) == 36
    facts = ("safe_caption", "unsafe_caption", "relabelled", "half_unsafe")
    assert [[item[name] for name in facts] for item in streamed] == [
        [item[name] for name in facts] for item in expected
    ]


def test_rows_are_shuffled_anew_in_each_epoch_and_the_same_at_every_run(rows):
    orders = []
    for epoch in (0, 1, 0):
        stream = stream_of(rows, shuffle_buffer=10)
        stream.set_epoch(epoch)
        orders.append([item["safe_caption"] for item in stream])
    assert orders[0] != orders[1] and orders[0] == orders[2] and sorted(orders[0]) == sorted(rows["safe_caption"])


def batches(rows, processor, count, start=0, workers=0, **options):
    loader = StreamLoader(
        stream_of(rows, **options),
        5,
        QuadrupletCollator(processor, 77),
        Accelerator(cpu=True),
        start,
        num_workers=workers,
    )
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_in_the_middle_gives_the_batches_that_were_left(workers, rows, processor):
    """24 rows in batches of 5: with two workers, 6 batches an epoch, with none, 5. The last start lies in the
    second."""
    whole = batches(rows, processor, 11, workers=workers)
    assert len({tuple(captions_of(batch, processor)) for batch in whole}) == 11
    for start in (1, 4, 5, 6, 8):
        rest = batches(rows, processor, 11 - start, start, workers)
        for batch, expected in zip(rest, whole[start:], strict=True):
            layout, same = batch.pop("layout"), expected["layout"]
            assert all(torch.equal(tensor, expected[name]) for name, tensor in batch.items())
            assert (layout.present == same.present).all() and batch.keys() | {"layout"} == expected.keys()


def test_what_was_trained_on_is_not_decoded_again(rows, processor, monkeypatch):
    from safe_clip.data import rows as reading

    opened = []
    open_image = reading.open_image
    monkeypatch.setattr(reading, "open_image", lambda *cell: opened.append(cell) or open_image(*cell))
    batches(rows, processor, 1, start=3)
    assert len(opened) == 2 * 5


def broken(rows, bad):
    table = rows.with_format("arrow")[:].to_pylist()
    for row in bad:
        table[row]["unsafe_caption"] = " "
    return Dataset.from_list(table, features=FEATURES)


def test_bad_rows_stop_a_stream_or_are_listed_and_left_out(rows, processor, tmp_path):
    damaged = broken(rows, [3, 17])
    with pytest.raises(UserError, match="row 3 of the stream, .*, column 'unsafe_caption': the caption is empty"):
        list(stream_of(damaged, 1, shuffle_buffer=0))
    skipping = {"bad_rows": tmp_path / "bad_rows.txt", "shuffle_buffer": 0}
    kept = list(stream_of(damaged, 1, **skipping))
    assert [item["safe_caption"] for item in kept] == [
        text for n, text in enumerate(rows["safe_caption"]) if n not in (3, 17)
    ]
    lines = (tmp_path / "bad_rows.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"split 'train', row {row} of the stream, as it is read here, column 'unsafe_caption'" for row in (3, 17)
    ]
    again = stream_of(damaged, 1, **skipping)
    again.set_epoch(1)
    assert len(list(again)) == 22 and len((tmp_path / "bad_rows.txt").read_text().splitlines()) == 2  # told once
    listing = stream_of(damaged, 1, **skipping)
    listing.listed = row_keys(damaged.select([17]))  # by whoever read it before
    (tmp_path / "bad_rows.txt").unlink()
    assert len(list(listing)) == 22 and "row 3 of" in (tmp_path / "bad_rows.txt").read_text().strip().split("\n")[-1]
    known = stream_of(damaged.add_column("coco_id", list(range(100, 124))), 4)
    with pytest.raises(UserError, match="row of coco_id (103|117), column 'unsafe_caption': the caption is empty"):
        list(known)
    assert len(stream_of(damaged, 1, **skipping).head(10)) == 10
    # Going on, it leaves out the same rows, so that batches are the same.
    whole, rest = (batches(damaged, processor, 3 - start, start, shards=1, **skipping) for start in (0, 2))
    assert captions_of(whole[2], processor) == captions_of(rest[0], processor)


def test_too_many_bad_rows_stop_a_stream(tmp_path):
    rows = broken(Dataset.from_dict(make_rows(200), features=FEATURES), range(0, 200, 8))
    stream = stream_of(rows, 1, shuffle_buffer=0, bad_rows=tmp_path / "bad_rows.txt", max_bad_fraction=0.1)
    with pytest.raises(UserError, match=r"14 of the first 105 rows cannot be used, more than --max_bad_fraction 0\.1 "):
        list(stream)


def test_a_stream_whose_columns_nobody_knows_is_looked_at():
    rows = IterableDataset.from_generator(lambda: iter([{"safe_caption": "a dog", "unsafe_caption": "a wolf"}] * 3))
    stream = QuadrupletStream(rows)
    assert stream.columns == ["safe_caption", "unsafe_caption"] and len(list(stream)) == 3
    assert stream.digest == QuadrupletStream(rows).digest


SHARED = """
import json, sys
from accelerate import Accelerator
from datasets import Dataset
from safe_clip.data.streams import QuadrupletStream, StreamLoader, row_keys

class Collate:
    def __call__(self, rows):
        return {"captions": [row["safe_caption"] for row in rows]}

out, accelerator, seen = sys.argv[1], Accelerator(cpu=True), []
for count, shards, workers in json.loads(sys.argv[2]):
    rows = Dataset.from_dict({"safe_caption": [f"row {n}" for n in range(count)]}).to_iterable_dataset(shards)
    stream = QuadrupletStream(rows, shuffle_buffer=7).share(accelerator.process_index, accelerator.num_processes)
    loader = StreamLoader(stream, 3, Collate(), accelerator, num_workers=workers)
    stream.set_epoch(0)
    seen.append([batch["captions"] for batch in loader._even(iter(loader.loader))])
open(f"{out}/{accelerator.process_index}", "w").write(json.dumps(seen))
"""


@pytest.mark.slow
def test_two_processes_with_workers_see_every_row_once_an_epoch(tmp_path):
    """Files that can and that cannot be shared out evenly; where rows cannot, the one that is out of them repeats its
    last."""
    cases = [(48, 4, 2), (48, 3, 2), (50, 4, 2), (31, 1, 0)]  # rows, files, workers of each process
    (tmp_path / "shared.py").write_text(SHARED)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [tmp_path / "shared.py", tmp_path, json.dumps(cases)]
    run_python(*command, cwd=tmp_path, env=env, processes=2, timeout=200).check_returncode()
    seen = [json.loads((tmp_path / str(process)).read_text()) for process in (0, 1)]
    for (count, *_), *shares in zip(cases, *seen, strict=True):
        assert len(shares[0]) == len(shares[1])
        for batches in shares:
            while len(batches) > 1 and batches[-1] == batches[-2]:
                batches.pop()
        rows = Counter(text for batches in shares for batch in batches for text in batch)
        assert rows == {f"row {n}": 1 for n in range(count)}


@pytest.mark.slow
def test_memory_stays_flat():
    """`benchmarks/stream.py` does the same with a million rows."""
    import tracemalloc

    def rows(shards):
        for shard in shards:
            yield from ({"safe_caption": f"row {shard} {row}", "unsafe_caption": "b" * 1000} for row in range(1000))

    stream = iter(QuadrupletStream(IterableDataset.from_generator(rows, gen_kwargs={"shards": list(range(10))})))
    for _ in range(2000):
        next(stream)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert sum(1 for _ in stream) == 8000
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2**20  # where the rows would take 8 MB
