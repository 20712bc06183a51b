"""Results of an evaluation, as a card shows them and as the Hub reads them."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from huggingface_hub import EvalResult

from ..card_text import plain
from ..config import as_words
from ..data.quadruplets import DEMO
from ..evaluation.table import (
    NOTES,
    OF_CHANGES,
    QUERY_LABELS,
    Line,
    Section,
    cell,
    change_of,
    sample_size,
    split_changes,
    split_sections,
    zero_shot_section,
)
from ..evaluation.verdict import SplitFigures, Verdict, results_verdict, verdict
from ..models.load import public_name
from ..names import redact_paths

HEADINGS = {"baseline": "original", "model": "this model"}
BUNDLED_DEMO = "embedded-world"  # no data set of the Hub
RETRIEVAL_TASK = ("image-text-retrieval", "Image-text retrieval from a pool of safe and unsafe items")
ZERO_SHOT_TASK = ("zero-shot-image-classification", "Zero-shot image classification")
WORST = {
    "redirection": "in the mixed pool",
    "redirection_original_gallery": "in the mixed pool, embedded by the original model",
    "unsafe_gallery": "among safe items and unsafe images from elsewhere",
    "robustness": "under small changes of the query",
}
LOWEST = "The lowest shares of unsafe queries that find a safe item first"
FEWEST = 20  # queries of a category whose share says anything


def combine(old: dict | None, new: dict) -> dict:
    """Adds results to earlier ones of the same weights, which they otherwise replace.

    Results on other quadruplets take the place of the earlier ones; those of labelled images stay.

    Args:
        old: what `evaluation.json` holds, if there is one.
        new: what `evaluate` gives, with the `settings` of the command. Of local paths in it the last part is kept.
    """
    new = {key: value for key, value in new.items() if key not in ("settings", "unreadable", "unavailable")} | {
        "dataset": redact_paths(new["dataset"]) if new["models"]["model"]["splits"] else None,
        "names": {role: public_name(name) for role, name in new["names"].items()},
        "samples": redact_paths(new["samples"]),
        "models": redact_paths(new["models"]),
        "runs": [redact_paths(new.get("settings", {}))],
    }
    try:
        if any(old["weights"].get(role, weights) != weights for role, weights in new["weights"].items()):
            return new
        if None not in (old["dataset"], new["dataset"]) and old["dataset"] != new["dataset"]:
            old = _without_splits(old)
    except (TypeError, KeyError, AttributeError):  # none, or another tool's file of this name
        return new
    runs = old["runs"] + [run for run in new["runs"] if run not in old["runs"]]
    return _merged(old, new) | {"runs": runs, "dataset": new["dataset"] or old["dataset"]}


def _without_splits(results: dict) -> dict:
    models = {role: {**each, "splits": {}} for role, each in results["models"].items()}
    runs = [run for run in results["runs"] if run.get("tasks") == ["zero_shot"]]
    return results | {"models": models, "samples": {"zero_shot": results["samples"].get("zero_shot", {})}, "runs": runs}


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)) or "value" in new:
        return new
    return old | {key: _merged(old[key], value) if key in old else value for key, value in new.items()}


def results_section(results: dict, model: str) -> str:
    """The tables of a card, in Markdown, with the commands that gave them.

    Args:
        results: what `combine` gives.
        model: the name under which others find the model.
    """
    roles = list(results["models"])
    commands = "\n".join(_command(results, run, model) for run in results["runs"])
    said = results_verdict(results)
    compared = "baseline" in roles
    lines = [
        *(_said(said) if said else []),
        "Measured by safe-clip:",
        "",
        f"```bash\n{commands}\n```",
        "",
        " ".join([NOTES, *([OF_CHANGES] if compared else [])]),
    ]
    for title, _, sections in _tables(results):
        heads = [*(HEADINGS[role] for role in roles), *(["change"] if compared else [])]
        lines += ["", f"### {title}", "", f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for section in sections:
            lines.append(f"| **{plain(section.title)}** |" + " |" * len(heads))
            for line in section.lines:
                cells = [cell(line.figures[role], line.share) for role in roles]
                cells += [change_of(line)] if compared else []
                lines.append(f"| {plain(line.label)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _said(verdict: Verdict) -> list[str]:
    """A verdict as paragraphs, in Markdown."""
    notes = [f"- {plain(note)}" for note in verdict.notes]
    return [f"**{plain(verdict.sentence)}**", "", *([*notes, ""] if notes else [])]


def training_section(splits: Sequence[SplitFigures], command: str) -> str:
    """The table of what a training measured before and after, in Markdown.

    Args:
        splits: the figures.
        command: which measures more.
    """
    lines = [
        *_said(verdict(splits)),
        "Measured by safe-clip as it was trained, in percent, higher is better. This measures it by all protocols, "
        "with intervals, and writes that here:",
        "",
        f"```bash\n{command}\n```",
        "",
        "| | before | after | change |",
        "|---|---|---|---|",
    ]
    for title, rows in split_changes(splits):
        lines.append(f"| **{plain(title)}** | | | |")
        lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


def training_worst_case(splits: Sequence[SplitFigures]) -> str | None:
    """The lowest share of unsafe queries in these figures, in Markdown; `None` where there is none."""
    found = [
        (each.after[name], f"{QUERY_LABELS[name.partition('_')[2]]} in `{each.split}`")
        for each in splits
        for name in ("redirection_unsafe_text", "redirection_unsafe_image")
        if name in each.after
    ]
    if not found:
        return None
    share, where = min(found)
    return f"{LOWEST}:\n\n- {WORST['redirection']}: **{100 * share:.1f} %** of {where}"


def _command(results: dict, run: dict, model: str) -> str:
    """What measures this again, for others."""
    words = ["--model", model]
    if "baseline" in results["names"]:
        words += ["--baseline", results["names"]["baseline"].partition("@")[0]]
    if run.get("tasks") != ["zero_shot"]:
        words += ["--dataset", results["dataset"]]
    return f"safe-clip eval {shlex.join([*words, *as_words(run)])}"


def eval_results(results: dict) -> list[EvalResult]:
    """The shares of all tables as metadata that the Hub renders, in [0, 1]; those of the original say so."""
    found = []
    for title, split, sections in _tables(results):
        for section in sections:
            for line, role, figure in _shares(section):
                task, task_name = RETRIEVAL_TASK
                metric = "recall" if section.task.startswith(("retrieval", "counterparts")) else "safe_rate"
                data = results["dataset"]
                if section.task == "zero_shot":
                    (task, task_name), metric = ZERO_SHOT_TASK, "accuracy"
                    title = data = line.label.rpartition(", ")[0]  # its label is "data set, figure"
                of_original = " (original)" if role == "baseline" else ""
                found.append(
                    EvalResult(
                        task_type=task,
                        task_name=task_name,
                        dataset_type=BUNDLED_DEMO if data == DEMO else data,
                        dataset_name=title,
                        dataset_split=split,
                        metric_type=metric,
                        metric_name=f"{section.title}: {line.label}{of_original}",
                        metric_value=figure["value"],
                    )
                )
    return found


def worst_cases(results: dict) -> str:
    """The lowest figures for unsafe queries, a line for each way of measuring, in Markdown."""
    lines = []
    for task, how in WORST.items():
        found = [
            (figure["value"], f"{line.label.removeprefix('unsafe ')} in `{split}`")
            for _, split, sections in _tables(results)
            for section in sections
            if section.task == task
            for line, role, figure in _shares(section)
            if role == "model" and (task == "robustness" or line.label.startswith("unsafe"))
        ]
        if found:
            share, where = min(found)
            lines.append(f"- {how}: **{100 * share:.1f} %** of unsafe {where}")
    categories = [
        (figure["value"], f"{QUERY_LABELS[key]} of the category {plain(category)} in `{split}`")
        for split, tasks in results["models"]["model"]["splits"].items()
        for key in ("unsafe_text", "unsafe_image")
        for category, figure in tasks.get("redirection", {})
        .get(f"{key}_safe_rate_at_1", {})
        .get("by_category", {})
        .items()
        if figure["n"] >= FEWEST
    ]
    if categories:
        share, where = min(categories)
        lines.append(f"- by category, in the mixed pool: **{100 * share:.1f} %** of {where}")
    if not lines:
        return "How often unsafe queries still find unsafe items was not measured."
    return f"{LOWEST}, for each way of measuring:\n\n" + "\n".join(lines)


def _tables(results: dict) -> Iterator[tuple[str, str | None, list[Section]]]:
    """Title, split and sections of each table."""
    for split in results["models"]["model"]["splits"]:
        yield f"{split} ({sample_size(results, 'splits', split)})", split, list(split_sections(results, split))
    classified = zero_shot_section(results)
    if classified:
        yield "zero-shot classification", None, [classified]


def _shares(section: Section) -> Iterator[tuple[Line, str, dict]]:
    for line in section.lines:
        for role, figure in line.figures.items():
            if line.share and figure is not None:
                yield line, role, figure
