"""What a training step costs, beside the public script's way of doing it and beside a bare loop.

    python benchmarks/step.py
    python benchmarks/step.py --shape ViT-L/14 --batch_size 4
    python benchmarks/step.py --shape ViT-L/14 --batch_size 128 --dtype bfloat16    (on a GPU)
    python benchmarks/step.py --shape ViT-L/14 --batch_size 128 --ways paper default --contrastive 512 --json step.json

All ways train the same CLIP of random weights with the same LoRA and the paper's objective on the same rows, whose
captions have 13 to 20 tokens, in turn, round after round; times are medians over steps, the first of each round left
out.

- script: what the published training script does: captions padded to 77 tokens, float32, a frozen copy that embeds the
  safe items at every step, the two captions and the two images of a row each in a forward of their own, plain Adam.
  It is given its batches ready.
- trainer, float32: `SafeCLIPTrainer` in the script's precision, with all else at its defaults.
- trainer, defaults: with bfloat16 where the device is faster in it.
- bare loop: a loop in PyTorch with the arithmetic of the trainer's defaults, loading of batches included, and nothing
  else.

With `--states`, the default objective too, whose hidden-state terms require captions of full length and a forward of
the original at every step, and the same without these terms.

With `--ways`, what is named alone, each way by itself: what it takes of a step, quadruplets a second, the most memory
that PyTorch held, and, on a GPU, how often a step waits for the device and in which lines (of `--syncs` further steps,
which are not timed). A way that memory does not suffice for is tried again with half as many quadruplets.

Model FLOP of a step are those of its matrix products and attention, counted by PyTorch (`FlopCounterMode`), set against
the fastest product of two square matrices that this device does in this precision.
"""

import argparse
import copy
import gc
import json
import statistics
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from peft import PeftModel, get_peft_model
from shapes import SHAPES, build_clip, build_processor, make_rows
from sweep import NO_STATES
from torch.nn.functional import normalize
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPModel, CLIPProcessor, TrainerCallback

from safe_clip import SafeCLIPLoss, SafeCLIPTrainer, SafeCLIPTrainingArguments, lora_config
from safe_clip.data.collator import model_inputs
from safe_clip.items import Quadruplets
from safe_clip.models.patches import cached_casts
from safe_clip.objectives.base import BatchTargets

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
RATE = 1e-3
WAYS = {  # of --ways: what is set of the trainer, beside the precision
    "script": None,
    "paper": {"objective": "safe_clip"},
    "paper, float32": {"objective": "safe_clip", "bf16": False},
    "paper, compiled": {"objective": "safe_clip", "torch_compile": True},
    "default": {"objective": "safe_ranking"},
    "default, no states": {"objective": "safe_ranking", "loss_weights": NO_STATES},
    "default, compiled": {"objective": "safe_ranking", "torch_compile": True},
}
MATRIX = {"cpu": 4096}  # side of the product whose speed is the peak; on a GPU 8192


