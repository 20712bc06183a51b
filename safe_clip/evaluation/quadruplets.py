"""The four items of each quadruplet, embedded."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from PIL import Image as PILImage
from torch import Tensor

from ..data.allowance import check_bad_share
from ..data.features import cell_name, texts_in
from ..data.items import CAPTION_COLUMNS, ITEM_COLUMNS, ROW_COLUMN, RowLayout, items_there, layout_of
from ..data.rows import check_caption
from ..data.schema import numbered
from ..errors import UserError
from ..metrics import load_metric
from ..metrics.ranking import ExactIndex, Index
from .embedding import Embedder
from .items import Items

CATEGORY_COLUMN = "category"
MOST_CATEGORIES = 30  # that figures are given for
LONGEST_NAME = 40  # characters: a cell that is longer is no name, and may be content that nobody should be shown
LISTED = 10  # unreadable pictures that an error names

IndexFactory = Callable[[Tensor], Index]


@dataclass(frozen=True)
class QuadrupletItems:
    """The items of N quadruplets; the i-th of each kind belong together. `layout` tells which rows they are made of."""

    safe_text: Items
    unsafe_text: Items
    safe_image: Items
    unsafe_image: Items
    layout: RowLayout | None = None

    def __len__(self) -> int:
        return len(self.safe_text)

    def of(self, side: str, modality: str) -> Items:
        """The items of a side (`"safe"`, `"unsafe"`) and a modality (`"text"`, `"image"`)."""
        return getattr(self, f"{side}_{modality}")

    def select(self, keep: Tensor) -> "QuadrupletItems":
        """The quadruplets whose numbers are given."""
        items = (self.of(side, modality).select(keep) for modality in ("text", "image") for side in ("safe", "unsafe"))
        return QuadrupletItems(*items, self.layout and self.layout.select(keep.numpy()))


def other(modality: str) -> str:
    """The modality that a query of this one searches."""
    return "image" if modality == "text" else "text"


def union_index(items: QuadrupletItems, modality: str, factory: IndexFactory = ExactIndex) -> tuple[Index | None, int]:
    """The mixed pool of a modality, its different safe items first, and their number; no pool where there are none."""
    safe = items.of("safe", modality).different
    if not items.of("safe", modality).there.any() and not items.of("unsafe", modality).there.any():
        return None, 0
    made = items.__dict__.setdefault("_union_indexes", {})  # several protocols search it, and some are slow to make
    if (modality, factory) not in made:
        made[modality, factory] = factory(torch.cat([safe, items.of("unsafe", modality).different]))
    return made[modality, factory], len(safe)


def safe_rates(queries: Items, index: Index | None, safe_count: int, ks: Sequence[int] = (1,)) -> dict[str, Tensor]:
    """`safe_rate_at_{k}` of N queries in a pool whose first `safe_count` items are safe, for the depths that it has: N
    shares each. Nothing where there are no queries, or not both safe and unsafe items to find."""
    if index is None or not queries.there.any() or not 0 < safe_count < index.size:
        return {}
    values = load_metric("safe_rate").compute(
        queries=queries.different.numpy(),
        index=index,
        safe_count=safe_count,
        k=[k for k in ks if k <= index.size],
        per_query=True,
    )
    return {name: queries.spread(value) for name, value in values.items()}


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
        UserError: a caption is not text, or has nothing in it. Pictures that cannot be read are left to
        `readable_rows`.
    """
    prefix = f"{split}, " if split else ""
    made = {}
    for number, column in enumerate(ITEM_COLUMNS):
        if column in CAPTION_COLUMNS:
            made[number] = embed_captions(embedder, rows, column, prefix + column)
        else:
            made[number] = embed_pictures(embedder, rows, column, prefix + column)
    layout = layout_of(rows)
    return QuadrupletItems(*(stand(made, layout, number, embedder.dimension) for number in range(4)), layout)


