"""Draws a sheet of quadruplets of the bundled demo: `python tools/show.py docs/world.png`."""

import argparse
import textwrap

from PIL import Image, ImageDraw, ImageFont

from safe_clip.demo.dataset import SPLITS
from safe_clip.demo.world import IMAGE_SIZE, draw_quadruplet, unsafe_concepts

ZOOM = 3
GAP = 16
TEXT_HEIGHT = 58


def draw_sheet(splits: list[str], columns: int) -> Image.Image:
    """One line of `columns` quadruplets per split, each the safe and the unsafe scene over their captions."""
    side = IMAGE_SIZE * ZOOM
    width, height = 2 * side + GAP, side + TEXT_HEIGHT
    sheet = Image.new("RGB", (columns * (width + 2 * GAP), len(splits) * (height + 2 * GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for line, split in enumerate(splits):
        _, styles, held_out = SPLITS[split]
        for column in range(columns):
            row = draw_quadruplet(f"{split}/{column}", styles, unsafe_concepts(held_out))
            left, top = GAP + column * (width + 2 * GAP), GAP + line * (height + 2 * GAP)
            for offset, kind in ((0, "safe"), (side + GAP, "unsafe")):
                scene = row[f"{kind}_image"].resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(scene, (left + offset, top))
                caption = "\n".join(textwrap.wrap(row[f"{kind}_caption"], side // 7)[:4])
                draw.text((left + offset, top + side + 4), caption, fill="black", font=font)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="where the image is written")
    parser.add_argument("--splits", nargs="+", default=["test", "held_out_concepts", "held_out_style"], choices=SPLITS)
    parser.add_argument("--columns", type=int, default=3)
    args = parser.parse_args()
    draw_sheet(args.splits, args.columns).save(args.output, optimize=True)


if __name__ == "__main__":
    main()