def now() -> float:
    """Seconds, after all that was asked of the device is done."""
    if DEVICE.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def script_way(original: CLIPModel, processor: CLIPProcessor, rows, steps: int) -> list[float]:
    """Seconds of each step as the published script does it, with the frozen copy that it means to have."""
    frozen = copy.deepcopy(original).to(DEVICE).eval()
    adapted = get_peft_model(copy.deepcopy(original), lora_config()).to(DEVICE).train()
    optimizer = torch.optim.Adam([weight for weight in adapted.parameters() if weight.requires_grad], RATE)
    objective = SafeCLIPLoss()

    def inputs(side: str) -> tuple[dict, torch.Tensor]:
        whole = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
        tokens = processor.tokenizer(list(rows[f"{side}_caption"]), **whole).to(DEVICE)
        pixels = processor.image_processor(list(rows[f"{side}_image"]), return_tensors="pt")["pixel_values"]
        return dict(tokens), pixels.to(DEVICE)

    safe, unsafe = inputs("safe"), inputs("unsafe")

    def text(model: CLIPModel, tokens: dict) -> torch.Tensor:
        return normalize(model.get_text_features(**tokens).pooler_output, dim=-1)

    def image(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
        return normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    trained, seconds = adapted.get_base_model(), []
    for _ in range(steps):
        start = now()
        with torch.no_grad():
            reference = text(frozen, safe[0]), image(frozen, safe[1])
        embeds = text(trained, safe[0]), text(trained, unsafe[0]), image(trained, safe[1]), image(trained, unsafe[1])
        loss, _ = objective(*embeds, reference=reference)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(now() - start)
    return seconds


class Syncs(TrainerCallback):
    """Counts where training waits for a GPU, from the end of the first step to the end of the last."""

    def __init__(self):
        self.lines, self.steps, self.shown = Counter(), -1, warnings.showwarning

    def note(self, message, category, filename, lineno, file=None, line=None):
        if "synchroniz" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack()[:-1] if not frame.filename.endswith("warnings.py")]
        ours = [frame for frame in frames if "/safe_clip/" in frame.filename]
        places = ours[-1:] + [frame for frame in frames[-1:] if frame not in ours[-1:]]
        short = ["/".join(Path(frame.filename).parts[-3:]) + f":{frame.lineno}" for frame in places]
        self.lines[" > ".join(short) or f"{filename}:{lineno}"] += 1

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if self.steps == 0 and DEVICE.type == "cuda":
            self.shown, warnings.showwarning = warnings.showwarning, self.note
            warnings.filterwarnings("always", message=".*synchroniz.*")
            torch.cuda.set_sync_debug_mode("warn")
        if state.global_step >= state.max_steps and DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = self.shown


class Clock(TrainerCallback):
    """Times from the end of a step to the end of the next one."""

    def __init__(self):
        self.seconds, self.last = [], None

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = now()

    def on_step_end(self, args, state, control, **kwargs):
        end = now()
        self.seconds.append(end - self.last)
        self.last = end


def trainer_way(
    original: CLIPModel, processor: CLIPProcessor, rows, steps: int, batch_size: int, callback=None, **settings
) -> tuple[list[float], SafeCLIPTrainer]:
    """Seconds of each step of the trainer."""
    clock = callback or Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = SafeCLIPTrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            max_steps=steps,
            learning_rate=RATE,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **({"objective": "safe_clip"} | settings),
        )
        trainer = SafeCLIPTrainer(copy.deepcopy(original), args, rows, processing_class=processor, callbacks=[clock])
        trainer.log = lambda *args, **kwargs: None
        trainer.train()
    return getattr(clock, "seconds", []), trainer


def bare_way(trainer: SafeCLIPTrainer, steps: int) -> tuple[list[float], int]:
    """Seconds of each step of a loop with the arithmetic of a trainer, and the FLOP of one."""
    model: PeftModel = trainer.accelerator.unwrap_model(trainer.model)
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], RATE, fused=True)
    objective, table = SafeCLIPLoss(), trainer.targets.table
    lower = torch.bfloat16 if trainer.args.bf16 else None

    def loss_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        items = table.items(batch["row"].cpu().numpy(), batch["layout"], DEVICE)
        with torch.autocast(DEVICE.type, lower, enabled=lower is not None):
            output = model(**model_inputs(batch))
        embeds = Quadruplets.of_sides(output.text_embeds, output.image_embeds, batch["layout"])
        return objective(embeds, BatchTargets(items))[0]

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        workers = trainer.args.dataloader_num_workers
        while True:
            loader = DataLoader(
                trainer.train_dataset,
                trainer.args.per_device_train_batch_size,
                shuffle=True,
                collate_fn=trainer.data_collator,
                num_workers=workers,
                pin_memory=DEVICE.type != "cpu",
            )
            for batch in loader:
                yield send_to_device(batch, DEVICE, non_blocking=True)

    seconds, stream = [], batches()
    with cached_casts(model):
        for _ in range(steps):
            start = now()
            loss = loss_of(next(stream))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(now() - start)
        with FlopCounterMode(display=False) as counter:
            loss_of(next(stream)).backward()
    return seconds, counter.get_total_flops()


