"""Embeds a folder of images, kills that midway, goes on, and compares the index with that of a run left alone.

    python benchmarks/embed.py [--images 10000] [--model demo]

Draws images of the bundled demo into a folder and runs `safe-clip embed` three times: whole; into another cache until
half of the images are kept there, when it gets SIGKILL; and the same command again. Prints for each the seconds, what
was made in it, images a second from the first chunk that was kept to the last, and the most memory that it held. Ends
with an error where the two indexes differ in a byte.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from safe_clip.demo import world

COMMAND = [sys.executable, "-m", "safe_clip"]
FILES = ("index.parquet", "index.json")


@dataclass(frozen=True)
class Run:
    """What a run took: seconds, the most memory in MB, and when the chunks that it made were written."""

    seconds: float
    memory: float
    made: list[float]

    def line(self, what: str, images_of_a_chunk: float) -> str:
        between = self.made[-1] - self.made[0] if self.made else 0
        pace = f"{(len(self.made) - 1) * images_of_a_chunk / between:,.0f}" if between > 0 else "-"
        return f"| {what} | {self.seconds:.1f} | {len(self.made)} | {pace} | {self.memory:,.0f} |"


def draw(folder: Path, count: int) -> None:
    """Writes images of scenes, safe and unsafe ones in turn, which follow from their numbers."""
    folder.mkdir()
    concepts = world.unsafe_concepts(False)
    for number in range(0, count, 2):
        made = world.compose_quadruplet(f"embed/{number}", world.TRAINING_STYLES, concepts)
        for side in ("safe", "unsafe")[: count - number]:
            made.image(side).save(folder / f"{number + (side == 'unsafe'):06}.png")


def kept(cache: Path) -> dict[Path, float]:
    """The chunks in a cache, and when each was written."""
    return {file: file.stat().st_mtime for file in cache.rglob("[0-9]*.safetensors")}


def embed(model: str, images: Path, index: Path, cache: Path, stop_at: int | None = None) -> Run:
    """Runs the command; with `stop_at`, until so many chunks are kept, when it is killed."""
    before = kept(cache)
    words = ["--model", model, "--dataset", str(images), "--output_dir", str(index), "--cache_dir", str(cache)]
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([*COMMAND, "embed", *words], stdout=said, stderr=said)
        while stop_at and len(kept(cache)) < stop_at and process.poll() is None:
            time.sleep(0.01)
        if stop_at and process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
        if process.returncode is None:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != (-signal.SIGKILL if stop_at else 0):
            said.seek(0)
            sys.exit(f"safe-clip embed ended with {process.returncode}:\n{said.read().decode()[-3000:]}")
    made = sorted(when for file, when in kept(cache).items() if file not in before)
    return Run(time.perf_counter() - begin, used.ru_maxrss / 1024, made)


def compare(one: Path, other: Path) -> int:
    """How many bytes two indexes have in common; ends with an error where they differ."""
    for name in FILES:
        if (one / name).read_bytes() != (other / name).read_bytes():
            sys.exit(f"{name} of the run that was stopped is not that of the whole run")
    return sum((one / name).stat().st_size for name in FILES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--model", default="demo")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        draw(folder / "images", args.images)
        whole = embed(args.model, folder / "images", folder / "whole", folder / "kept-whole")
        chunks = len(whole.made)
        size = args.images / chunks
        print("| run | seconds | chunks made | images a second | most memory, MB |\n|---|---|---|---|---|")
        print(whole.line("whole", size), flush=True)
        stopped = embed(args.model, folder / "images", folder / "index", folder / "kept", (chunks + 1) // 2)
        print(stopped.line("killed", size), flush=True)
        if (folder / "index" / FILES[0]).exists():
            sys.exit("the run that was killed left an index")
        again = embed(args.model, folder / "images", folder / "index", folder / "kept")
        print(again.line("again", size))
        if len(stopped.made) + len(again.made) != chunks:
            sys.exit(f"{len(stopped.made)} and {len(again.made)} chunks were made, of {chunks}")
        same = compare(folder / "whole", folder / "index")
        print(f"{args.images:,} images in {chunks} chunks; both indexes have the same {same:,} bytes")


if __name__ == "__main__":
    main()
