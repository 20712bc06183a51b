"""Charts as SVG that stands inline in a page and takes its text colour, so that it reads in light and dark."""

import html
import io
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from ..quadruplets import QuadrupletItems
from ..table import Line

INK = "#010203"  # stands for the page's text colour, which no chart colour may equal
COLOURS = {"baseline": "#8f8f8f", "model": "#3d7edb"}
SIDES = {"safe": "#3d7edb", "unsafe": "#e2762d"}
MARKS = {"text": "o", "image": "^"}
WIDTH = 4.8  # inches: one column of the page, or a phone's screen
POINTS = 250  # of each kind in a projection

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "font.size": 10,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK
    ),
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """An `<svg>` element with an alternative text."""
    buffer = io.StringIO()
    # The salt keeps the ids of several charts in a page apart, and the same at every run.
    with matplotlib.rc_context({"svg.hashsalt": name, **STYLE}):
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt, quote=True)}"', 1)


def _new(height: float, columns: int = 1, **options) -> tuple[Figure, np.ndarray]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, np.atleast_1d(figure.subplots(1, columns, **options))


def bars(lines: Sequence[Line], names: dict[str, str], name: str, title: str) -> str:
    """Horizontal bars of shares with their intervals, each role's below the other's."""
    roles = list(names)
    figure, (axes,) = _new(0.6 + 0.3 * len(lines) * max(len(roles), 1.4))
    with matplotlib.rc_context(STYLE):
        places = np.arange(len(lines), dtype=float)
        height = 0.8 / len(roles)
        for number, role in enumerate(roles):
            figures = [line.figures[role] for line in lines]
            values = np.array([100 * each["value"] if each else np.nan for each in figures])
            low, high = (
                np.array([abs(100 * (each[end] - each["value"])) if each else np.nan for each in figures])
                for end in ("low", "high")
            )
            spots = places + (number - (len(roles) - 1) / 2) * height
            axes.barh(spots, values, height, color=COLOURS[role], label=names[role])
            axes.errorbar(values, spots, xerr=[low, high], fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)
            for spot, value, end in zip(spots, values, values + high, strict=True):
                if not np.isnan(value):
                    axes.text(end + 1.5, spot, f"{value:.1f}", va="center", fontsize=9)
        labels = ["\n".join(textwrap.wrap(line.label, 26)) for line in lines]
        axes.set_yticks(places, labels)
        axes.set(xlim=(0, 112), xticks=range(0, 101, 25), xlabel="%")
        axes.invert_yaxis()
        if len(roles) > 1:
            figure.legend(loc="outside upper right", ncols=len(roles), fontsize=9)
    alt = f"{title}. " + " ".join(_described(line, names) for line in lines)
    return to_svg(figure, name, alt)


def _described(line: Line, names: dict[str, str]) -> str:
    values = [f"{names[role]} {100 * each['value']:.1f} %" for role, each in line.figures.items() if each]
    return f"{line.label}: {', '.join(values)}."


def heat_map(
    by_category: dict[str, dict[str, dict[str, float]]], names: dict[str, str], columns: Sequence[str], name: str
) -> str:
    """Safe rates by category, one panel a model: `{role: {category: {column: share}}}`."""
    categories = list(next(iter(by_category.values())))
    figure, panels = _new(1.0 + 0.3 * len(categories), len(by_category), sharey=True)
    with matplotlib.rc_context(STYLE):
        for axes, (role, table) in zip(panels, by_category.items(), strict=True):
            values = 100 * np.array([[table[category][column] for column in columns] for category in categories])
            axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
            for (row, column), value in np.ndenumerate(values):
                colour = "black" if value > 60 else "white"
                axes.text(
                    column,
                    row,
                    "-" if np.isnan(value) else f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color=colour,
                )
            axes.set_xticks(range(len(columns)), [column.replace(" ", "\n") for column in columns], fontsize=8)
            axes.set_yticks(range(len(categories)), categories)
            axes.set_title(_short(names[role]))
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    parts = [
        f"{names[role]}, {category}: "
        + ", ".join(f"{column} {100 * share:.0f} %" for column, share in row.items() if not np.isnan(share))
        for role, table in by_category.items()
        for category, row in table.items()
    ]
    return to_svg(figure, name, "Share of first results that are safe, by category. " + "; ".join(parts) + ".")


def projection(items: dict[str, QuadrupletItems], names: dict[str, str], name: str) -> str:
    """Captions and images on two directions of the first model: from captions to images, from safe to unsafe.

    Models of the same dimension share the directions, so that what moved is seen to move.
    """
    first = next(iter(items.values()))
    figure, panels = _new(2.9 if len(items) > 1 else 3.6, len(items), sharex=True, sharey=True)
    with matplotlib.rc_context(STYLE):
        for axes, (role, each) in zip(panels, items.items(), strict=True):
            alike = each.safe_text.embeds.shape[1] == first.safe_text.embeds.shape[1]
            basis = _directions(first if alike else each)
            for side, colour in SIDES.items():
                for modality, mark in MARKS.items():
                    spots = each.of(side, modality).embeds[:POINTS].double() @ basis
                    axes.scatter(
                        *spots.T.numpy(), s=8, c=colour, marker=mark, alpha=0.5, linewidths=0, rasterized=True,
                        label=f"{side} {'captions' if modality == 'text' else 'images'}",
                    )  # fmt: skip
            axes.set(xticks=[], yticks=[], title=_short(names[role]))
        panels[0].set(xlabel="captions → images", ylabel="safe → unsafe")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, markerscale=2)
        figure.dpi = 200
    alt = (
        "Embeddings of captions and images, safe and unsafe, along the directions from captions to images and from "
        f"safe to unsafe, for {' and '.join(names.values())}."
    )
    return to_svg(figure, name, alt)


def _directions(items: QuadrupletItems) -> Tensor:
    """A dimension x 2 basis: from the mean caption to the mean image, and, at a right angle to it, from the mean safe
    item to the mean unsafe item."""
    mean = {
        (side, modality): items.of(side, modality).embeds.double().mean(dim=0) for side in SIDES for modality in MARKS
    }
    nothing = torch.zeros(())
    across = sum((mean[side, "image"] - mean[side, "text"] for side in SIDES), start=nothing)
    up = sum((mean["unsafe", modality] - mean["safe", modality] for modality in MARKS), start=nothing)
    across = normalize(across, dim=0)
    return torch.stack([across, normalize(up - (up @ across) * across, dim=0)], dim=1)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"