def peak(dtype: torch.dtype) -> float:
    """FLOP a second of the fastest of some products of two square matrices."""
    side = MATRIX.get(DEVICE.type, 8192)
    a, b = torch.randn(2, side, side, device=DEVICE, dtype=dtype)
    seconds = []
    for _ in range(10):
        start = now()
        a @ b
        seconds.append(now() - start)
    return 2 * side**3 / min(seconds)


def held() -> float | None:
    """The most memory of a GPU that PyTorch held since the last `forget`, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else None


def forget() -> None:
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_flop(trainer: SafeCLIPTrainer) -> int:
    """FLOP of the trained model's forward and backward over one batch."""
    model = trainer.accelerator.unwrap_model(trainer.model).train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    lower = torch.bfloat16 if trainer.args.bf16 else None
    with (
        trainer.patches,
        FlopCounterMode(display=False) as counter,
        torch.autocast(DEVICE.type, lower, enabled=lower is not None),
    ):
        output = model(**model_inputs(batch))
        (output.text_embeds.float().sum() + output.image_embeds.float().sum()).backward()
    return counter.get_total_flops()


def one_way(original, processor, way: str, batch_size: int, options, peaks: Callable) -> dict:
    """What is known of one way with one batch size, as `--json` writes it."""
    settings = dict(WAYS[way] or {})
    if way != "script":
        settings.setdefault("bf16", {"auto": None, "float32": False, "bfloat16": True}[options.dtype])
    compared = batch_size
    if options.contrastive and way != "script":
        compared = settings["contrastive_batch_size"] = options.contrastive
    rows = make_rows(compared * (1 if options.contrastive else options.steps), processor.tokenizer, noise=False)
    forget()
    facts = {"way": way, "batch_size": batch_size, "compared": compared}
    if way == "script":
        seconds = script_way(original, processor, rows.select(range(batch_size)), options.steps)
        return facts | {"seconds": statistics.median(seconds[1:]), "memory": held(), "all_seconds": seconds}
    common = {"rows": rows, "batch_size": batch_size, **settings}
    seconds, trainer = trainer_way(original, processor, steps=options.steps, **common)
    facts |= {"seconds": statistics.median(seconds[1:]), "memory": held(), "all_seconds": seconds}
    facts["dtype"] = "bfloat16" if trainer.args.bf16 else "float32"
    if not settings.get("torch_compile") and not options.contrastive:
        # Alone what training needs: neither the original nor a second forward of chunks.
        facts["flop"] = step_flop(trainer)
        best = facts["peak"] = peaks(torch.bfloat16 if trainer.args.bf16 else torch.float32)
        facts["share_of_peak"] = facts["flop"] / facts["seconds"] / best
    del trainer
    if options.syncs and DEVICE.type == "cuda":
        forget()
        syncs = Syncs()
        trainer_way(original, processor, steps=options.syncs + 1, callback=syncs, **common)
        lines = {line: count / max(syncs.steps, 1) for line, count in syncs.lines.most_common()}
        facts |= {"syncs": sum(lines.values()), "sync_lines": lines}
    return facts


