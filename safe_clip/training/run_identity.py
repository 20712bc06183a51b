"""What a training run is of, by which its checkpoints are told from those of others."""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError

RUN_FILE = "safe_clip_run.json"  # of a checkpoint
OLD_FILE = "training_rows.json"  # of one that an earlier version made: the digest of its rows alone
# Settings of an adapter by their flags, of which a change can be named.
FLAGS = {"r": "--lora_r", "lora_alpha": "--lora_alpha", "lora_dropout": "--lora_dropout"}
# Of an adapter, what says nothing of what is trained.
OF_NO_MATTER = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "task_type")
# Settings that may be changed on going on, and that tell one run from another where nothing else does.
RECIPE = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm")
RECIPE += ("adam_beta1", "adam_beta2", "adam_epsilon")


def new_run() -> str:
    """An id for a run that begins."""
    return secrets.token_hex(8)  # which draws nothing from what training draws from


def facts_of(trainer: Any) -> dict[str, Any]:
    """What the run of a `SafeCLIPTrainer` is of, for `RUN_FILE`.

    Returns:
        `is`, without which a checkpoint is no part of this run: the original's weights, the objective, the adapter, the
        seed, how many quadruplets make a step; `recipe`, which may be changed on the way; `data`, a digest of the
        rows, or `None` without any.
    """
    args, objective = trainer.args, trainer.objective
    adapter = getattr(trainer.accelerator.unwrap_model(trainer.model), "active_peft_config", None)
    settings = {} if adapter is None else dict(adapter.to_dict())
    named = {flag: settings.pop(name) for name, flag in FLAGS.items() if name in settings}
    rest = {name: sorted(each) if isinstance(each, set) else each for name, each in settings.items()}
    return _plain(
        {
            "is": {
                "the original model": trainer.reference.weights,
                "--objective": args.objective,
                "--loss_weights": dict(objective.weights),
                "--objective_options": args.objective_options or {},
                "--frozen_gallery": args.frozen_gallery,
                "--logit_scale": round(float(objective.logit_scale), 6),
                "--full_finetuning": adapter is None,
                **named,
                "the adapter": {name: each for name, each in rest.items() if name not in OF_NO_MATTER},
                "--seed": args.seed,
                "--data_seed": args.data_seed,
                "--random_crop": args.random_crop,
                "quadruplets a step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            },
            "recipe": {f"--{name}": getattr(args, name) for name in RECIPE},
            "data": None if trainer.train_dataset is None else trainer.train_dataset.digest,
        }
    )


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(facts, sort_keys=True, default=str))


def read(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint is of, as far as it says."""
    for name in (RUN_FILE, OLD_FILE):
        try:
            found = json.loads((checkpoint / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found if name == RUN_FILE else {"data": found}
    return {}


def changes(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of a run is not what it was, besides its data, in words."""
    was, differences = then.get("is") or {}, []
    for name, each in now["is"].items():
        if name not in was or was[name] == each:
            continue
        if isinstance(each, dict) and isinstance(was[name], dict):
            parts = [part for part in {**was[name], **each} if was[name].get(part) != each.get(part)]
            differences += [f"{name}, {part}: {was[name].get(part)} then, {each.get(part)} now" for part in parts]
        elif name == "the original model":
            differences.append(f"{name} has other weights")
        else:
            differences.append(f"{name} {_shown(was[name])} then, {_shown(each)} now")
    if was and not was["--full_finetuning"] and now["is"]["--full_finetuning"]:
        differences = [each for each in differences if not each.startswith("the adapter")]
    return differences


def _shown(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool | None) else str(value)


def _changes_of_data(then: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    if not then or not now:
        return []
    differ = sorted(name for name in then.keys() & now if then[name] != now[name] and name != "rows")
    images = [name for name in differ if name.endswith("_image")]
    differences = [f"there were {then['rows']:,} rows and are {now['rows']:,}"] if then["rows"] != now["rows"] else []
    for names in ([name for name in differ if name not in images], images):
        differences += [f"{', '.join(names)} differ"] if names else []
    return differences


def check(checkpoint: Path, now: dict[str, Any]) -> None:
    """Raises `UserError` unless a checkpoint is of this run."""
    then = read(checkpoint)
    if differences := changes(then, now):
        raise UserError(
            f"{checkpoint} is of another run: {'; '.join(differences)}. Go on as it was then, or leave out "
            "--resume_from_checkpoint and choose another --output_dir."
        )
    if differences := _changes_of_data(then.get("data"), now["data"]):
        raise UserError(
            f"the training data are not those of {checkpoint}: {'; '.join(differences)}. Go on with the data of "
            "then, or leave out --resume_from_checkpoint and choose another --output_dir."
        )


def last(checkpoints: Sequence[Path], now: dict[str, Any], run: str | None, where: Path | str) -> Path:
    """The newest checkpoint of this run.

    Args:
        checkpoints: whole ones, the newest last.
        now: what this run is of.
        run: the id of the run that began last in the folder, if one did.
        where: the folder, for messages.

    Raises:
        UserError: there is none; those of other runs are told.
    """
    if not checkpoints:
        raise UserError(f"there is no checkpoint in {where}; leave out --resume_from_checkpoint to begin.")
    known = {checkpoint: read(checkpoint) for checkpoint in checkpoints}
    differences = {each: changes(facts, now) for each, facts in known.items()}
    for each, facts in known.items():
        if differ := _changes_of_data(facts.get("data"), now["data"]):
            differences[each].append(f"the training data are not those of then: {'; '.join(differ)}")
    fit = [checkpoint for checkpoint in checkpoints if not differences[checkpoint]]
    if of_run := [checkpoint for checkpoint in fit if run is not None and known[checkpoint].get("run") == run]:
        return of_run[-1]
    for checkpoint in list(fit):
        recipe = known[checkpoint].get("recipe") or {}
        differences[checkpoint] = [
            f"{name} {_shown(recipe[name])} then, {_shown(each)} now"
            for name, each in now["recipe"].items()
            if name in recipe and recipe[name] != each
        ]
    if fit := [checkpoint for checkpoint in fit if not differences[checkpoint]]:
        return fit[-1]
    newest = checkpoints[-1]
    raise UserError(
        f"there is no checkpoint of this run in {where}; of another: {', '.join(each.name for each in checkpoints)}. "
        f"{newest.name}: {'; '.join(differences[newest])}. Go on with what it was then, or leave out "
        "--resume_from_checkpoint to begin."
    )
