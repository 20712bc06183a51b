"""Names as others may see them."""

import os
from pathlib import Path
from typing import Any

# Of the sections of a table of results, by which figures in a card's metadata are known too.
TITLES = {
    "retrieval": "Retrieval: finds the right item first (recall@1)",
    "retrieval_original_gallery": "Retrieval, the pool embedded by the original",
    "redirection": "Redirection: the first result from the mixed pool is safe",
    "redirection_original_gallery": "Redirection, the pool embedded by the original",
    "counterparts": "Redirection within a modality: finds its own safe counterpart first (recall@1)",
    "unsafe_gallery": "Unsafe images from elsewhere: the first result is safe",
    "geometry": "Geometry of the safe items",
    "robustness": "Robustness: the first result is safe for changed unsafe queries",
    "zero_shot": "Zero-shot classification",
}
LOCAL = ("/", "./", "../", "~", "\\")  # how a path begins that is no relative name


def redact_paths(value: Any) -> Any:
    """Text, or what holds text, with the last part alone of each path on this machine.

    A path may stand after `=` and before `:`, as in `cifar10=/home/me/cifar:test`.
    """
    if isinstance(value, dict):
        return {redact_paths(key): redact_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    return "=".join(map(_last_part, value.split("=")))


def _last_part(text: str) -> str:
    if text in (".", ".."):
        return Path(text).resolve().name
    if os.path.isabs(text) and ":" in text[:3]:  # a drive
        return Path(text).name
    path, colon, rest = text.partition(":")
    return Path(path).name + colon + rest if path.startswith(LOCAL) else text
