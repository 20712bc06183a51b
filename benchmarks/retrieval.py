"""What the chunked exact ranking of safe_clip.metrics costs against sorting the whole query x gallery matrix.

    python benchmarks/retrieval.py
    python benchmarks/retrieval.py --items 50000

Compares, on the CPU, over random embeddings whose i-th gallery item is a noisy copy of the i-th query:

- full sort: the similarity matrix whole, an argsort of every row, the right item's place in it, as the public
  Safe-CLIP training script has it; left out above 20,000 items, where it needs 16 bytes per score and more;
- first_right and safe_share: the chunked ranking behind the metrics;
- recall_at_k module: first_right behind `evaluate`;
- bare product: the scores alone, chunk by chunk, which any exact ranking pays for.

Prints, for each, the time over that of the bare product and the peak memory beyond the inputs, then full sort and
module over first_right. All take turns; a time is the median over rounds of the ratio within a round. Peak memory is
read from Linux's /proc, each in a process of its own. Exits with an error where full sort and first_right rank a query
differently (above 20,000 items: one of the first 1,000).
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the script compared against sorts on the CPU wherever the model ran

import torch
from torch import Tensor

from safe_clip.metrics import load_metric
from safe_clip.metrics.ranking import CHUNK_SCORES, MIN_CHUNK, TIE, ExactIndex, first_right, safe_share

SORTABLE = 20_000  # items whose full sort fits a common machine's memory
CHECKED = 1_000  # queries whose ranks are checked where the full sort does not fit


def embeddings(items: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Queries and gallery of length 1; all in place, for freed memory would hide some of what is measured after."""
    random = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randn(items, dimension, generator=random) for _ in range(2))
    # Right pairs of cosine 0.24 down to 0.03: some rank first and some in the hundreds.
    gallery *= 4 * 8 ** torch.rand(items, 1, generator=random)
    gallery += queries
    for embeds in (queries, gallery):
        embeds /= embeds.norm(dim=1, keepdim=True)
    return queries, gallery


def full_sort(queries: Tensor, gallery: Tensor) -> Tensor:
    """The right item's rank from 1, for each query."""
    order = torch.argsort(queries @ gallery.T, dim=1, descending=True)
    return (order == torch.arange(len(queries))[:, None]).nonzero()[:, 1] + 1


def bare_product(queries: Tensor, gallery: Tensor) -> None:
    step = max(MIN_CHUNK, CHUNK_SCORES // len(gallery))
    buffer = torch.empty(min(step, len(queries)), len(gallery))
    for chunk in queries.split(step):
        torch.mm(chunk, gallery.T, out=buffer[: len(chunk)])


def rankings(queries: Tensor, gallery: Tensor) -> dict[str, Callable[[], object]]:
    items = len(gallery)
    right = [[row] for row in range(items)]
    module = load_metric("recall_at_k")
    works = {
        "bare product": lambda: bare_product(queries, gallery),
        "full sort": lambda: full_sort(queries, gallery),
        "first_right": lambda: first_right(queries, ExactIndex(gallery), right),
        "safe_share": lambda: safe_share(queries, ExactIndex(gallery), items // 2, (1, 10)),
        "recall_at_k module": lambda: module.compute(queries=queries.numpy(), gallery=gallery, references=right),
    }
    if items > SORTABLE:
        del works["full sort"]
    return works


def high_water() -> int:
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def print_peak(name: str, items: int, dimension: int) -> None:
    rankings(*embeddings(64, dimension))[name]()  # first calls load libraries and start threads
    work = rankings(*embeddings(items, dimension))[name]
    # Sets the high-water mark to what is held now. getrusage's cannot be set, and starts from the parent's.
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    work()
    print(high_water() - before)


def peak(name: str, items: int, dimension: int) -> int:
    """Bytes by which one ranking raises the peak memory of a fresh process."""
    command = [sys.executable, __file__, "--items", str(items), "--dimension", str(dimension), "--peak_of", name]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def check(queries: Tensor, gallery: Tensor) -> str:
    """What the ranks are like; exits where the two rankings disagree."""
    queries = queries if len(gallery) <= SORTABLE else queries[:CHECKED]
    place = full_sort(queries, gallery)
    ranks = first_right(queries, ExactIndex(gallery), [[row] for row in range(len(queries))])
    # Of items closer than TIE first_right leaves the order open: the sort's place is then one of theirs.
    differ = (place <= ranks.above) | (place > ranks.above + ranks.tied)
    if differ.any():
        sys.exit(f"full sort and first_right differ on {int(differ.sum())} of {len(queries)} queries.")
    spread = f"{int(place.min())} to {int(place.max())}, median {int(place.median())}"
    near = f"{int((ranks.tied > 1).sum())} have another item within {TIE:g} of the right one"
    return f"Same ranks for all of {len(queries)} queries: {spread}; {near}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=5000, help="queries, and as many gallery items")
    parser.add_argument("--dimension", type=int, default=768)
    parser.add_argument("--repeats", type=int, help="rounds of timing; by default 7, or 3 above 20,000 items")
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        return print_peak(args.peak_of, args.items, args.dimension)

    queries, gallery = embeddings(args.items, args.dimension)
    print(f"{args.items} x {args.items} scores, {args.dimension} dimensions, {torch.get_num_threads()} threads.")
    print(check(queries, gallery), flush=True)
    works = rankings(queries, gallery)
    if "full sort" not in works:
        print(f"No full sort above {SORTABLE} items: it would hold {16 * args.items**2 / 2**30:.0f} GiB and more.")
    for work in rankings(*embeddings(64, args.dimension)).values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.repeats or (7 if args.items <= SORTABLE else 3)):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)

    def ratio(name: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))

    peaks = {name: peak(name, args.items, args.dimension) for name in works}
    print(f"\n| {'':18} | time / bare product | peak memory, GiB |\n|---|---|---|")
    for name in works:
        print(f"| {name:18} | {ratio(name, 'bare product'):19.2f} | {peaks[name] / 2**30:16.3f} |")
    print()
    for name, title in [("full sort", "full sort / ours"), ("recall_at_k module", "recall_at_k module / ours")]:
        if name in works:
            memory = peaks[name] / peaks["first_right"]
            print(f"{title}: time {ratio(name, 'first_right'):.1f}, peak memory {memory:.1f}")


if __name__ == "__main__":
    main()
