"""What a training step costs, beside the public script's way of doing it and beside a bare loop.

    python benchmarks/step.py
    python benchmarks/step.py --shape ViT-L/14 --batch_size 4
    python benchmarks/step.py --shape ViT-L/14 --batch_size 128 --dtype bfloat16    (on a GPU)

All ways train the same CLIP of random weights with the same LoRA and the paper's objective on the same rows, whose
captions have 13 to 20 tokens, in turn, round after round; times are medians over steps, the first of each round left
out.

- script: what the published training script does: captions padded to 77 tokens, float32, a frozen copy that embeds the
  safe items at every step, the two captions and the two pictures of a row each in a forward of their own, plain Adam.
  It is given its batches ready.
- trainer, float32: `SafeCLIPTrainer` in the script's precision, with all else at its defaults.
- trainer, defaults: with bfloat16 where the device is faster in it.
- bare loop: a loop in PyTorch with the arithmetic of the trainer's defaults, loading of batches included, and nothing
  else.

With `--states`, the default objective too, whose terms over states want captions of full length and a forward of the
original at every step, and the same without these terms.

Model FLOP of a step are those of its matrix products and attention, counted by PyTorch (`FlopCounterMode`), set against
the fastest product of two square matrices that this device does in this precision.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Iterator

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
from safe_clip.models.patches import casts_kept
from safe_clip.objectives.base import Reference

DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
RATE = 1e-3
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
    original: CLIPModel, processor: CLIPProcessor, rows, steps: int, batch_size: int, **settings
) -> tuple[list[float], SafeCLIPTrainer]:
    """Seconds of each step of the trainer."""
    clock = Clock()
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
    return clock.seconds, trainer


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
        return objective(embeds, Reference(items))[0]

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
    with casts_kept(model):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ViT-B/32")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps of a round, of which the first does not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the defaults")
    parser.add_argument("--compile", action="store_true", help="time the trainer with --torch_compile too")
    parser.add_argument("--states", action="store_true", help="time the default objective too, with states and without")
    options = parser.parse_args()
    processor = build_processor()
    original = build_clip(options.shape, processor.tokenizer)
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
