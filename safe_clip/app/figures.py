"""The report of `safe-clip eval`, if it is of the models that the page shows."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import first_line
from ..evaluation.verdict import results_verdict
from ..names import redact_paths


@dataclass(frozen=True)
class Figures:
    """What is known of a folder.

    Attributes:
        page: the report, where it is there and of these weights.
        said: what it says in a sentence, or why there is none.
    """

    page: Path | None
    said: str


def figures_of(folder: Path, weights: dict[str, str]) -> Figures:
    """The report in a folder.

    Args:
        folder: what `safe-clip eval` wrote.
        weights: digests of the weights, `"model"` and `"baseline"`.
    """
    results, page = folder / "results.json", folder / "report.html"
    name = redact_paths(str(folder))
    if not results.is_file() or not page.is_file():
        return Figures(None, f"There is no report in {name}/ yet.")
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
        measured, names, dataset = found["weights"], found["names"], found["dataset"]
        verdict = results_verdict(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Figures(None, f"The results in {name}/ cannot be read ({type(error).__name__}: {first_line(error)}).")
    if measured != weights:
        others = " and ".join(redact_paths(each) for each in names.values())
        return Figures(None, f"The report in {name}/ is of other weights ({others}), and is not shown.")
    said = f"{verdict.sentence} " if verdict else ""
    return Figures(page, f"{said}Measured on {redact_paths(dataset)}.")
