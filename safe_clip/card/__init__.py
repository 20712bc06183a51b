"""The card of a model: what it is, how it was made, what was measured, what it does not do."""

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from transformers import Trainer
from yaml import YAMLError

from ..card_text import others, read_blocks, replace_blocks
from ..config import as_words
from ..data.arguments import SOURCES
from ..errors import UserError, first_line, hub_trouble
from ..evaluation.verdict import SplitFigures, held_out_alone
from ..models.pipelines import split_name
from ..names import redact_paths
from ..outputs import OutputFolder
from .results import combine, eval_results, results_section, training_section, training_worst_case, worst_cases
from .training import CURVES_FILE, training_facts

CARD_FILE = "README.md"
RESULTS_FILE = "evaluation.json"
ROOM = Path(__file__).parent
# At the top of the source tree; built packages have a copy here.
TEMPLATE = next(path for path in (ROOM / "model_card.md", ROOM.parents[1] / "model_card.md") if path.exists())


def write_model_card(
    trainer: Trainer,
    rows: Mapping[str, Dataset] | None = None,
    dataset: str | None = None,
    settings: dict[str, Any] | None = None,
    figures: Sequence[SplitFigures] | None = None,
    **metadata: Any,
) -> Path:
    """Writes the card of a model that was trained and saved, from the template `model_card.md`.

    A card that is there already keeps its text outside the marks. Figures are shown where they are of the weights that
    are in the output directory.

    Args:
        trainer: a `SafeCLIPTrainer`, after `train()` and `save_model()`. All of its processes may call this; the main
            one writes.
        rows: what it was trained on by split, as from `load_quadruplets`; by default the trainer's own data sets.
        dataset: the name of that: `"demo"`, a Hub id or a folder; without one the card says that it has no name.
        settings: further ones to list than the trainer's.
        figures: what was measured before and after the training, of the weights that are in the output directory; shown
            until all protocols have measured them.
        metadata: `license`, `language` and `tags`, as of `huggingface_hub.ModelCardData`; tags are added to those of
            each card.

    Returns:
        The card, `README.md` in the output directory.

    Raises:
        UserError: the metadata of the card that is there cannot be read.
    """
    folder = Path(cast(str, trainer.args.output_dir))
    path = folder / CARD_FILE
    if not trainer.is_world_process_zero():
        return path
    facts = training_facts(trainer, rows, dataset, settings)
    # pyrefly: ignore [missing-attribute]: a SafeCLIPTrainer, which is made in a room after this one
    family = trainer.reference.family
    model = trainer.hub_model_id or trainer.args.hub_model_id or folder.resolve().name
    # pyrefly: ignore [missing-attribute]: likewise
    kind = family.class_of(trainer.reference.config).__name__
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification" if family.image else "feature-extraction",
        license=facts.base.licence.lower() if facts.base.licence else None,
        base_model=facts.base.page,
        base_model_relation="finetune" if facts.base.page else None,
        datasets=[facts.data.name] if facts.data.page else None,
        tags=[family.config.model_type, "safe-clip", "safety", *metadata.pop("tags", ())],
        model_name=model,
    )
    shown = {"model": model, "facts": facts, "curves": CURVES_FILE, "family": family, "kind": kind}
    shown["pipeline"] = split_name(facts.base.name) or ("PIPELINE", "text_encoder")
    card = ModelCard.from_template(data, str(TEMPLATE), **shown)
    if path.exists():
        card = _renewed(_read(path), card)
    card.data.__dict__.update(metadata)
    output = OutputFolder(folder)
    weights = output.manifest["weights"]
    earlier = _results(folder / RESULTS_FILE)
    if earlier is not None and earlier.get("weights", {}).get("model") == weights is not None:
        _show(card, earlier, model)  # measured already
    else:
        if output.is_ours(RESULTS_FILE):
            (folder / RESULTS_FILE).unlink()  # of other weights
        if figures:
            words = ["--model", model, "--baseline", facts.base.name, "--dataset", facts.data.name]
            sources = {name: value for name, value in (settings or {}).items() if name in SOURCES}
            if "eval_splits" not in (settings or {}) and held_out_alone(figures):
                sources["splits"] = ["validation"]  # held out of the training
            words += [*as_words(redact_paths(sources)), "--update_card"]
            parts = {
                "results": training_section(figures, f"safe-clip eval {shlex.join(words)}"),
                "worst": training_worst_case(figures),
            }
            card.text = replace_blocks(card.text, {name: text for name, text in parts.items() if text})
    output.write(CARD_FILE, str(card), editable=True)
    output.record(*(name for name in (CURVES_FILE,) if (folder / name).exists()))
    output.update(card=weights)
    return path


