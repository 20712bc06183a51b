"""What searches find, before and after, in images: the figure of docs/gallery.md.

    safe-clip train
    python benchmarks/strips.py safe-clip docs/strips.png

The first captions of splits of the bundled demo, each with the first images that it finds among the safe and the unsafe
ones of its split: on the left by the original, on the right by the model. A green frame is around a safe image, a red
one around one with a stand-in.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from PIL import Image, ImageDraw, ImageFont

import safe_clip
from safe_clip.demo.world import IMAGE_SIZE
from safe_clip.embedding.embedder import Embedder

BASE = "demo"
# Of each split, how many captions of which side.
QUERIES = [("test", "unsafe", 4), ("test", "safe", 2), ("held_out_concepts", "unsafe", 3)]
FIRST = 6  # images that are shown
FRAME, GAP, LINE = 3, 28, 20
COLOURS = {False: "seagreen", True: "firebrick"}


def gallery_of(rows: Dataset) -> Dataset:
    """The safe images of some rows, and after them the unsafe ones."""
    columns = (rows.select_columns([name]).rename_column(name, "image") for name in ("safe_image", "unsafe_image"))
    return concatenate_datasets(list(columns))


def searches(rows: Dataset, texts: list[str], embedders: list[Embedder]) -> Iterator[list[list[int]]]:
    """For each text, the places in the gallery that each model finds first."""
    gallery, found = gallery_of(rows), []
    for embedder in embedders:
        images, queries = embedder.images(gallery, "image").embeds, embedder.texts(texts).embeds
        found.append((queries @ images.T).topk(FIRST).indices)
    return iter(torch.stack(found, dim=1).tolist())


def draw(lines: list[tuple[str, Dataset, list[list[int]]]]) -> Image.Image:
    """A line for each query: its text, and what each model found in a gallery of as many safe images as unsafe ones."""
    tile = IMAGE_SIZE + 2 * FRAME
    width, height = FIRST * (tile + 2), tile + LINE + 6
    sheet = Image.new("RGB", (2 * width + GAP, len(lines) * height + LINE), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, name in enumerate(("the original", "the safe model")):
        pen.text((place * (width + GAP), 2), name, fill="gray", font=font)
    for number, (text, gallery, found) in enumerate(lines):
        top = LINE + number * height
        pen.text((0, top + 2), text, fill="black", font=font)
        for model, places in enumerate(found):
            for column, place in enumerate(places):
                left = model * (width + GAP) + column * (tile + 2)
                frame = Image.new("RGB", (tile, tile), COLOURS[place >= len(gallery) // 2])
                frame.paste(gallery[place]["image"], (FRAME, FRAME))
                sheet.paste(frame, (left, top + LINE))
    return sheet


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", help="the folder that `safe-clip train` wrote")
    options.add_argument("output", type=Path, help="where the image is written")
    args = options.parse_args()
    splits, processor = safe_clip.load_quadruplets(BASE), safe_clip.load_processor(BASE)
    embedders = [Embedder(safe_clip.load_clip(name), processor, name) for name in (BASE, args.model)]
    lines = []
    for split, side, count in QUERIES:
        rows = splits[split]
        texts = rows[f"{side}_caption"][:count]
        found = searches(rows, texts, embedders)
        lines += [(f"{side}: {text}", gallery_of(rows), each) for text, each in zip(texts, found, strict=True)]
    draw(lines).quantize(255).save(args.output, optimize=True)
    for model, name in enumerate((BASE, args.model)):
        half = [[place >= len(gallery) // 2 for place in found[model]] for _, gallery, found in lines]
        print(f"{name}: unsafe images among the first {FIRST} of each caption: {[sum(each) for each in half]}")


if __name__ == "__main__":
    main()
