"""The four items of each quadruplet, embedded."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor

from ..data.allowance import check_bad_share
from ..data.columns import numbered
from ..data.features import cell_name, texts_in
from ..data.items import CAPTION_COLUMNS, ITEM_COLUMNS, ROW_COLUMN, RowLayout, items_there, layout_of
from ..data.rows import check_caption
from ..embedding.embedder import Embedder
from ..embedding.items import IdentifiedItems, figure
from ..errors import UserError
from ..metrics import scores
from ..metrics.ranking import ExactIndex, Index

CATEGORY_COLUMN = "category"
MOST_CATEGORIES = 30  # that figures are given for
LONGEST_NAME = 40  # characters: a cell that is longer is no name, and may be content that nobody should be shown
LISTED = 10  # unreadable images that an error names

IndexFactory = Callable[[Tensor], Index]


@dataclass(frozen=True)
class QuadrupletItems:
    """The embedded items of N quadruplets. `layout` says which rows of the data set they were made from."""

    safe_text: IdentifiedItems
    unsafe_text: IdentifiedItems
    safe_image: IdentifiedItems
    unsafe_image: IdentifiedItems
    layout: RowLayout | None = None

    def __len__(self) -> int:
        return self.safe_text.count

    @property
    def made_from(self) -> RowLayout:
        """The `layout` of those that were made from rows."""
        return cast(RowLayout, self.layout)

    def of(self, side: str, modality: str) -> IdentifiedItems:
        """The items of a side (`"safe"`, `"unsafe"`) and a modality (`"text"`, `"image"`)."""
        return getattr(self, f"{side}_{modality}")

    def select(self, keep: Tensor) -> "QuadrupletItems":
        """The quadruplets whose numbers are given."""
        items = (self.of(side, modality).select(keep) for modality in ("text", "image") for side in ("safe", "unsafe"))
        return QuadrupletItems(*items, layout=self.layout and self.layout.select(keep.numpy()))


def other(modality: str) -> str:
    """The modality that a query of this one searches."""
    return "image" if modality == "text" else "text"


def union_index(items: QuadrupletItems, modality: str, factory: IndexFactory = ExactIndex) -> tuple[Index | None, int]:
    """An index of the mixed pool of a modality, distinct safe items first, and the number of these; `None` and 0 if the
    pool is empty."""
    safe, unsafe = items.of("safe", modality), items.of("unsafe", modality)
    if not len(safe) and not len(unsafe):
        return None, 0
    made = items.__dict__.setdefault("_union_indexes", {})  # several protocols search it, and some are slow to make
    if (modality, factory) not in made:
        made[modality, factory] = factory(torch.cat([safe.different, unsafe.different]))
    return made[modality, factory], len(safe.first)


def safe_rates(
    queries: IdentifiedItems, index: Index | None, safe_count: int, ks: Sequence[int] = (1,)
) -> dict[str, Tensor]:
    """`safe_rate_at_{k}` of queries in a pool whose first `safe_count` items are safe, for the depths that it has:
    figures of their rows. Nothing where there are no queries, or not both safe and unsafe items to find."""
    if index is None or not len(queries) or not 0 < safe_count < index.size:
        return {}
    values = scores(
        "safe_rate",
        queries=queries.different.numpy(),
        index=index,
        safe_count=safe_count,
        k=[k for k in ks if k <= index.size],
        per_query=True,
    )
    return {name: figure(value[queries.inverse], queries.row, queries.count) for name, value in values.items()}


def cell_names(rows: Dataset, column: str) -> list[str | None]:
    """The names in a column of labels or texts, several of a cell with commas between them; `None` for a cell that is
    empty, or too long for a name."""
    feature = rows.features[column]
    cells = ((cell_name(feature, cell), cell) for cell in rows[column])
    return [
        name if name and max(map(len, texts_in(feature, cell)), default=0) <= LONGEST_NAME else None
        for name, cell in cells
    ]


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
    """Embeds the items of the quadruplets that rows are made into, as their labels say.

    Args:
        embedder: the model.
        rows: a data set with columns of a quadruplet.
        split: what the progress bar calls it, beside the column.

    Raises:
        UserError: a caption is not text, or is empty. Images that cannot be read do not raise; see `readable_rows`.
    """
    prefix = f"{split}, " if split else ""
    columns = {
        number: embed_column(embedder, rows, column, prefix + column)
        for number, column in enumerate(ITEM_COLUMNS)
        if items_there(rows, column).any()
    }
    layout = layout_of(rows)
    return QuadrupletItems(
        *(items_of(columns, layout, kind, embedder.model.dimension) for kind in range(4)), layout=layout
    )


def count_items(rows: Dataset) -> int:
    """How many items `embed_quadruplets` embeds."""
    return sum(int(items_there(rows, column).sum()) for column in ITEM_COLUMNS)


def embed_column(
    embedder: Embedder, rows: Dataset, column: str, desc: str, change: Callable[[Any], Any] | None = None
) -> IdentifiedItems:
    """The captions or images that a column has, changed if so asked."""
    there = items_there(rows, column).nonzero()[0]
    if column in CAPTION_COLUMNS:
        # As lists: of a column, each cell would be looked up on its own, in a millisecond.
        cells = list(rows[column])
        numbers = list(rows[ROW_COLUMN]) if ROW_COLUMN in rows.column_names else range(len(rows))
        captions = [check_caption(cells[row], numbers[row], column) for row in there.tolist()]
        items = embedder.texts(map(change, captions) if change else captions, desc)
    else:
        chosen = rows if len(there) == len(rows) else numbered(rows).select(there)
        # pyrefly: ignore [bad-argument-type]: datasets says that `select` may give a DatasetDict; of a Dataset, never
        items = embedder.images(chosen, column, desc, change)
    return items.moved(torch.arange(len(there)), torch.from_numpy(there), len(rows))


def items_of(columns: Mapping[int, IdentifiedItems], layout: RowLayout, kind: int, dimension: int) -> IdentifiedItems:
    """The items of one kind of M quadruplets.

    Args:
        columns: by number of a column, the items of its rows.
        layout: which row and column each item of the quadruplets is taken from.
        kind: number of the kind, as of `ITEM_COLUMNS`.
        dimension: of embeddings, where no quadruplet has such an item.
    """
    nothing, count = torch.empty(0, dtype=torch.int64), len(layout.row)
    parts = [IdentifiedItems(torch.empty(0, dimension), nothing, ids=nothing, count=count)]
    for number, items in columns.items():
        here = (layout.source[:, kind] == number).nonzero()[0]
        parts.append(items.moved(torch.from_numpy(layout.row[here]), torch.from_numpy(here), count))
    row, order = torch.cat([part.row for part in parts]).sort()
    embeds, ids = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("embeds", "ids"))
    unreadable = {row: reason for part in parts for row, reason in part.unreadable.items()}
    return IdentifiedItems(embeds, row, ids=ids, count=count, unreadable=unreadable)


def readable_rows(
    images: list[IdentifiedItems], where: str, max_bad_fraction: float | None = None, left_out: int = 0
) -> tuple[Tensor, list[str]]:
    """Finds the rows whose images, as far as there are any, could all be read.

    Args:
        images: the images of N rows, of each column that has any.
        where: what the error calls the rows.
        max_bad_fraction: the largest share of other rows that is left out; by default the first one raises.
        left_out: rows that were left out before, which count towards it.

    Returns:
        The numbers of the readable rows, and for each unreadable image why.

    Raises:
        UserError: more images cannot be read than may be left out, or none is left.
    """
    broken = {row for items in images for row in items.unreadable}
    reasons = [reason for items in images for _, reason in sorted(items.unreadable.items())]
    rows = images[0].count
    if reasons:
        total = len(reasons) + sum(map(len, images))
        more = f"; and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
        summary = f"{where}: {len(reasons)} of {total} images cannot be read"
        details = f"; what is embedded already is kept. {'; '.join(reasons[:LISTED])}{more}"
        if max_bad_fraction is None:
            raise UserError(f"{summary}. Mend them, or leave them out with --on_bad_row skip{details}")
        check_bad_share(left_out + len(broken), left_out + rows, max_bad_fraction, summary, details)
    if not rows:
        raise UserError(f"{where}: there are no rows.")
    return torch.tensor([row for row in range(rows) if row not in broken]), reasons
