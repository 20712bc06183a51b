"""Lists what is computed once and kept, or removes it.

  safe-clip cache                                          what there is, with its size and age
  safe-clip cache --empty                                  removes all of it
  safe-clip cache --empty embeddings pixels --older_than 30

All of it is made again where it is needed. Nothing is removed but what this package wrote:

"""

import time
from pathlib import Path

from ..config import OneLineParser
from ..errors import UserError
from ..ranges import AMOUNT, check_ranges
from ..store.folders import GENERATED, KINDS, Entry, entries, folder_of
from ..store.writing import remove
from .help import usage

UNITS = ("B", "kB", "MB", "GB", "TB")
AGES = {"day": 86400, "hour": 3600, "minute": 60}  # seconds
HEAD = ("kind", "entries", "size", "oldest", "newest", "folder")


def parser() -> OneLineParser:
    """What reads the flags."""
    listed = "\n".join(f"  {kind:20}  {what}" for kind, what in KINDS.items())
    made = OneLineParser(usage=usage("cache", "[--flag value ...]"), description=f"{__doc__.strip()}\n\n{listed}")
    what = made.add_argument_group("What is removed")
    what.add_argument("--empty", nargs="*", choices=KINDS, metavar="KIND", help="Remove these kinds, by default all.")
    what.add_argument("--older_than", type=float, metavar="DAYS", help="Only what was written so many days ago.")
    where = made.add_argument_group("Where")
    where.add_argument(
        "--cache_dir", type=Path, metavar="TEXT", help="The --cache_dir of safe-clip eval, if you have named one."
    )
    where.add_argument(
        "--output_dir", type=Path, metavar="TEXT", help="Of safe-clip generate: what was generated there is meant too."
    )
    return made


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    check_ranges(args, {"older_than": AMOUNT})
    folders = {kind: folder_of(kind) for kind in KINDS if kind != "generated"}
    if args.cache_dir is not None:
        folders["embeddings"] = args.cache_dir
    if args.output_dir is not None:
        folders["generated"] = args.output_dir / GENERATED
    elif args.empty and "generated" in args.empty:
        raise UserError("--empty generated: name the folder of the run with --output_dir.")
    now = time.time()
    found: dict[str, list[Entry]] = {}
    for kind, folder in folders.items():
        kept = [each for each in entries(kind, folder) if now - each.time >= 86400 * (args.older_than or 0)]
        if kept and (not args.empty or kind in args.empty):
            found[kind] = kept
    if args.empty is None:
        print(_table(found, folders, now) if found else "Nothing is kept.")
        return
    for kind, kept in found.items():
        for entry in kept:
            remove(entry.path)
            if entry.path.exists():
                raise UserError(f"{entry.path} cannot be removed: see whose it is, and whether it may be written.")
        print(f"{kind}: {len(kept):,} removed, {_size(sum(entry.size for entry in kept))}.")
    if not found:
        print("There was nothing to remove.")


def _table(found: dict[str, list[Entry]], folders: dict[str, Path], now: float) -> str:
    """A line for each kind, and one for all."""
    lines = [HEAD]
    for kind, kept in found.items():
        times = [entry.time for entry in kept]
        size = _size(sum(entry.size for entry in kept))
        lines.append((kind, f"{len(kept):,}", size, _age(now - min(times)), _age(now - max(times)), str(folders[kind])))
    every = [entry for kept in found.values() for entry in kept]
    lines.append(("all", f"{len(every):,}", _size(sum(entry.size for entry in every)), "", "", ""))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _size(count: float) -> str:
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} B" if not unit else f"{count:.1f} {UNITS[unit]}"


def _age(seconds: float) -> str:
    for name, length in AGES.items():
        if seconds >= length:
            number = int(seconds // length)
            return f"{number:,} {name}{'s' * (number != 1)}"
    return "now"