def each_way(original, processor, options) -> None:
    """Measures ways by themselves, tells of each and writes them all."""
    known: dict[torch.dtype, float] = {}

    def peaks(dtype: torch.dtype) -> float:
        if dtype not in known:
            known[dtype] = peak(dtype)
        return known[dtype]

    found = []
    for way in options.ways:
        batch_size, facts = options.batch_size, None
        while facts is None:
            try:
                facts = one_way(original, processor, way, batch_size, options, peaks)
            except torch.OutOfMemoryError:
                print(f"  {way}: {batch_size} do not fit in memory", flush=True)
                batch_size //= 2
                facts = None if batch_size else {"way": way, "error": "out of memory"}
            except Exception as error:  # the other ways are still to be measured
                traceback.print_exc()
                facts = {"way": way, "error": f"{type(error).__name__}: {error}"[:500]}
        facts |= {"shape": options.shape}
        found.append(facts)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
        if "error" in facts:
            print(f"  {way:18} failed: {facts['error']}", flush=True)
            continue
        cells = [f"{facts['batch_size']} a step, {facts['compared']} compared: {facts['seconds']:.3f} s"]
        cells.append(f"{facts['compared'] / facts['seconds']:.1f} quadruplets/s")
        if "share_of_peak" in facts:
            cells.append(f"{100 * facts['share_of_peak']:.1f} % of peak")
        if facts["memory"] is not None:
            cells.append(f"{facts['memory']:.1f} GiB")
        if "syncs" in facts:
            cells.append(f"{facts['syncs']:g} syncs a step")
        print(f"  {way:18} {', '.join(cells)}", flush=True)
        for line, count in facts.get("sync_lines", {}).items():
            print(f"      {count:6.1f} {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ViT-B/32")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round, of which the first does not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the defaults")
    parser.add_argument("--compile", action="store_true", help="time the trainer with --torch_compile too")
    parser.add_argument("--states", action="store_true", help="time the default objective too, with states and without")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="measure these alone, each by itself")
    parser.add_argument("--contrastive", type=int, help="of --ways: quadruplets compared, in chunks of the batch size")
    parser.add_argument("--syncs", type=int, default=2, help="of --ways: steps in which waits are counted; 0 for none")
    parser.add_argument("--json", type=Path, help="of --ways: file for all that was found")
    options = parser.parse_args()
    processor = build_processor()
    original = build_clip(options.shape, processor.tokenizer)
    if options.ways:
        each_way(original, processor, options)
        return
    rows = make_rows(options.batch_size * options.steps, processor.tokenizer)
    common = {"rows": rows, "steps": options.steps, "batch_size": options.batch_size}
    bf16 = {"auto": None, "float32": False, "bfloat16": True}[options.dtype]
    times: dict[str, list[float]] = {}
    for number in range(options.rounds):
        made = {"script": script_way(original, processor, rows.select(range(options.batch_size)), options.steps)}
        made["trainer, float32"], _ = trainer_way(original, processor, bf16=False, **common)
        made["trainer, defaults"], trainer = trainer_way(original, processor, bf16=bf16, **common)
        made["bare loop"], flop = bare_way(trainer, options.steps)
        if options.compile:
            made["trainer, compiled"], _ = trainer_way(original, processor, bf16=bf16, torch_compile=True, **common)
        if options.states:
            ranking = {"objective": "safe_ranking", "bf16": bf16, **common}
            made["default objective"], _ = trainer_way(original, processor, **ranking)
            made["without states"], _ = trainer_way(original, processor, loss_weights=NO_STATES, **ranking)
        for way, seconds in made.items():
            times.setdefault(way, []).extend(seconds[1:])
        print(f"round {number + 1} of {options.rounds} done", flush=True)
    middle = {way: statistics.median(seconds) for way, seconds in times.items()}
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"\n{options.shape}, {options.batch_size} quadruplets a step, {name}; defaults in {dtype}")
    for way, seconds in times.items():
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(f"  {way:18} {middle[way]:8.3f} s a step ({spread}), {middle['script'] / middle[way]:5.2f} x the script")
    overhead = middle["trainer, defaults"] / middle["bare loop"] - 1
    print(f"  trainer over the bare loop: {100 * overhead:+.1f} %")
    seconds, best = middle["trainer, defaults"], peak(dtype)
    done = flop / seconds
    print(f"  {options.batch_size / seconds:.1f} quadruplets a second, {flop / 1e12:.2f} TFLOP a step")
    print(f"  {done / 1e12:.2f} TFLOP/s, {100 * done / best:.1f} % of the {best / 1e12:.2f} of a plain product")


if __name__ == "__main__":
    main()
