"""Makes a CLIP safe.

  safe-clip train                                the bundled demo, minutes on two CPU cores
  safe-clip train --model openai/clip-vit-large-patch14 --dataset you/quadruplets --push_to_hub
  safe-clip train paper --dataset you/quadruplets
  safe-clip train --accelerate_config ddp --num_processes 4 --dataset you/quadruplets

Every setting is a flag. A YAML file given first sets any of them, or one of the recipes that come with the
package (demo, paper, safer_clip, shield_clip); flags after it win.
The output directory is a plain model, such as a CLIPModel, that stock transformers loads.
"""

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import safe_clip

from ..config import RECIPES, as_words, changed, parse_arguments, split_config
from ..data.arguments import LIST_FILE, DataArguments
from ..errors import UserError, first_line
from ..outputs import OutputFolder
from ..ranges import DROPPED, POSITIVE, SIZE, Range, check_ranges
from ..stopping import handled
from ..terminal import command_line, in_colour, phase, quiet_libraries
from .help import Help, settings_of, training_settings
from .launch import GROUP, LAUNCH, launch

DEMO_CONFIG = RECIPES / "demo.yaml"
USUAL_STEPS = 500  # of that recipe
GROUPS = {
    "What is trained": "model model_revision full_finetuning",
    "Data": "dataset dataset_config column_mapping safe_images unsafe_images missing_images caption_lists on_bad_row "
    "max_bad_fraction streaming shuffle_buffer sides_are_right random_crop eval_splits",
    "Objective": "objective objective_options loss_weights hidden_state_terms frozen_gallery logit_scale strength",
    "LoRA adapters": "lora_r lora_alpha lora_dropout",
    "Steps and learning rate": "num_train_epochs max_steps per_device_train_batch_size per_device_eval_batch_size "
    "gradient_accumulation_steps contrastive_batch_size learning_rate lr_scheduler_type warmup_steps weight_decay "
    "max_grad_norm early_stopping_patience seed",
    "Speed": "bf16 use_cpu cache_images reference_cache dataloader_num_workers dataloader_persistent_workers",
    GROUP: " ".join(LAUNCH),
    "Saving, logging and publishing": "output_dir overwrite_output_dir resume_from_checkpoint save_strategy save_steps "
    "save_total_limit logging_steps logging_nan_inf_filter remove_unused_columns report_to disable_tqdm push_to_hub "
    "hub_model_id hub_private_repo",
}

# The Trainer's settings among these, in our words.
SAID = {
    "max_steps": "Optimizer steps, in place of --num_train_epochs; -1 for none. --streaming requires it.",
    "gradient_accumulation_steps": "Batches whose gradients are summed for one optimizer step.",
    "weight_decay": "Weight decay of the optimizer.",
    "seed": "The random seed.",
    "use_cpu": "Train on the CPU even where there is a GPU.",
    "resume_from_checkpoint": "Go on from a checkpoint: its folder, or 'last' for the last one in --output_dir.",
    "save_strategy": "When checkpoints are saved: no, steps, epoch or best.",
    "save_steps": "Optimizer steps between two checkpoints; below 1, a share of all steps.",
    "save_total_limit": "How many checkpoints are kept; the oldest are deleted first.",
    "report_to": "Where figures are logged: none, all, or one of tensorboard, wandb, trackio and others.",
    "disable_tqdm": "Show no progress bars.",
    "push_to_hub": "Publish the model with its card on the Hub.",
    "hub_model_id": "The repository on the Hub, as you/safe-clip. By default your name and that of --output_dir.",
    "hub_private_repo": "Make that repository a private one.",
}


