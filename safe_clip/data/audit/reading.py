"""Reading every item once: what can be told of it without a classifier."""

import importlib.metadata
import io
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePath
from typing import Any

import imagehash
import numpy as np
from datasets import Dataset, DatasetDict, Features, Value
from datasets.fingerprint import Hasher
from PIL import Image
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from ...store.fingerprints import captions_digest, content_id, tokenizer_settings
from ...store.tables import one_by_one, table_in_chunks
from ..beginnings import token_counts
from ..cells import content, short, stored
from ..content import column_digest
from ..images import ORIENTATION, look_at, open_image
from ..items import CAPTION_COLUMNS, ITEM_COLUMNS, ROW_COLUMN, items_there
from ..rows import check_caption, undecoded

LIBRARIES = ("pillow", "imagehash", "py3langid", "datasets")  # whose versions may change a fact
TINY, HUGE = 32, 4096  # pixels: of the longer side a smaller number, and a larger one
FIELDS = 4  # across and down, of which an image's mean colours are kept
SURE = 0.5  # of a caption's language, below which it counts as unclear
UNCLEAR = "unclear"

# What is out of the ordinary about images, as their files have them.
KINDS: dict[str, Callable[[Image.Image], bool]] = {
    "tiny": lambda image: max(image.size) < TINY,
    "huge": lambda image: max(image.size) > HUGE,
    "CMYK": lambda image: image.mode == "CMYK",
    "16 bits or more": lambda image: image.mode[0] in "IF" or any("16" in str(tile.args) for tile in image.tile),
    "turned by EXIF": lambda image: image.getexif().get(ORIENTATION, 1) != 1,
    # Phones keep a second image, such as a depth map, in what is an MPO.
    "animated": lambda image: getattr(image, "is_animated", False) and image.format != "MPO",
    "transparent": lambda image: (
        image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    ),
}
# A digest of 0 says that there is no item, or none that can be used; why it cannot be used is its fault.
IMAGE_FACTS = Features(
    {
        "fault": Value("string"),
        "digest": Value("int64"),
        "phash": Value("int64"),
        "colours": Value("binary"),
        **{kind: Value("bool") for kind in KINDS},
    }
)
CAPTION_FACTS = Features(
    {
        "fault": Value("string"),
        "digest": Value("int64"),
        "wording": Value("int64"),
        "tokens": Value("int32"),
        "language": Value("string"),
    }
)


@dataclass(frozen=True)
class ReadColumn:
    """One column of one split.

    Attributes:
        split, column: which.
        rows: the split, with images as they are stored.
        facts: a row for each of its rows, with the columns of `IMAGE_FACTS` or `CAPTION_FACTS`.
    """

    split: str
    column: str
    rows: Dataset
    facts: Dataset

    @cached_property
    def digest(self) -> np.ndarray:
        """What tells the content of an item from others; 0 where there is none that can be used; N int64."""
        return self.numbers("digest")

    @property
    def is_caption(self) -> bool:
        return self.column in CAPTION_COLUMNS

    def numbers(self, fact: str) -> np.ndarray:
        """A column of numbers, or of true and false, of the facts."""
        return self.facts.data.column(fact).to_numpy()

    def faults(self) -> dict[int, str]:
        """Why items cannot be used, by row."""
        faults = self.facts.data.column("fault")
        return {row: faults[row].as_py() for row in np.flatnonzero(faults.is_valid().to_numpy()).tolist()}


def read_items(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase, workers: int = 0, progress: bool = True
) -> list[ReadColumn]:
    """Reads every item once. What was read is cached, in chunks, until rows, files or libraries change.

    Args:
        splits: quadruplets, with any of the columns of items.
        tokenizer: counts the tokens of captions.
        workers: processes that read.
        progress: show a bar for each column.

    Returns:
        The columns of items that there are, split by split.
    """
    return [
        _read(split, column, rows, tokenizer, workers, progress)
        for split, rows in splits.items()
        for column in ITEM_COLUMNS
        if column in rows.column_names
    ]


