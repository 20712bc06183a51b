"""Figures of generated images and captions as text."""

from collections.abc import Iterator

from ..evaluation.table import NO_WIDTH, Line, cell

# For each figure that tables show: what they call it, whether it is a share, and what it is multiplied by.
LABELS: dict[str, tuple[str, bool, float]] = {
    "unsafe_out": ("unsafe, by any judge", True, 1),
    "objects": ("has what the safe caption names", True, 1),
    "clip_score": ("CLIP score with the safe caption", False, 1),
    "drift": ("hidden states moved: squared relative error, x 100", True, 1),
    "diversity": ("diversity of a prompt's images", False, 1),
    "fid": ("FID to the real images", False, 1),
    "bleu_4": ("BLEU-4 to the safe caption, x 100", True, 1),
    "rouge_l": ("ROUGE-L to the safe caption, x 100", True, 1),
    "cider": ("CIDEr to the safe caption, x 100", True, 1),
    "meteor": ("METEOR to the safe caption, x 100", True, 1),
    "kid": ("KID to the real images, x 1,000", False, 1000),
}
JUDGED = "unsafe_out_"  # before the name of a judge
WHAT = {"text_to_image": ("prompts", "images of"), "image_to_text": ("images", "captions of")}
NOTES = "Shares in percent; in brackets, 95 % bootstrap intervals over what is generated from."
FEW = 50  # images whose FID and KID say nothing
OF_MANY = ("fid", "kid")
OF_FEW = f"FID and KID are left out where there are fewer than {FEW} images, of which they say nothing."


def lines(results: dict, split: str, side: str) -> Iterator[Line]:
    """The figures of one side of a split, each of every role."""
    measured = {role: each["splits"].get(split, {}).get(side, {}) for role, each in results["models"].items()}
    judges = [name.removeprefix(JUDGED) for name in measured["model"] if name.startswith(JUDGED)]
    labels = {f"{JUDGED}{judge}": (f"unsafe, by {judge}", True, 1) for judge in judges} | LABELS
    few = _made(results["samples"][split][side]) < FEW
    for name, (label, share, factor) in labels.items():
        if name in measured["model"] and not (few and name in OF_MANY):
            yield Line(label, share, {role: _times(each.get(name), factor) for role, each in measured.items()})


def results_table(results: dict) -> str:
    """Lays out `text_to_image.json` or `image_to_text.json` as text."""
    roles = list(results["models"])
    what, made_of = WHAT[results["task"]]
    blocks = []
    for split, sides in results["samples"].items():
        for side, count in sides.items():
            title = f"{split}: {made_of} {count['items']:,} {side} {what}"
            title += f", {count['copies']} of each" if count["copies"] > 1 else ""
            blocks.append((title, list(lines(results, split, side))))
    left = 2 + max(len(line.label) for _, block in blocks for line in block)
    width = max(20, *(len(name) for name in results["names"].values()))
    text = [" " * (left + 2) + "  ".join(results["names"][role].rjust(width) for role in roles)]
    for title, block in blocks:
        text += [title]
        for line in block:
            cells = "  ".join(cell(line.figures[role], line.share).rjust(width) for role in roles)
            text.append(f"  {line.label:{left}}{cells}")
        text.append("")
    made = [_made(count) for sides in results["samples"].values() for count in sides.values()]
    of_few = results["task"] == "text_to_image" and min(made) < FEW
    return "\n".join([*text, NOTES, NO_WIDTH, *([OF_FEW] if of_few else [])])


def _made(count: dict[str, int]) -> int:
    """How many images or captions of one side of a split there are."""
    return count["items"] * count["copies"]


def _times(figure: dict | None, factor: float) -> dict | None:
    if figure is None or factor == 1:
        return figure
    return {name: factor * value for name, value in figure.items() if name in ("value", "low", "high")}
