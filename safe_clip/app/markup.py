"""What the page shows, as HTML: results, probabilities, the curve."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .drawing import Drawn
from .gallery import Hit, Point, Thing

UNSAFE, SAFE = "unsafe", "safe"


def text(words: object) -> str:
    """Text inside HTML; also what gradio's templates would read as theirs."""
    return html.escape(str(words)).replace("{", "&#123;").replace("}", "&#125;").replace("$", "&#36;")


def fault(words: str) -> str:
    """An error, in a line."""
    return f'<p class="fault" role="alert">{text(words[:1].upper() + words[1:])}</p>'


def note(words: str) -> str:
    """A remark."""
    return f'<p class="note">{text(words)}</p>'


@dataclass(frozen=True)
class Column:
    """The results of one model, and what it is called."""

    title: str
    name: str
    hits: Sequence[tuple[Hit, Thing]]


def results(columns: Sequence[Column], show_unsafe: bool, query: str | None = None) -> str:
    """Results beside each other.

    Args:
        columns: one for each model.
        show_unsafe: cover nothing.
        query: the data URL of the query, if it is an image.
    """
    asked = f'<p class="asked"><img src="{query}" alt="Your image"> Results for your image</p>' if query else ""
    return f'{asked}<div class="columns">{"".join(_column(column, show_unsafe) for column in columns)}</div>'


def _column(column: Column, show_unsafe: bool) -> str:
    unsafe = sum(thing.unsafe for _, thing in column.hits)
    first = ""
    if column.hits:
        first = f" The first is {UNSAFE if column.hits[0][1].unsafe else SAFE}."
    said = f"{unsafe} of the first {len(column.hits)} {'is' if unsafe == 1 else 'are'} labelled unsafe.{first}"
    items = "".join(_hit(number, *found, show_unsafe) for number, found in enumerate(column.hits, 1))
    return (
        f'<section class="column"><h3>{text(column.title)} <small>{text(column.name)}</small></h3>'
        f'<p class="count">{text(said)}</p><ol class="hits">{items}</ol></section>'
    )


def _hit(number: int, hit: Hit, thing: Thing, show_unsafe: bool) -> str:
    side = UNSAFE if thing.unsafe else SAFE
    kind = "image" if thing.image else "caption"
    covered = thing.unsafe and not show_unsafe
    label = f"Show result {number}, {'an' if kind == 'image' else 'a'} {kind} labelled unsafe"
    if thing.image:
        about = f"Image {number}, labelled unsafe" if thing.unsafe else thing.text
        shown = picture(thing.image, about or f"Image {number}, which has no caption")
    else:
        shown = f'<span class="thing">{text(thing.text)}</span>'
    return (
        f'<li class="hit {side} {kind}">{cover(shown, label if covered else None)}'
        f'<span class="said"><span class="place">{number}.</span> <span class="score">{hit.score:.3f}</span> '
        f'<span class="tag">{side}</span></span></li>'
    )


def picture(url: str, alt: str) -> str:
    """An image."""
    return f'<img class="thing" src="{url}" alt="{text(alt)}">'


def cover(shown: str, label: str | None) -> str:
    """Something that is covered until it is clicked, or a key is pressed on it; nothing is where there is no label."""
    if label is None:
        return f'<span class="frame">{shown}</span>'
    return (
        f'<span class="frame covered"><input type="checkbox" class="lift" aria-label="{text(label)}">'
        f'{shown}<span class="hint" aria-hidden="true">unsafe: show</span></span>'
    )


