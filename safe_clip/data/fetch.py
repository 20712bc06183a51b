"""Fetches the pictures behind a column of addresses.

    python -m safe_clip.data.fetch NSFWCaps.jsonl --column image_coco_url --output_dir coco
    python -m safe_clip.data.fetch aimagelab/ViSU-Text --column coco_id --output_dir coco \\
        --address 'http://images.cocodataset.org/train2017/{:012}.jpg'

Pictures are named after the number in each row, so that `--safe_images coco` finds them. What was fetched is not
fetched again; what could not be had is listed, with the reason, in `failed.csv` beside the pictures, and tried again by
the same command.
"""

import argparse
import asyncio
import csv
import io
import ipaddress
import re
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image
from tqdm.auto import tqdm

from ..config import OneLineParser
from ..errors import UserError, run
from .images import open_image
from .minors import refuse_minors
from .schema import ID_COLUMNS, PICTURES, known_columns, picture_name, picture_names
from .sources import load_splits

FAILED = "failed.csv"
LONGEST_NAME = 100  # characters
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be others in a while
TRANSLATED = [ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96")]
LONGEST_WAIT = 60.0  # seconds, whatever a server asks for


@dataclass(frozen=True)
class FetchSettings:
    """How patient, and how careful.

    Attributes:
        tries: of each address, where what goes wrong may pass.
        timeout: seconds for one try.
        most_bytes: of one picture.
        at_once: addresses fetched side by side.
        allow_private: fetch from addresses inside the network too, such as 192.168.0.1.
        wait: seconds before the second try, doubled before each further one.
    """

    tries: int = 4
    timeout: float = 30.0
    most_bytes: int = 20_000_000
    at_once: int = 16
    allow_private: bool = False
    wait: float = 1.0


class _Refused(Exception):
    """What no further try will change."""


async def fetch_all(jobs: dict[str, str], folder: Path, settings: FetchSettings | None = None) -> dict[str, str]:
    """Fetches pictures into a folder.

    Args:
        jobs: by the name that a picture gets, without an ending, its address.
        folder: gets the pictures.
        settings: how.

    Returns:
        By name, why a picture could not be had.
    """
    settings = settings or FetchSettings()
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.stem for path in folder.iterdir() if path.suffix in PICTURES}
    todo = iter([(name, address) for name, address in jobs.items() if name not in there])
    failed: dict[str, str] = {}
    connector = aiohttp.TCPConnector(
        limit=settings.at_once, socket_factory=None if settings.allow_private else _public_socket
    )
    timeout = aiohttp.ClientTimeout(total=settings.timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        with tqdm(total=len(jobs), initial=len(jobs.keys() & there), desc="Fetching", unit="") as bar:

            async def work() -> None:
                for name, address in todo:
                    try:
                        _keep(await _fetch(session, address, settings), folder, name)
                    except _Refused as error:
                        failed[name] = str(error)
                    bar.update()

            await asyncio.gather(*(work() for _ in range(settings.at_once)))
    return failed


def _public_socket(address: tuple) -> socket.socket:
    """A socket for an address outside the network: asked for whatever is connected to, redirections included."""
    family, kind, protocol, _, place = address
    if not is_public(place[0]):
        raise _Refused("it lies inside the network; --allow_private fetches from there")
    return socket.socket(family, kind, protocol)


def is_public(host: str) -> bool:
    """Whether an IP address lies outside the network, and so does what it stands for."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if not ip.is_global or ip.is_multicast:
        return False
    if ip.version == 4:
        return True
    # IPv4 addresses that an IPv6 one carries: mapped, 6to4, and of a translator.
    inner = [ip.ipv4_mapped, ip.sixtofour]
    inner += [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)] if any(ip in net for net in TRANSLATED) else []
    return not ip.is_site_local and all(is_public(str(each)) for each in inner if each is not None)


async def _fetch(session: aiohttp.ClientSession, address: str, settings: FetchSettings) -> bytes:
    if not address.lower().startswith(("http://", "https://")):
        raise _Refused("only http and https are fetched")
    reason = ""
    for attempt in range(settings.tries):
        wait = settings.wait * 2**attempt
        try:
            async with session.get(address) as answer:
                if answer.status == 200:
                    return await _body(answer, settings.most_bytes)
                reason = f"the server answers {answer.status}"
                if answer.status not in PASSING:
                    raise _Refused(reason)
                asked = answer.headers.get("Retry-After", "")
                wait = max(wait, float(asked)) if asked.isdigit() else wait
        except (aiohttp.InvalidURL, aiohttp.TooManyRedirects, ValueError) as error:  # names that no host can have too
            raise _Refused(f"{type(error).__name__}: {error}") from error
        except asyncio.TimeoutError:
            reason = f"no answer within {settings.timeout:g} seconds"
        except (aiohttp.ClientError, OSError) as error:
            reason = f"{type(error).__name__}: {error}"
        if attempt + 1 < settings.tries:
            await asyncio.sleep(min(wait, LONGEST_WAIT))
    raise _Refused(f"{reason}, {settings.tries} times")


async def _body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    parts, size = [], 0
    async for part in answer.content.iter_chunked(1 << 16):
        size += len(part)
        if size > most:
            raise _Refused(f"it is larger than {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _keep(content: bytes, folder: Path, name: str) -> None:
    """Writes a picture, whole or not at all, under the ending of what it really is."""
    try:
        picture = open_image(content, 0, "")
    except UserError as error:
        raise _Refused(re.search(r"\((.*)\)", str(error)).group(1)) from error
    suffix = _suffix(content)
    if suffix not in PICTURES:  # which others would not take for a picture
        picture.save(partial := folder / f"{name}.partial", "PNG")
        partial.replace(folder / f"{name}.png")
        return
    partial = folder / f"{name}.partial"
    partial.write_bytes(content)
    partial.replace(folder / f"{name}{suffix}")


def _suffix(content: bytes) -> str:
    kind = Image.open(io.BytesIO(content)).format
    return ".jpg" if kind == "JPEG" else f".{kind.lower()}"


def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(
        prog="python -m safe_clip.data.fetch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="a Hub id, a folder or a file")
    parser.add_argument("--column", required=True, help="the column of addresses, or of what --address wants")
    parser.add_argument("--address", help="an address with {} where the cell stands, {:012} for twelve digits")
    parser.add_argument("--id", help="the column that pictures are named after; by default the only one of numbers")
    parser.add_argument("--output_dir", type=Path, required=True, help="gets the pictures")
    parser.add_argument("--tries", type=int, default=FetchSettings.tries, help="of each address")
    parser.add_argument("--timeout", type=float, default=FetchSettings.timeout, help="seconds for one try")
    parser.add_argument("--most_bytes", type=int, default=FetchSettings.most_bytes, help="of one picture")
    parser.add_argument("--at_once", type=int, default=FetchSettings.at_once, help="addresses side by side")
    parser.add_argument("--allow_private", action="store_true", help="fetch from inside the network too")
    args = parser.parse_args(argv)
    jobs, failed = _jobs(args.dataset, args.column, args.id, args.address)
    settings = FetchSettings(args.tries, args.timeout, args.most_bytes, args.at_once, args.allow_private)
    try:
        failed |= asyncio.run(fetch_all(jobs, args.output_dir, settings))
    except OSError as error:  # a full disk
        raise UserError(f"{args.output_dir} cannot be written ({error}); what was fetched is kept.") from error
    with open(args.output_dir / FAILED, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "address", "reason"), *((n, jobs.get(n), why) for n, why in failed.items())])
    had = len(jobs.keys() - failed)
    print(f"{had:,} of {len(jobs.keys() | failed):,} pictures are in {args.output_dir}/.")
    for reason, count in Counter(failed.values()).most_common(5):
        print(f"{count:,} could not be had: {reason}")
    if failed:
        print(f"{args.output_dir / FAILED} lists them; the same command tries them again.")
    if not had:
        raise UserError("no picture could be had.")


def _jobs(
    dataset: str, column: str, id_column: str | None, template: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Addresses by the name that each picture gets, and rows that have no address or no name, with which."""
    jobs: dict[str, str] = {}
    failed: dict[str, str] = {}
    for split, rows in load_splits(dataset, option="the data set").items():
        where = f"split '{split}' of {dataset}"
        if column not in rows.column_names:
            raise UserError(f"--column {column}: {where} has no such column; it has {', '.join(rows.column_names)}.")
        rows = refuse_minors(rows.rename_columns((known_columns(rows.column_names) or ("", {}))[1]), where)
        id_column = id_column or (column if template else _id_column(rows.column_names, column))
        names = picture_names(rows, "unsafe_image", where, "--id", id_column)
        for row, (name, cell) in enumerate(zip(names, rows[column], strict=True)):
            address = _filled(template, cell) if template else cell
            if name is None or not isinstance(address, str) or not address.strip():
                failed[f"{split}, row {row}"] = "the row has no address" if name else "the row has no number"
                continue
            # A name from elsewhere must not be a way out of the folder, nor longer than a file's may be.
            name = re.sub(r"[^\w-]", "_", name)[:LONGEST_NAME]
            if jobs.setdefault(name, address) != address:
                raise UserError(
                    f"{where}, row {row}: another address than this one goes by the number {name} too. Name a "
                    "column that tells them apart with --id."
                )
    return jobs, failed


def _filled(template: str, cell: Any) -> str | None:
    """The address of a cell; a cell of digits is a number."""
    if (name := picture_name(cell)) is None:
        return None
    try:
        return template.format(int(name) if name.isdigit() else name)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"--address {template} cannot hold '{name}' ({error}); write {{}} where it belongs.") from error


def _id_column(columns: list[str], column: str) -> str:
    """The one column of numbers, or, where there is none, the addresses, whose last parts are names."""
    known = dict.fromkeys([*ID_COLUMNS["safe_image"], *ID_COLUMNS["unsafe_image"]])
    present = [name for name in known if name in columns and name != column]
    if len(present) > 1:
        raise UserError(f"--id: name the column that pictures shall be named after, one of {', '.join(present)}.")
    return present[0] if present else column


if __name__ == "__main__":
    run(main)
