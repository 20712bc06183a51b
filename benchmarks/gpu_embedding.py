"""How many images and captions a second are embedded for evaluation, images of 224 pixels in PNG.

python benchmarks/gpu_embedding.py --shape ViT-L/14 --count 2048 --json embedding.json
"""

import argparse
import json
import time
from pathlib import Path

from shapes import SHAPES, build_clip, build_processor, make_rows
from step import DEVICE

from safe_clip.embedding.embedder import Embedder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="ViT-L/14")
    parser.add_argument("--count", type=int, default=2048)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    processor = build_processor()
    embedder = Embedder(build_clip(options.shape, processor.tokenizer).to(DEVICE), processor)
    rows = make_rows(options.count, processor.tokenizer)
    found = {"shape": options.shape, "precision": embedder.precision}
    embedder.images(rows.select(range(min(64, options.count))), "safe_image")  # what is made at first use
    start = time.perf_counter()
    embedder.images(rows, "safe_image")
    found["images_a_second"] = options.count / (time.perf_counter() - start)
    start = time.perf_counter()
    embedder.texts(rows["safe_caption"])
    found["captions_a_second"] = options.count / (time.perf_counter() - start)
    print(f"  {found}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
