"""Fetching images from addresses, patiently: nothing that is no image, too large, or inside the network."""

import asyncio
import io
import ipaddress
import re
import socket
import zlib
from collections.abc import Collection, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from PIL import Image

from ..errors import UserError
from ..store.damaged import read_kept
from ..store.fingerprints import digest, secure_digest
from ..store.writing import whole_file
from ..terminal import progress_bar
from .fetch_settings import FetchSettings
from .image_join import IMAGE_SUFFIXES
from .images import open_image

PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be others in a while
TRANSLATED = [ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96")]
LONGEST_WAIT = 60.0  # seconds, whatever a server asks for


class _Refused(Exception):
    """What no further try will change."""


async def fetch_all(
    jobs: dict[str, str], folder: Path, settings: FetchSettings | None = None, with_digest: bool = False
) -> dict[str, str]:
    """Fetches images into a folder.

    Args:
        jobs: by the name that an image gets, without an ending, its address.
        folder: gets the images.
        settings: how.
        with_digest: end the names of files in digests of what they hold.

    Returns:
        By name, why an image could not be had.
    """
    settings = settings or FetchSettings()
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.stem for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES}
    todo = iter([(name, address) for name, address in jobs.items() if name not in there])
    failed: dict[str, str] = {}
    connector = aiohttp.TCPConnector(
        limit=settings.at_once, socket_factory=None if settings.allow_private else _public_socket
    )
    timeout = aiohttp.ClientTimeout(total=settings.timeout)
    # What is sent packed is unpacked here, where its size is known to be bounded.
    asking = {"auto_decompress": False, "headers": {"Accept-Encoding": "identity"}}
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, **asking) as session:
        with progress_bar(total=len(jobs), initial=len(jobs.keys() & there), desc="Fetching", unit="") as bar:

            async def work() -> None:
                for name, address in todo:
                    try:
                        _keep(await _fetch(session, address, settings), folder, name, with_digest)
                    except _Refused as error:
                        failed[name] = without_secrets(str(error))
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
    if not settings.tries:
        raise _Refused("OfflineModeIsEnabled: HF_HUB_OFFLINE is set, so that nothing is fetched")
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
    encoding = answer.headers.get("Content-Encoding", "identity").strip().lower()
    return b"".join(parts) if encoding in ("", "identity") else _unpacked(b"".join(parts), encoding, most)


def _unpacked(content: bytes, encoding: str, most: int) -> bytes:
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _Refused(f"the server sends it packed in a way that was not asked for ({encoding[:20]})")
    try:
        opened = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as it begins
        unpacked = opened.decompress(content, most + 1)
    except zlib.error as error:
        raise _Refused(f"it is packed, and broken ({error})") from error
    if len(unpacked) > most:
        raise _Refused(f"it unpacks to more than {most:,} bytes")
    return unpacked


def _keep(content: bytes, folder: Path, name: str, with_digest: bool) -> None:
    """Writes an image, whole or not at all, under the ending of what it really is."""
    try:
        image = open_image(content, 0, "")
    except UserError as error:
        raise _Refused(re.search(r"\((.*)\)", str(error)).group(1)) from error
    suffix = _suffix(content)
    if suffix not in IMAGE_SUFFIXES:  # which others would not take for an image
        image.save(buffer := io.BytesIO(), "PNG")
        content, suffix = buffer.getvalue(), ".png"
    name += f"-{digest([content])}" if with_digest else ""
    with whole_file(folder / f"{name}{suffix}") as file:
        file.write_bytes(content)


def _suffix(content: bytes) -> str:
    kind = Image.open(io.BytesIO(content)).format
    return ".jpg" if kind == "JPEG" else f".{kind.lower()}"


def without_secrets(text: str) -> str:
    """A text without the names and passwords of the addresses in it."""
    return re.sub(r"(://)[^/@\s'\"]+@", r"\1", text)


def fetched(addresses: list[str], folder: Path, settings: FetchSettings | None = None) -> dict[str, Path | str]:
    """Fetches images that are known by their addresses alone, those that are not kept from an earlier time.

    Args:
        addresses: of images.
        folder: where they are kept, under names made of their addresses.
        settings: how.

    Returns:
        By address, the image's file, or why it could not be had.
    """
    names = {address: secure_digest(address) for address in addresses}
    folder.mkdir(parents=True, exist_ok=True)
    kept = _kept(folder, names.values())
    missing = {name: address for address, name in names.items() if name not in kept}
    failed = finish(fetch_all(missing, folder, settings, with_digest=True)) if missing else {}
    kept |= _kept(folder, missing)
    return {address: failed.get(name) or kept[name] for address, name in names.items()}


def _kept(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """By name, the images of a folder that are as they were fetched; others are removed."""
    found: dict[str, Path] = {}
    for path in folder.iterdir():
        name, _, known = path.stem.partition("-")
        if path.suffix in IMAGE_SUFFIXES and name in names and read_kept(partial(_is_whole, path, known), path):
            found[name] = path
    return found


def _is_whole(path: Path, known: str) -> bool:
    if known and digest([path.read_bytes()]) != known:  # earlier versions noted none
        raise ValueError("it has been changed")
    return True


def finish(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