def _read(
    split: str, column: str, rows: Dataset, tokenizer: PreTrainedTokenizerBase, workers: int, progress: bool
) -> ReadColumn:
    rows = undecoded(rows, [column, *({ROW_COLUMN} & set(rows.column_names))])
    caption = column in CAPTION_COLUMNS
    made_with = [Path(__file__).read_bytes(), *(importlib.metadata.version(name) for name in LIBRARIES)]
    made_with += [tokenizer_settings(tokenizer)] if caption else []

    def arguments(chunk: Dataset, first: int) -> dict[str, Any]:
        facts = _Captions(chunk, first, column, tokenizer) if caption else _Images(chunk, first, column)
        return {"rows": facts, "workers": workers}

    def key(chunk: Dataset) -> str:
        held = captions_digest([chunk[column]]) if caption else column_digest(chunk, column)
        return Hasher.hash([chunk._fingerprint, held, column, made_with])  # a fault names its row

    features = CAPTION_FACTS if caption else IMAGE_FACTS
    how = (f"Reading {split}, {column}", progress, "audit")
    return ReadColumn(split, column, rows, table_in_chunks(rows, features, arguments, key, one_by_one, *how))


class _Captions(TorchDataset):
    """The facts of captions."""

    def __init__(self, rows: Dataset, first: int, column: str, tokenizer: PreTrainedTokenizerBase):
        self.rows, self.first, self.column, self.tokenizer = rows, first, column, tokenizer

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        facts = dict.fromkeys(CAPTION_FACTS) | {"digest": 0, "wording": 0, "tokens": 0}
        row = self.rows[index]
        text = row[self.column]
        if text is None:
            return facts
        try:
            check_caption(text, row.get(ROW_COLUMN, self.first + index), self.column)
        except UserError as error:
            return facts | {"fault": str(error)}
        language, share = _languages().classify(text)
        return facts | {
            "digest": content_id(text.encode(errors="surrogatepass")),
            "wording": content_id(same_wording(text).encode(errors="surrogatepass")),
            "tokens": token_counts([text], self.tokenizer)[0],
            "language": language if share >= SURE else UNCLEAR,
        }


@cache
def _languages() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


class _Images(TorchDataset):
    """The facts of images."""

    def __init__(self, rows: Dataset, first: int, column: str):
        self.rows, self.first, self.column = rows, first, column
        self.there = items_there(rows, column)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        facts = dict.fromkeys(IMAGE_FACTS) | {"digest": 0, "phash": 0} | dict.fromkeys(KINDS, False)
        if not self.there[index]:
            return facts
        row = self.rows[index]
        cell = row[self.column]
        try:
            content = image_bytes(cell, number := row.get(ROW_COLUMN, self.first + index), self.column)
            image = open_image(content, number, self.column)
        except UserError as error:
            return facts | {"fault": str(error)}
        stored = look_at(content)
        small = image.resize((FIELDS, FIELDS), Image.Resampling.BOX)
        return facts | {
            "digest": content_id(content),
            "phash": int(np.packbits(imagehash.phash(image).hash).view(">i8")[0]),
            "colours": small.tobytes(),
            # In this order, since the last ones read on, after which the others cannot be told.
            **{kind: _tells(stored, is_so) for kind, is_so in KINDS.items()},
        }


def _tells(stored: Image.Image, is_so: Callable[[Image.Image], bool]) -> bool:
    try:
        return bool(is_so(stored))
    except Exception:  # Pillow raises many types for what is broken behind the first image of a file, which is used
        return False


def image_bytes(cell: Any, row: int, column: str) -> bytes:
    """The encoded image behind a cell that is undecoded: as it is stored, not as it is seen.

    Raises:
        UserError: its file cannot be read; the message does not tell where on this machine it was looked for.
    """
    where = f"row {row}, column '{column}'"
    try:
        found = content(cell)
    except UserError as error:
        raise UserError(f"{where}: the image cannot be read ({error}). Replace it or remove the row.") from error
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        name = short(PurePath(str(stored(cell))).name)
        raise UserError(
            f"{where} ({name}): the image's file cannot be read ({type(error).__name__}). Replace the file or remove "
            "the row."
        ) from error
    if not isinstance(found, Image.Image):
        return found
    buffer = io.BytesIO()
    found.save(buffer, "PNG")
    return buffer.getvalue()


def same_wording(text: str) -> str:
    """What captions have in common that differ in capitals, spaces, accents or punctuation alone."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(letter if letter.isalnum() else " " for letter in folded if not unicodedata.combining(letter))
    return " ".join(kept.split()) or text  # a caption of emoji alone