def embed_captions(
    embedder: Embedder, rows: Dataset, column: str, desc: str, change: Callable[[str], str] | None = None
) -> Items | None:
    """The captions of a column, changed if so asked, where there are any; `None` for none at all."""
    there = items_there(rows, column).nonzero()[0].tolist()
    if not there:
        return None
    cells, numbers = rows[column], rows[ROW_COLUMN] if ROW_COLUMN in rows.column_names else range(len(rows))
    captions = [check_caption(cells[index], numbers[index], column) for index in there]
    items = embedder.texts([change(caption) for caption in captions] if change else captions, desc)
    return items.scatter(torch.tensor(there), len(rows))


def embed_pictures(
    embedder: Embedder,
    rows: Dataset,
    column: str,
    desc: str,
    change: Callable[[PILImage.Image], PILImage.Image] | None = None,
) -> Items | None:
    """The pictures of a column, likewise."""
    there = items_there(rows, column).nonzero()[0].tolist()
    if not there:
        return None
    chosen = rows if len(there) == len(rows) else numbered(rows).select(there)
    return embedder.pictures(chosen, column, desc, change).scatter(torch.tensor(there), len(rows))


def stand(made: Mapping[int, Items | None], layout: RowLayout, number: int, dimension: int) -> Items:
    """The items of N quadruplets that stand at one of the four places.

    Args:
        made: by number of a column, the items of its rows.
        layout: where they stand.
        number: of the place.
        dimension: of embeddings, for a place where none stands.
    """
    source, row = torch.from_numpy(layout.source[:, number]), torch.from_numpy(layout.row)
    own = made.get(number)
    alike = own is not None and torch.equal(row, torch.arange(len(own)))
    if (
        alike
        and (source == number)[own.there].all()
        and own.there.sum() == (source >= 0).sum() - len(own.unreadable or {})
    ):
        return own
    embeds, ids = torch.full((len(row), dimension), torch.nan), torch.zeros(len(row), dtype=torch.int64)
    unreadable = {}
    for column, items in made.items():
        here = (source == column).nonzero().flatten()
        if items is not None and len(here):
            embeds[here], ids[here] = items.embeds[row[here]], items.ids[row[here]]
            reasons = items.unreadable or {}
            unreadable |= {index: reasons[row[index].item()] for index in here.tolist() if row[index].item() in reasons}
    return Items(embeds, ids, unreadable)


def readable_rows(
    pictures: list[Items], where: str, max_bad_fraction: float | None = None, left_out: int = 0
) -> tuple[Tensor, list[str]]:
    """Finds the rows whose pictures, as far as there are any, could all be read.

    Args:
        pictures: the pictures of N rows, one `Items` a column.
        where: what the error calls the rows.
        max_bad_fraction: the largest share of other rows that is left out; by default the first one raises.
        left_out: rows that were left out before, which count towards it.

    Returns:
        The numbers of the readable rows, and for each unreadable picture why.

    Raises:
        UserError: more pictures cannot be read than may be left out, or none is left.
    """
    broken = {index for items in pictures for index in items.unreadable or {}}
    reasons = [reason for items in pictures for _, reason in sorted((items.unreadable or {}).items())]
    if reasons:
        total = len(reasons) + sum(int(items.there.sum()) for items in pictures)
        more = f"; and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
        told = f"{where}: {len(reasons)} of {total} pictures cannot be read"
        details = f"; what is embedded already is kept. {'; '.join(reasons[:LISTED])}{more}"
        if max_bad_fraction is None:
            raise UserError(f"{told}. Mend them, or leave them out with --on_bad_row skip{details}")
        count = left_out + len(pictures[0])
        check_bad_share(left_out + len(broken), count, max_bad_fraction, told, details)
    if not len(pictures[0]):
        raise UserError(f"{where}: there are no rows.")
    return torch.tensor([index for index in range(len(pictures[0])) if index not in broken]), reasons