def probabilities(labels: Sequence[str], by: Mapping[str, Sequence[float]], query: str, independent: bool) -> str:
    """What both models see in an image: a bar for each label and model."""
    order = sorted(range(len(labels)), key=lambda place: -max(values[place] for values in by.values()))
    heads = "".join(f'<th scope="col">{text(name)}</th>' for name in by)
    rows = "".join(
        f'<tr><th scope="row">{text(labels[place])}</th>' + "".join(_bar(values[place]) for values in by.values())
        for place in order
    )
    said = (
        "Each probability is one of its own (a sigmoid): they need not add up to 100 %."
        if independent
        else "The probabilities of a model add up to 100 % (a softmax over these labels)."
    )
    return (
        f'<p class="asked"><img src="{query}" alt="Your image"> {text(said)}</p><table class="classes">'
        f'<thead><tr><th scope="col">Label</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    )


def _bar(share: float) -> str:
    percent = 100 * share
    digits = 1 if percent >= 0.1 else 3  # many of a SigLIP's are small
    said = f"{percent:.{digits}f} %" if percent >= 0.001 else "under 0.001 %"
    return f'<td><span class="bar" style="width:{percent:.1f}%"></span><span>{said}</span></td>'


def drawings(titles: Iterable[str], drawn: Iterable[tuple[str, Drawn]], always: bool, show_unsafe: bool) -> str:
    """Two images beside each other.

    Args:
        titles: of each.
        drawn: the data URL of each, and what was drawn.
        always: cover the first whatever the judges say, since they know of little.
        show_unsafe: cover nothing.
    """
    columns = []
    for number, (title, (url, each)) in enumerate(zip(titles, drawn, strict=True)):
        flagged = bool(each.flagged_by)
        said = f"flagged as unsafe by {', '.join(each.flagged_by)}" if flagged else "not flagged"
        hidden = (flagged or (always and number == 0)) and not show_unsafe
        shown = picture(url, f"{title}: an image drawn from your prompt, {said}")
        columns.append(
            f'<section class="column"><h3>{text(title)}</h3><div class="hit {UNSAFE if flagged else SAFE} drawn">'
            f"{cover(shown, f'Show what {title} drew, {said}' if hidden else None)}"
            f'<span class="said"><span class="tag">{text(said)}</span></span></div></section>'
        )
    return f'<div class="columns">{"".join(columns)}</div>'


# ---- The curve ----

WIDE, HIGH, LEFT, BELOW, EDGE = 360, 300, 52, 46, 16  # units of the drawing


def curve(points: Sequence[Point], strength: float) -> str:
    """Safety over utility, the step's point ringed; its words say the same."""
    if not points:
        return note("The gallery has not both safe and unsafe captions and images, so that there is no curve.")
    utilities = [100 * point.utility for point in points]
    low, high = _range(utilities)

    def place(point: Point) -> tuple[float, float]:
        across = (100 * point.utility - low) / (high - low)
        return LEFT + across * (WIDE - LEFT - EDGE), HIGH - BELOW - point.safety * (HIGH - BELOW - EDGE)

    grid = []
    for share in range(0, 101, 25):
        y = HIGH - BELOW - share / 100 * (HIGH - BELOW - EDGE)
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - EDGE}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share}</text>')
    for value in (low, (low + high) / 2, high):
        x = LEFT + (value - low) / (high - low) * (WIDE - LEFT - EDGE)
        grid.append(f'<text x="{x:.1f}" y="{HIGH - BELOW + 18}" text-anchor="middle">{value:g}</text>')
    places = [place(point) for point in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = []
    for point, (x, y) in zip(points, places, strict=True):
        if point.strength == strength:
            marks.append(f'<circle class="here" cx="{x:.1f}" cy="{y:.1f}" r="10"/>')
        right = x < WIDE - 3 * EDGE
        marks.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        marks.append(
            f'<text x="{x + (14 if right else -14):.1f}" y="{y + 4:.1f}" text-anchor="{"start" if right else "end"}">'
            f"{point.strength:g}</text>"
        )
    here = next((point for point in points if point.strength == strength), None)
    words = "; ".join(
        f"strength {point.strength:g}: {100 * point.safety:.1f} % safe first, recall {100 * point.utility:.1f} %"
        for point in points
    )
    caption = ""
    if here:
        caption = (
            f"At strength {here.strength:g}, {100 * here.safety:.1f} % of unsafe captions find a safe image first, and "
            f"{100 * here.utility:.1f} % of safe captions their own image."
        )
    return (
        f'<figure class="curve"><svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="Safety over utility. {words}">'
        f'{"".join(grid)}<polyline class="line" points="{line}"/>{"".join(marks)}'
        f'<text x="{(LEFT + WIDE - EDGE) / 2}" y="{HIGH - 6}" text-anchor="middle">'
        f"utility: safe captions that find their own image first, %</text>"
        f'<text transform="translate(14 {(HIGH - BELOW + EDGE) / 2}) rotate(-90)" text-anchor="middle">'
        f"safety: unsafe captions, safe first, %</text></svg><figcaption>{text(caption)}</figcaption></figure>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Multiples of five around some shares, not too near to one another."""
    low, high = min(values) // 5 * 5, -(-max(values) // 5) * 5
    while high - low < 10:
        low, high = max(0.0, low - 5), min(100.0, high + 5)
    return low, high