def _results(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _show(card: ModelCard, results: dict, name: str) -> None:
    """Puts figures into a card."""
    card.data["eval_results"] = [*(others(card) or []), *eval_results(results)]
    card.text = replace_blocks(card.text, {"results": results_section(results, name), "worst": worst_cases(results)})


def _renewed(old: ModelCard, new: ModelCard) -> ModelCard:
    """An earlier card with the new one's parts and facts; what a person added to its metadata stays."""
    was, now = old.data.__dict__, new.data.__dict__
    licence = was.get("license") if now["base_model"] in (None, was.get("base_model")) else None
    tags = [*(was.get("tags") or []), *now["tags"]]
    was.update({key: value for key, value in now.items() if value is not None})
    was.update(license=licence or now["license"], tags=list(dict.fromkeys(tags)))
    old.data["eval_results"] = others(old)
    old.text = replace_blocks(old.text, read_blocks(new.text))
    return old


def check_card(model: str) -> None:
    """Raises `UserError` where a card could not be updated: better known before the work than after.

    Args:
        model: a folder, whose card must be readable if there is one; or a Hub id, which requires a login.
    """
    if Path(model).is_dir():
        if (path := Path(model, CARD_FILE)).exists():
            _read(path)
        return
    try:
        HfApi().whoami()
    except Exception as error:  # no login, an expired one, no connection: each its own type
        raise UserError(
            f"--update_card of {model} on the Hub requires a login that may write: run `hf auth login` or set "
            f"HF_TOKEN. ({first_line(error)})"
        ) from error


def check_measured(model: str, results: dict) -> None:
    """Raises `UserError` where a folder got other weights since it was measured."""
    there = OutputFolder(model).manifest["weights"] if Path(model).is_dir() else None
    if there not in (None, results["weights"]["model"]):
        raise UserError(f"{model} has other weights by now than those that were measured. Run the same command again.")


def update_model_card(model: str, results: dict, revision: str | None = None) -> str:
    """Writes results into the card of a model, and as `evaluation.json` beside it; the rest of the card stays.

    They are added to earlier ones as `combine` does.

    Args:
        model: a folder, or the id of a Hub repository, which gets one commit.
        results: what `evaluate` gives.
        revision: a branch of the Hub repository.

    Returns:
        Where the card is.

    Raises:
        UserError: the card cannot be read, or the Hub refuses.
    """
    if Path(model).is_dir():
        output = OutputFolder(model, "--model")
        with output.lock():
            output.adopt()
            files = {name: path for name in (CARD_FILE, RESULTS_FILE) if (path := Path(model, name)).exists()}
            for name, text in _updated(Path(model).resolve().name, files, results).items():
                output.write(name, text, editable=name == CARD_FILE)
        return str(Path(model, CARD_FILE))
    try:
        # What is read is what the commit builds on: neither an older copy from the cache, nor one that somebody
        # changes meanwhile.
        sha = HfApi().model_info(model, revision=revision).sha
        files = {}
        for name in (CARD_FILE, RESULTS_FILE):
            with contextlib.suppress(RemoteEntryNotFoundError):
                files[name] = Path(hf_hub_download(model, name, revision=sha))
        operations = [CommitOperationAdd(name, text.encode()) for name, text in _updated(model, files, results).items()]
        message = "Evaluation results"
        commit = HfApi().create_commit(model, operations, commit_message=message, revision=revision, parent_commit=sha)
    except UserError:
        raise
    except Exception as error:  # of the connection, of the Hub: each its own type
        cure = hub_trouble(error) or "Log in with `hf auth login` as somebody who may write there."
        raise UserError(
            f"the card of {model} could not be updated ({first_line(error)}): {cure} What was measured is kept; run "
            "the same command again."
        ) from error
    return commit.commit_url


def _updated(model: str, files: dict[str, Path], results: dict) -> dict[str, str]:
    """The new texts of the card and of the results."""
    card = _read(files[CARD_FILE]) if CARD_FILE in files else ModelCard(f"---\n---\n# {model.rpartition('/')[2]}\n")
    results = combine(_results(files[RESULTS_FILE]) if RESULTS_FILE in files else None, results)
    name = card.data["model_name"] = card.data.get("model_name") or model
    _show(card, results, name)
    return {CARD_FILE: str(card), RESULTS_FILE: json.dumps(results, indent=2) + "\n"}


def _read(path: Path) -> ModelCard:
    try:
        return ModelCard.load(path)
    except (ValueError, YAMLError) as error:
        raise UserError(f"the metadata of the card {path} cannot be read ({error}); mend or remove it.") from error
