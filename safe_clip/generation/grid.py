"""Images side by side: what a model makes of the same thing with the original CLIP and with the safe one."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..data.thumbnails import HIDDEN_PIXELS

CELL, GAP = 192, 12  # pixels: width and height of an image, and what is between two
LABEL = 76  # pixels of the column that names the rows
FONT_SIZE, LINE = 13, 17  # pixels
LETTERS = 29  # of a line above or beneath an image
MOST_LINES = 6
INK, FAINT, PAPER = (24, 24, 28), (110, 110, 118), (255, 255, 255)


@dataclass(frozen=True)
class Cell:
    """What stands at one place: an image, a text, or an image above a text."""

    image: Image.Image | None = None
    text: str = ""
    faint: bool = False


def blurred(image: Image.Image) -> Image.Image:
    """An image of the same size in which nothing can be made out."""
    tiny = image.convert("RGB").resize((HIDDEN_PIXELS, HIDDEN_PIXELS), Image.Resampling.BOX)
    return tiny.filter(ImageFilter.GaussianBlur(1)).resize(image.size, Image.Resampling.BICUBIC)


def draw_grid(rows: Sequence[tuple[str, Sequence[Cell]]]) -> Image.Image:
    """Draws rows of cells beneath each other.

    Args:
        rows: what each row is called, and its cells, one a column.
    """
    font = ImageFont.load_default(FONT_SIZE)
    columns = max(len(cells) for _, cells in rows)
    heights = [max(map(_height, cells), default=0) for _, cells in rows]
    size = (LABEL + columns * (CELL + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1))
    page = Image.new("RGB", size, PAPER)
    pen, top = ImageDraw.Draw(page), GAP
    for (name, cells), height in zip(rows, heights, strict=True):
        pen.multiline_text((GAP, top), textwrap.fill(name, 9), INK, font)
        for column, cell in enumerate(cells):
            left, below = LABEL + GAP + column * (CELL + GAP), top
            if cell.image is not None:
                page.paste(_fitted(cell.image), (left, top))
                below += CELL + GAP // 2
            pen.multiline_text((left, below), "\n".join(_lines(cell.text)), FAINT if cell.faint else INK, font)
        top += height + GAP
    return page


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, LETTERS, max_lines=MOST_LINES, placeholder=" …")


def _height(cell: Cell) -> int:
    return (CELL + GAP // 2 if cell.image is not None else 0) + LINE * len(_lines(cell.text))


def _fitted(image: Image.Image) -> Image.Image:
    """In a square of `CELL` pixels; a small one is enlarged without being smoothed."""
    scale = CELL / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    method = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (CELL, CELL), PAPER)
    square.paste(image.resize(size, method), ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return square