@dataclass
class ScriptArguments(DataArguments):
    """What is trained, and on what."""

    model: str = field(
        default="demo",
        metadata={
            "help": "The CLIP, MetaCLIP 2 or SigLIP to make safe: a Hub id, a folder, or a bundled one, 'demo' or "
            "'demo-siglip'. PIPELINE:text_encoder is that of a diffusers pipeline, which captions alone train."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    eval_splits: list[str] | None = field(
        default=None,
        metadata={"help": "The splits that are measured before and after training. By default all but train."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "With --streaming: how many rows are held, to draw the next one from."}
    )
    full_finetuning: bool = field(
        default=False,
        metadata={"help": "Train all weights instead of LoRA adapters."},
    )
    sides_are_right: bool = field(default=False, init=False)  # a setting of training
    lora_r: int = field(default=16, metadata={"help": "The rank of the adapters."})
    lora_alpha: float = field(default=32, metadata={"help": "What adapters add is scaled by lora_alpha / lora_r."})
    lora_dropout: float = field(
        default=0.0, metadata={"help": "The share of adapter inputs that is dropped in training."}
    )

    RANGES: ClassVar[dict[str, Range]] = {
        "shuffle_buffer": SIZE,
        "lora_r": Range(1, 65536, whole=True),
        "lora_alpha": POSITIVE,
        "lora_dropout": DROPPED,
    }

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, self.RANGES)

    @property
    def further(self) -> dict[str, Any]:
        """What a card should list besides the model, the data and the trainer's own settings."""
        elsewhere = ("model", "dataset", "lora_r", "lora_alpha", "lora_dropout")
        return {name: value for name, value in changed(self).items() if name not in elsewhere}


def uses_demo(flags: list[str]) -> bool:
    """Whether flags name neither a model nor a data set, so that the bundled ones are meant."""
    return not any(flag.split("=")[0] in ("--model", "--dataset") for flag in flags)


def helper() -> Help:
    """What `--help` says: our own settings by groups, then the Trainer's."""
    own, trainers = training_settings()
    settings = settings_of(ScriptArguments) | own | LAUNCH
    if trainers:
        trainers |= {name: replace(trainers[name], help=said) for name, said in SAID.items() if name in trainers}
    recipes = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    return Help("train", __doc__, GROUPS, settings, trainers, "Of transformers' Trainer", recipes=recipes)


def main(argv: list[str]) -> None:
    config, flags = split_config(argv, recipes=True)
    helper().answer(flags)
    launch("train", argv)
    if config is None and uses_demo(flags):
        print("No --model or --dataset given: training the bundled demo model on the bundled emoji scenes.")
        config = DEMO_CONFIG
    # Slow to import, and the line above should be the first thing seen.
    from ..card import check_card
    from ..models.load import resolve_model

    script, args = parse_arguments([ScriptArguments, safe_clip.SafeCLIPTrainingArguments], flags, config)
    script.sides_are_right = args.sides_are_right
    print(f"Fine-tuning {script.model} on {script.dataset}; settings from {config or 'flags'}.", flush=True)
    output = OutputFolder(args.output_dir)
    output.check(args.overwrite_output_dir, [resolve_model(script.model), script.dataset])
    if Path(args.output_dir).is_dir():
        check_card(args.output_dir)
    with output.lock() if args.process_index == 0 else contextlib.nullcontext():
        if args.process_index == 0:
            output.claim()
            output.record(LIST_FILE, editable=True)
        make_safe(script, args, output)


def make_safe(script: ScriptArguments, args: "safe_clip.SafeCLIPTrainingArguments", output: OutputFolder) -> None:
    """Trains, measures before and after, writes the card, and publishes where that is asked for."""
    from ..data.plain import plain_rows
    from ..data.rows import QuadrupletRows
    from ..evaluation.quadruplets import count_items
    from ..evaluation.summary import compute_metrics, embed_rows, summary_figures
    from ..evaluation.unseen import unseen
    from ..evaluation.verdict import training_figures
    from ..training.interruption import StopAfterStep
    from ..training.plan import check_plan

    quiet_libraries()
    rows, splits = load_rows(script, args)
    rows = rows if script.streaming else QuadrupletRows(rows)
    check_plan(args, rows, splits.get("validation"))
    measured = script.eval_splits or [split for split in splits if split != "train"] or ["train"]
    if args.process_index == 0 and not script.streaming:
        tell_seen_rows(splits, measured)
    model = safe_clip.load_clip(script.model, script.model_revision)
    processor = safe_clip.load_processor(script.model, script.model_revision)
    lora = safe_clip.lora_config(script.lora_r, script.lora_alpha, script.lora_dropout, model)
    trainer = safe_clip.SafeCLIPTrainer(
        model,
        args,
        train_dataset=rows,
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        peft_config=None if script.full_finetuning else lora,
        # Of the model's own embeddings, which make no gallery there.
        compute_metrics=None if args.frozen_gallery else compute_metrics,
    )
    trainer.card_facts = {"rows": splits, "dataset": script.dataset, "settings": script.further}
    if trainer.is_world_process_zero() and not script.streaming:
        print(trainer.train_dataset.layout.summary(trainer.term_rows), flush=True)

    trainer.run.checkpoint(args.resume_from_checkpoint)  # which is told before anything is measured
    trainer.check_sides()

    def items(model: Any, when: str) -> dict[str, Any]:
        count = sum(count_items(plain_rows(splits[split])) for split in measured)
        quiet = args.disable_tqdm or not trainer.is_world_process_zero()
        with phase(f"Measuring {when} training", count, quiet):
            return {
                split: embed_rows(model, processor, splits[split], desc=f"{split}, {when} training")
                for split in measured
            }

    found = items(trainer.model, "before")  # the original's, so far
    before = {split: summary_figures(each) for split, each in found.items()}
    pools = found if args.frozen_gallery else {}
    del found
    stop = StopAfterStep(trainer.accelerator)
    trainer.add_callback(stop)
    with handled(stop.handle):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    stop.check(trainer.state)
    trainer.save_model()
    if trainer.is_world_process_zero():
        # Where the model lies in shards, one process has no more of it than what was saved.
        trained = safe_clip.load_clip(args.output_dir) if trainer.is_sharded else trainer.model
        after = {split: summary_figures(each, pools.get(split)) for split, each in items(trained, "after").items()}
        results = {"before": before, "after": after}
        of = {"weights": output.manifest["weights"]} | ({"frozen_gallery": True} if args.frozen_gallery else {})
        output.write("results.json", json.dumps(of | results, indent=2))
        seen = None if script.streaming else splits["train"]
        found = training_figures(
            before,
            results["after"],
            {split: len(splits[split]) for split in measured},
            unseen(splits, seen),
            args.frozen_gallery,
        )
        trainer.card_facts["figures"] = found
        print(f"\n{ending(found, output.path, script, trainer.state.global_step)}", flush=True)
    trainer.create_model_card()
    if args.push_to_hub:
        if trainer.is_world_process_zero():
            measure(script, args.output_dir, splits, args.frozen_gallery)
        pushed = trainer.push_to_hub()
        if pushed is not None:
            print(f"It is at {pushed.repo_url}.")


def tell_seen_rows(splits: Mapping[str, Any], measured: list[str]) -> None:
    """Warns of splits whose rows are trained on too: their figures are better than those of other data."""
    from ..evaluation.unseen import seen_rows

    for split in measured:
        if split != "train" and (count := seen_rows(splits[split], splits["train"])):
            print(
                f"warning: {count:,} of the {len(splits[split]):,} rows of '{split}' have the captions of a row of "
                "'train'. What the model was trained on is not what it is to be measured by: remove them from one of "
                "the two.",
                file=sys.stderr,
            )


def ending(splits: list[Any], folder: Path, script: ScriptArguments, steps: int) -> str:
    """What a training ends with: the verdict, the table, and the command to go on with."""
    from ..evaluation.table import before_after_table, verdict_text
    from ..evaluation.verdict import held_out_alone, verdict
    from ..models.pipelines import split_name

    colour, said = in_colour(), verdict(splits)
    if steps < USUAL_STEPS and said.outcome != "safer":
        few = f"It trained for {steps} step{'s' if steps > 1 else ''}; the bundled demo takes {USUAL_STEPS}."
        said = replace(said, notes=(*said.notes, f"{few} Train longer with --max_steps or --num_train_epochs."))
    demo = (str(folder), script.model, script.dataset) == ("safe-clip", "demo", "demo")
    words = ["--model", str(folder), "--baseline", script.model, "--dataset", script.dataset]
    words += as_words(({"baseline_revision": script.model_revision} if script.model_revision else {}) | script.sources)
    if script.eval_splits is None and held_out_alone(splits):
        words += ["--splits", "validation"]  # held out of the training, which else would be what is measured
    drawing, part = "", split_name(script.model)
    if part:
        drawing = f"It goes back into {part[0]} as its {part[1]}: {folder}/README.md says how.\n\n"
    elif not any(name.endswith("image") or name.startswith("retrieval") for each in splits for name in each.after):
        command = command_line("generate", "text_to_image", *words, "--generator", "GENERATOR")
        drawing = (
            f"This draws with it, by a pipeline such as stable-diffusion-v1-5/stable-diffusion-v1-5:\n\n  {command}\n\n"
        )
    return (
        f"{verdict_text(said, colour)}\n\n{before_after_table(splits, colour)}\n\n{drawing}"
        f"The model is in {folder}. This measures it by all protocols, and makes a page with images:\n\n"
        f"  {command_line('eval', *([] if demo else words))}"
    )


def load_rows(script: ScriptArguments, args: "safe_clip.SafeCLIPTrainingArguments") -> tuple[Any, Mapping[str, Any]]:
    """What is trained on, and the splits, each of which can be measured: of a stream, its first rows."""
    from ..data.bad_rows import leave_out_bad_rows
    from ..data.quadruplets import STREAMED_ROWS, first_rows, hold_out_validation
    from ..data.splits import known_splits, meant
    from ..data.streams import QuadrupletStream, row_keys

    splits = script.load(hold_out=False)
    script.eval_splits = known_splits(script.eval_splits, splits)
    for split in ["train", *(script.eval_splits or [])]:
        if split not in splits and split != "validation":
            other = next((each for each in splits if meant(each) is None), None)
            cure = (
                f" Name what is trained on: --dataset {script.dataset}:{other}." if split == "train" and other else ""
            )
            raise UserError(f"--dataset {script.dataset} has no split '{split}', only {', '.join(splits)}.{cure}")
    list_file = Path(args.output_dir, LIST_FILE)
    list_file.unlink(missing_ok=True)  # of an earlier run
    rows = None
    if script.streaming:
        skip = {} if script.skippable is None else {"bad_rows": list_file, "max_bad_fraction": script.skippable}
        rows = QuadrupletStream(splits["train"], args.seed, script.shuffle_buffer, **skip)
        splits["train"] = first_rows(splits["train"], STREAMED_ROWS)
    if script.skippable is not None:
        wanted = script.eval_splits or [split for split in splits if split != "train"] or ["train"]
        for split in dict.fromkeys([*([] if script.streaming else ["train"]), *wanted]):
            if split in splits:
                left_out, whole = [], splits[split]
                splits[split] = leave_out_bad_rows(
                    whole,
                    f"split '{split}'",
                    Path(args.output_dir),
                    script.skippable,
                    args.dataloader_num_workers,
                    progress=not args.disable_tqdm,
                    left_out=left_out,
                )
                if split == "train" and rows is not None:
                    rows.listed = row_keys(whole.select(left_out))
    if not script.streaming:
        splits = hold_out_validation(splits)
    if "validation" in (script.eval_splits or []) and "validation" not in splits:
        raise UserError(f"--dataset {script.dataset} has no split 'validation', and a stream holds nothing out.")
    return splits["train"] if rows is None else rows, splits


def measure(script: ScriptArguments, folder: str, splits: Mapping[str, Any], frozen_gallery: bool = False) -> None:
    """Measures what was saved by all protocols, for its card. A failed evaluation does not block the push."""
    from ..card import check_measured, update_model_card
    from ..evaluation.data import Sample, choose_splits, load_evaluation_data
    from ..evaluation.run import Subject, evaluate

    print("Measuring it for the card.", flush=True)
    chosen = choose_splits(splits, script.eval_splits, script.dataset)
    settings = {"splits": chosen} | script.sources
    settings |= {"baseline_revision": script.model_revision} if script.model_revision else {}
    settings |= {"frozen_gallery": True} if frozen_gallery else {}
    facts = {"settings": settings, "dataset": script.dataset}
    try:
        data = load_evaluation_data(script, chosen)
        data.splits = {split: Sample(splits[split], sample.of) for split, sample in data.splits.items()}
        subjects = Subject(folder), Subject(script.model, script.model_revision)
        results = evaluate(*subjects, data, facts=facts, frozen_gallery=frozen_gallery)[0]
        check_measured(folder, results)
        update_model_card(folder, results)
    except Exception as error:  # of the network, of the device: each its own type, and training is not to be lost
        print(f"warning: it was not measured ({first_line(error)}). Its card says how to do so later.", file=sys.stderr)
