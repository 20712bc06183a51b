"""Peak memory of training against the contrastive batch, in chunks of one size.

    python benchmarks/memory.py
    python benchmarks/memory.py --shape ViT-B/32 --chunk 16
    python benchmarks/memory.py --shape ViT-L/14 --chunk 64    (on a GPU)

Trains two steps for each contrastive batch, each in a process of its own. On a GPU, the peak is what PyTorch allocated
there. On the CPU it is memory that the process holds (RssAnon), looked at every 20 ms; pages of files, which the system
drops where others need memory, are not counted.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch
from shapes import SHAPES, build_clip, build_processor, make_rows

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, load_clip, load_processor, load_quadruplets

STATUS = Path("/proc/self/status")


class Held(threading.Thread):
    """Watches what this process holds, in MB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.going = 0.0, True

    def run(self):
        while self.going:
            line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
            self.most = max(self.most, int(line.split()[1]) / 1024)
            time.sleep(0.02)


def train(shape: str, chunk: int, contrastive: int, most: int) -> float:
    """The peak in MB of two steps."""
    if shape == "demo":
        model, processor = load_clip("demo"), load_processor("demo")
        rows = load_quadruplets("demo")["train"].select(range(most))
    else:
        processor = build_processor()
        model, rows = build_clip(shape, processor.tokenizer), make_rows(most, processor.tokenizer, noise=False)
    with tempfile.TemporaryDirectory() as folder:
        args = SafeCLIPTrainingArguments(
            folder,
            per_device_train_batch_size=chunk,
            per_device_eval_batch_size=chunk,
            contrastive_batch_size=contrastive,
            max_steps=2 if shape == "demo" or torch.cuda.is_available() else 1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            cache_images="on",
        )
        trainer = SafeCLIPTrainer(model, args, rows, processing_class=processor)
        held = Held()
        held.start()
        trainer.train()
        held.going = False
        held.join()
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else held.most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["demo", *SHAPES], default="demo")
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--contrastive", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(f"peak {train(options.shape, options.chunk, options.alone, max(options.contrastive))}")
        return
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{options.shape}, chunks of {options.chunk}, {where}")
    first = None
    for contrastive in options.contrastive:
        flags = ["--shape", options.shape, "--chunk", str(options.chunk), "--alone", str(contrastive)]
        flags += ["--contrastive", *map(str, options.contrastive)]
        done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        peak = float(done.stdout.rpartition("peak ")[2])
        first = first or peak
        print(f"  contrastive batch {contrastive:5}: {peak:8.0f} MB, {peak / first:.2f} x the first", flush=True)


if __name__ == "__main__":
    main()
