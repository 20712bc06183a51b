"""Figures as text."""

COLUMNS = {
    "recall_t2i": "caption>picture",
    "recall_i2t": "picture>caption",
    "safe_rate_safe_text": "safe caption",
    "safe_rate_safe_image": "safe picture",
    "safe_rate_unsafe_text": "unsafe caption",
    "safe_rate_unsafe_image": "unsafe picture",
}


def before_after_table(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> str:
    """Lays out the figures of `quadruplet_metrics`, by split, before and after training, in percent."""
    widths = [max(len(title), 6) for title in COLUMNS.values()]
    left = max(len(split) for split in before) + 8
    recall = sum(widths[:2]) + 2
    lines = [
        " " * left + "recall@1 of safe items".ljust(recall + 2) + "  first result is safe, by query",
        " " * left + "  ".join(title.rjust(width) for title, width in zip(COLUMNS.values(), widths, strict=True)),
    ]
    for split in before:
        for when, figures in (("before", before[split]), ("after", after[split])):
            label = f"{split if when == 'before' else '':{left - 8}} {when:6} "
            cells = (f"{100 * figures[name]:{width}.1f}" for name, width in zip(COLUMNS, widths, strict=True))
            lines.append(label + "  ".join(cells))
    return "\n".join(lines)
