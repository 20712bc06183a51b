"""Fetches the images behind a column of addresses.

  safe-clip fetch NSFWCaps.jsonl --column image_coco_url --output_dir coco
  safe-clip fetch aimagelab/ViSU-Text --column coco_id --output_dir coco \\
      --address 'http://images.cocodataset.org/train2017/{:012}.jpg'

Images are named after the number in each row, so that `--safe_images coco` finds them. What was fetched from the same
address is not fetched again; what could not be had is listed, with the reason, in `failed.csv` beside the images, and
tried again by the same command.
"""

from collections import Counter
from pathlib import Path

from ..config import OneLineParser
from ..data.fetch_settings import FetchSettings
from ..errors import UserError
from ..outputs import REPLACED, OutputFolder
from ..ranges import COUNT, POSITIVE, check_ranges
from .help import usage

RANGES = {"tries": COUNT, "timeout": POSITIVE, "most_bytes": COUNT, "at_once": COUNT}


def parser() -> OneLineParser:
    """What reads the flags."""
    made = OneLineParser(usage=usage("fetch", "DATASET --column NAME --output_dir FOLDER"), description=__doc__.strip())
    what = made.add_argument_group("What is fetched")
    what.add_argument("dataset", metavar="DATASET", help="A Hub id, a folder or a file.")
    what.add_argument(
        "--column", metavar="TEXT", required=True, help="The column of addresses, or of what --address requires."
    )
    what.add_argument(
        "--address", metavar="TEXT", help="An address with {} where the cell stands, or {:012} for twelve digits."
    )
    what.add_argument(
        "--id", metavar="TEXT", help="The column that images are named after. By default the only one of numbers."
    )
    how = made.add_argument_group("How")
    how.add_argument("--tries", metavar="INT", type=int, default=FetchSettings.tries, help="Tries for each address.")
    how.add_argument(
        "--timeout", metavar="FLOAT", type=float, default=FetchSettings.timeout, help="Seconds for one try."
    )
    how.add_argument(
        "--most_bytes", metavar="INT", type=int, default=FetchSettings.most_bytes, help="Largest size of an image."
    )
    how.add_argument(
        "--at_once", metavar="INT", type=int, default=FetchSettings.at_once, help="Addresses fetched side by side."
    )
    how.add_argument("--allow_private", action="store_true", help="Fetch from inside the network too.")
    where = made.add_argument_group("What is written")
    where.add_argument("--output_dir", metavar="TEXT", type=Path, required=True, help="Gets the images.")
    where.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help=f"Move files of other programs that are in the way into {REPLACED}/.",
    )
    return made


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    check_ranges(args, RANGES)
    output = OutputFolder(args.output_dir)
    from ..data.addresses import FAILED, fetch_column

    output.check(args.overwrite_output_dir, files=[FAILED])
    settings = FetchSettings(args.tries, args.timeout, args.most_bytes, args.at_once, args.allow_private)
    had, failed = fetch_column(
        args.dataset, args.column, output, settings, args.id, args.address, args.overwrite_output_dir
    )
    print(f"{len(had):,} of {len(had) + len(failed):,} images are in {args.output_dir}/.")
    for reason, count in Counter(failed.values()).most_common(5):
        print(f"{count:,} could not be had: {reason}")
    if failed:
        print(f"{args.output_dir / FAILED} lists them; the same command tries them again.")
    if not had:
        raise UserError("no image could be had.")
