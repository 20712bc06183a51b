"""Memory of a stream of a million rows, beside that of holding them.

python benchmarks/stream.py [--rows 1000000]

Prints the growth of resident memory while rows pass through `QuadrupletStream`, shuffled in its buffer, after each
tenth, and for comparison what the same rows take as Python objects in a list.
"""

import argparse
import os
import resource

from datasets import IterableDataset

from safe_clip.data.streams import QuadrupletStream

TENTHS = 10


def made(count: int, shards: list[int]):
    for shard in shards:
        for row in range(shard, count, len(SHARDS)):
            yield {
                "safe_caption": f"a dog beside lamp number {row}",
                "unsafe_caption": f"a wolf beside lamp number {row}",
            }


SHARDS = list(range(16))


def resident() -> float:
    """Megabytes that this process holds in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    count = parser.parse_args().rows
    rows = IterableDataset.from_generator(made, gen_kwargs={"count": count, "shards": SHARDS})
    stream = iter(QuadrupletStream(rows))
    warm_up = count // 100
    for _ in range(warm_up):
        next(stream)
    start = resident()
    print(f"{count:,} rows through the stream, process {os.getpid()}; growth since row {warm_up:,}:")
    seen = warm_up
    for _ in stream:
        seen += 1
        if seen % (count // TENTHS) == 0:
            print(f"  after {seen:10,} rows: {resident() - start:+8.1f} MB", flush=True)
    assert seen == count, f"{seen:,} rows came"
    streamed, before = resident() - start, resident()
    held = [row for _, row in zip(range(count), made(count, SHARDS), strict=False)]
    print(
        f"holding the same {len(held):,} rows in a list: {resident() - before:+8.1f} MB; the stream {streamed:+.1f} MB"
    )


if __name__ == "__main__":
    main()
