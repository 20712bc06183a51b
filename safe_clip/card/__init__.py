"""The card of a model: what it is, how it was made, what was measured, what it does not do."""

import json
from pathlib import Path

from datasets import DatasetDict
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from yaml import YAMLError

from ..errors import UserError
from ..trainer import SafeCLIPTrainer
from .blocks import read_blocks, replace_blocks
from .results import combine, eval_results, results_section, worst_cases
from .training import CURVES_FILE, training_facts

CARD_FILE = "README.md"
RESULTS_FILE = "evaluation.json"
ROOM = Path(__file__).parent
# At the top of the source tree; built packages have a copy here.
TEMPLATE = next(path for path in (ROOM / "model_card.md", ROOM.parents[1] / "model_card.md") if path.exists())


def write_model_card(trainer: SafeCLIPTrainer, rows: DatasetDict, dataset: str) -> Path:
    """Writes the card of a model that was trained and saved, from the template `model_card.md`.

    A card that is there already keeps its text outside the marks, and its licence.

    Args:
        trainer: after `train()` and `save_model()`.
        rows: what it was trained on, as from `load_quadruplets`.
        dataset: the name of that: `"demo"`, a Hub id or a folder.

    Returns:
        The card, `README.md` in the output directory.
    """
    folder = Path(trainer.args.output_dir)
    facts = training_facts(trainer, rows, dataset)
    model = trainer.hub_model_id or trainer.args.hub_model_id or folder.resolve().name
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        license=facts.base.licence.lower() if facts.base.licence else None,
        base_model=facts.base.page,
        base_model_relation="finetune" if facts.base.page else None,
        datasets=[facts.data.name] if facts.data.page else None,
        tags=["clip", "safe-clip", "safety"],
        model_name=model,
    )
    (folder / RESULTS_FILE).unlink(missing_ok=True)  # of other weights
    card = ModelCard.from_template(data, str(TEMPLATE), model=model, facts=facts, curves=CURVES_FILE)
    path = folder / CARD_FILE
    if path.exists():
        card = _renewed(_read(path), card)
    card.save(path)
    return path


def _renewed(old: ModelCard, new: ModelCard) -> ModelCard:
    """An earlier card with the new one's parts and facts."""
    licence, tags = old.data.get("license"), old.data.get("tags") or []
    old.data.eval_results = None
    old.data.__dict__.update(new.data.__dict__)
    old.data.license = licence or new.data.license
    old.data.tags = list(dict.fromkeys([*tags, *new.data.tags]))
    old.text = replace_blocks(old.text, read_blocks(new.text))
    return old


def check_card(model: str) -> None:
    """Raises `UserError` where nobody is logged in who could update the card of a Hub repository."""
    if not Path(model).is_dir():
        try:
            HfApi().whoami()
        except Exception as error:  # no login, an expired one, no connection: each its own type
            raise UserError(
                f"--update_card of {model} on the Hub wants a login that may write: run `hf auth login` or set "
                f"HF_TOKEN. ({str(error).strip().splitlines()[0]})"
            ) from error


def update_model_card(model: str, results: dict, revision: str | None = None) -> str:
    """Writes results into the card of a model, and as `evaluation.json` beside it; the rest of the card stays.

    Results of the same weights on the same data are added to those that are there.

    Args:
        model: a folder, or the id of a Hub repository, which gets one commit.
        results: what `evaluate` gives.
        revision: a branch of the Hub repository.

    Returns:
        Where the card is.

    Raises:
        UserError: the card cannot be read, or the Hub refuses the commit.
    """
    local = Path(model).is_dir()
    files = {name: _file(model, name, revision) for name in (CARD_FILE, RESULTS_FILE)}
    card = _read(files[CARD_FILE]) if files[CARD_FILE] else ModelCard(f"---\n---\n# {model.rsplit('/', 1)[-1]}\n")
    results = combine(json.loads(files[RESULTS_FILE].read_text()) if files[RESULTS_FILE] else None, results)
    name = card.data.get("model_name") or (Path(model).resolve().name if local else model)
    card.data.model_name = name
    card.data.eval_results = eval_results(results)
    card.text = replace_blocks(card.text, {"results": results_section(results, name), "worst": worst_cases(results)})
    written = {CARD_FILE: str(card), RESULTS_FILE: json.dumps(results, indent=2) + "\n"}
    if local:
        for name, text in written.items():
            Path(model, name).write_bytes(text.encode())
        return str(Path(model, CARD_FILE))
    operations = [CommitOperationAdd(name, text.encode()) for name, text in written.items()]
    try:
        commit = HfApi().create_commit(model, operations, commit_message="Evaluation results", revision=revision)
    except Exception as error:  # of the connection, of the Hub: each its own type
        raise UserError(
            f"the card of {model} could not be updated ({str(error).strip().splitlines()[0]}). What was measured is "
            "kept: log in with `hf auth login` as somebody who may write there, and run the same command again."
        ) from error
    return commit.commit_url


def _file(model: str, name: str, revision: str | None) -> Path | None:
    if Path(model).is_dir():
        return path if (path := Path(model, name)).exists() else None
    try:
        return Path(hf_hub_download(model, name, revision=revision))
    except EntryNotFoundError:
        return None


def _read(path: Path) -> ModelCard:
    try:
        return ModelCard.load(path)
    except (ValueError, YAMLError) as error:
        raise UserError(f"the metadata of the card {path} cannot be read ({error}); mend or remove it.") from error
