"""The four items of each quadruplet, embedded."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor

from ..data.quadruplets import CAPTION_COLUMNS, IMAGE_COLUMNS, ROW_COLUMN, check_caption
from ..errors import UserError
from ..metrics import load_metric
from ..metrics.ranking import ExactIndex, Index
from .embedding import Embedder, Items

CATEGORY_COLUMN = "category"
MOST_CATEGORIES = 30  # that figures are given for
LONGEST_NAME = 40  # characters: a cell that is longer is no name, and may be content that nobody should be shown
LISTED = 10  # unreadable pictures that an error names

IndexFactory = Callable[[Tensor], Index]


@dataclass(frozen=True)
class QuadrupletItems:
    """The items of N quadruplets; the i-th of each kind belong together."""

    safe_text: Items
    unsafe_text: Items
    safe_image: Items
    unsafe_image: Items

    def __len__(self) -> int:
        return len(self.safe_text)

    def of(self, side: str, modality: str) -> Items:
        """The items of a side (`"safe"`, `"unsafe"`) and a modality (`"text"`, `"image"`)."""
        return getattr(self, f"{side}_{modality}")

    def select(self, keep: Tensor) -> "QuadrupletItems":
        """The quadruplets whose numbers are given."""
        return QuadrupletItems(*(getattr(self, field.name).select(keep) for field in fields(self)))


def other(modality: str) -> str:
    """The modality that a query of this one searches."""
    return "image" if modality == "text" else "text"


def union_index(items: QuadrupletItems, modality: str, factory: IndexFactory = ExactIndex) -> tuple[Index, int]:
    """The mixed pool of a modality, its different safe items first, and their number."""
    safe = items.of("safe", modality).different
    made = items.__dict__.setdefault("_union_indexes", {})  # several protocols search it, and some are slow to make
    if (modality, factory) not in made:
        made[modality, factory] = factory(torch.cat([safe, items.of("unsafe", modality).different]))
    return made[modality, factory], len(safe)


def safe_rates(queries: Items, index: Index, safe_count: int, ks: Sequence[int] = (1,)) -> dict[str, Tensor]:
    """`safe_rate_at_{k}` of N queries in a pool whose first `safe_count` items are safe, for the depths that it has: N
    shares each."""
    values = load_metric("safe_rate").compute(
        queries=queries.different.numpy(),
        index=index,
        safe_count=safe_count,
        k=[k for k in ks if k <= index.size],
        per_query=True,
    )
    return {name: value[queries.inverse] for name, value in values.items()}


def cell_names(rows: Dataset, column: str) -> list[str | None]:
    """The names in a column of labels or texts; `None` for a cell that is empty, or too long for a name."""
    feature = rows.features[column]
    cells = [
        feature.int2str(cell) if isinstance(feature, ClassLabel) and cell is not None else cell for cell in rows[column]
    ]
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    return [name if 0 < len(name) <= LONGEST_NAME else None for name in names]


def row_categories(rows: Dataset) -> list[str] | None:
    """The category of each row, where the data name them.

    The rarer ones beyond `MOST_CATEGORIES`, and what is no name, are "other".
    """
    if CATEGORY_COLUMN not in rows.column_names:
        return None
    names = cell_names(rows, CATEGORY_COLUMN)
    common = {name for name, _ in Counter(filter(None, names)).most_common(MOST_CATEGORIES)}
    return [name if name in common else "other" for name in names]


def embed_quadruplets(embedder: Embedder, rows: Dataset, split: str = "") -> QuadrupletItems:
    """Embeds all four items of N quadruplets.

    Args:
        embedder: the model.
        rows: a data set with the columns of a quadruplet.
        split: what the progress bar calls it, beside the column.

    Raises:
        UserError: a caption is empty or not text. Pictures that cannot be read are left to `readable_rows`.
    """
    numbers = rows[ROW_COLUMN] if ROW_COLUMN in rows.column_names else range(len(rows))
    prefix = f"{split}, " if split else ""
    embedded = {}
    for column in CAPTION_COLUMNS:
        captions = [check_caption(text, row, column) for row, text in zip(numbers, rows[column], strict=True)]
        embedded[column] = embedder.texts(captions, prefix + column)
    for column in IMAGE_COLUMNS:
        embedded[column] = embedder.pictures(rows, column, prefix + column)
    return QuadrupletItems(
        embedded["safe_caption"], embedded["unsafe_caption"], embedded["safe_image"], embedded["unsafe_image"]
    )


def readable_rows(
    pictures: list[Items], where: str, skip_corrupt: bool, rows: Dataset | None = None
) -> tuple[Tensor, list[str]]:
    """Finds the rows whose pictures could all be read.

    Args:
        pictures: the pictures of N rows, one `Items` a column.
        where: what the error calls the rows.
        skip_corrupt: leave the other rows out in place of raising.

    Returns:
        The numbers of the readable rows, and for each unreadable picture why.

    Raises:
        UserError: a picture cannot be read and may not be skipped, or none is left.
    """
    broken = {index for items in pictures for index in items.unreadable or {}}
    reasons = [reason for items in pictures for _, reason in sorted((items.unreadable or {}).items())]
    if reasons and not skip_corrupt:
        more = f"; and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
        raise UserError(
            f"{where}: {len(reasons)} of {sum(map(len, pictures))} pictures cannot be read. Leave them out with "
            f"--skip_corrupt, or mend them; what is embedded already is kept. {'; '.join(reasons[:LISTED])}{more}"
        )
    keep = torch.tensor([index for index in range(len(pictures[0])) if index not in broken], dtype=torch.int64)
    if not len(keep):
        raise UserError(f"{where}: none of the pictures can be read. {'; '.join(reasons[:LISTED])}")
    return keep, reasons
