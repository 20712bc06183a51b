"""Writes a log of queries to try `safe-clip monitor` on: captions of the bundled demo's split `test`, over some days.

    python benchmarks/query_log.py log.csv
    python benchmarks/query_log.py million.csv --queries 1000000 --splits train test

On one of the days, more of them are unsafe than on the others.
"""

import argparse
import csv
import random
from datetime import datetime, timedelta

from safe_clip import load_quadruplets

START = datetime(2024, 3, 1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("file", help="the CSV that is written")
    options.add_argument("--queries", type=int, default=8000)
    options.add_argument("--days", type=int, default=10)
    options.add_argument("--unsafe", type=float, default=0.04, help="the share of unsafe captions")
    options.add_argument("--odd_day", type=int, default=8, help="the day that differs, from 1")
    options.add_argument("--odd_unsafe", type=float, default=0.15, help="the share of that day")
    options.add_argument("--splits", nargs="+", default=["test"], help="where captions are drawn from")
    args = options.parse_args()
    rows = load_quadruplets("demo")
    safe, unsafe = (
        [text for split in args.splits for text in rows[split][f"{side}_caption"]] for side in ("safe", "unsafe")
    )
    rng = random.Random(0)
    with open(args.file, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "query"])
        for number in range(args.queries):
            when = START + timedelta(days=args.days * number / args.queries)
            share = args.odd_unsafe if (when - START).days + 1 == args.odd_day else args.unsafe
            writer.writerow([when.isoformat(timespec="seconds"), rng.choice(unsafe if rng.random() < share else safe)])


if __name__ == "__main__":
    main()
