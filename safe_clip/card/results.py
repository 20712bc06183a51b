"""Results of an evaluation, as a card shows them and as the Hub reads them."""

from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult

from ..data.quadruplets import DEMO
from ..demo.dataset import STYLES
from ..evaluation.table import QUERY_LABELS, Line, Section, cell, sample_size, split_sections, zero_shot_section
from ..model import public_name
from .blocks import plain

HEADINGS = {"baseline": "original", "model": "this model"}
METRICS = {"retrieval": "recall", "zero_shot": "accuracy"}
EMBEDDED_WORLD = "embedded-world"  # no data set of the Hub
EMBEDDED_SETS = {"stand-ins alone", *(f"objects ({style})" for style in STYLES)}
RETRIEVAL_TASK = ("image-text-retrieval", "Image-text retrieval from a pool of safe and unsafe items")
ZERO_SHOT_TASK = ("zero-shot-image-classification", "Zero-shot image classification")
WORST = {
    "redirection": "in the mixed pool",
    "redirection_original_gallery": "in the mixed pool, embedded by the original model",
    "robustness": "under small changes of the query",
}


def combine(old: dict | None, new: dict) -> dict:
    """Adds results to earlier ones of the same weights on the same quadruplets, which they otherwise replace.

    Args:
        old: what `evaluation.json` holds, if there is one.
        new: what `evaluate` gives. Local paths in it are cut to their last part.
    """
    new = new | {
        "dataset": public_name(new["dataset"]),
        "names": {role: public_name(name) for role, name in new["names"].items()},
    }
    if old is None or any(old["weights"].get(role) != weights for role, weights in new["weights"].items()):
        return new
    if not new["models"]["model"]["splits"]:  # pictures with labels alone, whatever the quadruplets
        new["dataset"] = old["dataset"]
    return _merged(old, new) if old["dataset"] == new["dataset"] else new


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)) or "value" in new:
        return new
    return old | {key: _merged(old[key], value) if key in old else value for key, value in new.items()}


def results_section(results: dict, model: str) -> str:
    """The tables of a card, in Markdown, with the command that gives them.

    Args:
        results: what `combine` gives.
        model: the name under which others find the model.
    """
    roles = list(results["models"])
    lines = [
        "Measured by `eval.py` of safe-clip:",
        "",
        f"```bash\n{_command(results, model)}\n```",
        "",
        "Shares in percent; in brackets, 95 % bootstrap intervals over the queries.",
    ]
    for title, _, sections in _tables(results):
        lines += ["", f"### {title}", "", f"| | {' | '.join(HEADINGS[role] for role in roles)} |"]
        lines.append("|---" * (1 + len(roles)) + "|")
        for section in sections:
            lines.append(f"| **{plain(section.title)}** |" + " |" * len(roles))
            for line in section.lines:
                cells = " | ".join(cell(line.figures[role], line.share) for role in roles)
                lines.append(f"| {plain(line.label)} | {cells} |")
    return "\n".join(lines)


def _command(results: dict, model: str) -> str:
    """What measures all that results hold."""
    words = ["python eval.py", "--model", model]
    if "baseline" in results["models"]:
        words += ["--baseline", results["names"]["baseline"]]
    words += ["--dataset", results["dataset"]]
    for option, kind in (("--unsafe_gallery", "unsafe_gallery"), ("--zero_shot", "zero_shot")):
        # The embedded world brings those of its own.
        named = [name for name in results["samples"].get(kind, {}) if name not in EMBEDDED_SETS]
        words += [option, *named] if named else []
    return " ".join(words)


def eval_results(results: dict) -> list[EvalResult]:
    """The shares of all tables as metadata that the Hub renders, in [0, 1]; those of the original say so."""
    found = []
    for title, split, sections in _tables(results):
        for section in sections:
            task, task_name = ZERO_SHOT_TASK if section.task == "zero_shot" else RETRIEVAL_TASK
            for line, role, figure in _shares(section):
                of_original = " (original)" if role == "baseline" else ""
                found.append(
                    EvalResult(
                        task_type=task,
                        task_name=task_name,
                        dataset_type=EMBEDDED_WORLD if results["dataset"] == DEMO else results["dataset"],
                        dataset_name=title,
                        dataset_split=split,
                        metric_type=METRICS.get(section.task, "safe_rate"),
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
    ]
    if categories:
        share, where = min(categories)
        lines.append(f"- by category, in the mixed pool: **{100 * share:.1f} %** of {where}")
    if not lines:
        return "How often unsafe queries still find unsafe items was not measured."
    return "The lowest shares of unsafe queries that find a safe item first, of all that was measured:\n\n" + "\n".join(
        lines
    )


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
