"""What it takes to begin: importing the package, starting to train, and reading images, the first time and later.

    python benchmarks/loading.py [--rows 256]

- import: `import safe_clip`, over that of an empty program, the least of several.
- start: from `python train.py` on the bundled demo to the end of its first step, the first time and with what that
  left in the cache.
- images: batches of the training rows, whose images are JPEGs of 640 x 480 pixels, with nothing trained on them: in
  the first epoch each is decoded, resized and kept; later it is read as kept. For comparison, an epoch that keeps
  nothing.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
TRIES = 7


def seconds(code: str) -> float:
    """The least time that a program takes."""
    taken = []
    for _ in range(TRIES):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        taken.append(time.perf_counter() - start)
    return min(taken)


def start(cache: str) -> float:
    """From the command to the end of the first step."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["demo", "--max_steps", "1", "--logging_steps", "1", "--output_dir", folder]
        begin = time.perf_counter()
        env = {**os.environ, "HF_DATASETS_CACHE": cache, "PYTHONUNBUFFERED": "1"}
        flags += ["--eval_splits", "validation", "--disable_tqdm", "true"]
        process = subprocess.Popen(
            [sys.executable, "train.py", *flags], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for line in process.stdout:
            if b"'loss'" in line:
                taken = time.perf_counter() - begin
                break
        else:
            sys.exit("train.py did not train")
        process.kill()
        process.wait()
    return taken


def photograph(random: np.random.Generator) -> bytes:
    """A JPEG of about the size that a photograph of COCO has."""
    coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((640, 480))
    file = io.BytesIO()
    coarse.save(file, "JPEG", quality=90)
    return file.getvalue()


def images(count: int) -> None:
    """Prints the time of an epoch of reading alone."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from shapes import build_processor
    from torch.utils.data import DataLoader

    from safe_clip import QuadrupletCollator, QuadrupletRows

    random = np.random.default_rng()  # anew, so that nothing of it is in the cache
    table = {
        f"{side}_image": [{"bytes": photograph(random), "path": None} for _ in range(count)]
        for side in ("safe", "unsafe")
    }
    table |= {f"{side}_caption": ["a dog on a sofa"] * count for side in ("safe", "unsafe")}
    kinds = {"image": ImageFeature(), "caption": Value("string")}
    features = Features({name: kinds[name.rpartition("_")[2]] for name in table})
    processor = build_processor()

    def epoch(rows: QuadrupletRows) -> float:
        begin = time.perf_counter()
        for _ in DataLoader(rows, 32, collate_fn=QuadrupletCollator(processor, 77)):
            pass
        return time.perf_counter() - begin

    data = Dataset.from_dict(table, features=features)
    plain = epoch(QuadrupletRows(data))
    rows = QuadrupletRows(data)
    begin = time.perf_counter()
    rows.cache_images(processor.image_processor, progress=False)
    first = time.perf_counter() - begin + epoch(rows)
    second = epoch(rows)
    print(f"images, {count} rows of two: an epoch that keeps nothing {plain:.2f} s")
    print(f"  the first epoch {first:.2f} s, the second {second:.2f} s: {second / first:.2f} of the first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    options = parser.parse_args()
    empty, ours = seconds("pass"), seconds("import safe_clip")
    print(f"import safe_clip: {ours - empty:.3f} s over the {empty:.3f} s of an empty program")
    torch = seconds("import torch")
    print(f"  for comparison, import torch: {torch - empty:.2f} s")
    with tempfile.TemporaryDirectory() as cache:
        first, second = start(cache), start(cache)
    print(f"from `python train.py` to the end of its first step: {first:.1f} s, again {second:.1f} s")
    images(options.rows)


if __name__ == "__main__":
    main()
