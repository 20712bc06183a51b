"""Errors that a machine causes, and what a person reads of them."""

import errno
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset

from safe_clip import UserError
from safe_clip.errors import explained, run

from .programs import run_python

ROOT = Path(__file__).parent.parent
FULL, KILLED, MEMORY = "the disk is full (", "a process that reads rows was ended", "the device has too little memory ("


def raised_from(cause: BaseException) -> Exception:
    try:
        raise ValueError("something else") from cause
    except ValueError as error:
        return error


def raised_while_handling(first: BaseException) -> Exception:
    try:
        try:
            raise first
        except type(first):
            raise KeyError("in the way of it")  # noqa: B904
    except KeyError as error:
        return error


DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/rows.arrow")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DISK, f"{FULL}[Errno 28] No space left on device: 'out/rows.arrow'). Free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
        (OSError(errno.EFBIG, "File too large"), FULL),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), FULL),
        (OSError("Not enough disk space. Needed: Unknown size"), FULL),
        (raised_from(DISK), f"{FULL}[Errno 28]"),
        (raised_while_handling(DISK), f"{FULL}[Errno 28]"),
        (raised_from(raised_while_handling(DISK)), f"{FULL}[Errno 28]"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), KILLED),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), KILLED),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), f"{MEMORY}CUDA out of memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), MEMORY),
        (OSError(errno.EACCES, "Permission denied"), None),
        (OSError(errno.ENOENT, "No such file", "28.txt"), None),
        (RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory"), None),
        (KeyError("safe_caption"), None),
        (ValueError(), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_shortages_are_told_from_other_errors(error, said):
    message = explained(error)
    assert (message is None) == (said is None)
    if said is not None:
        assert message.startswith(said) and "\n" not in message and "--" in message


def test_what_torch_raises_is_explained():
    """By torch itself, whose words may change."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**62, dtype=torch.uint8)
    assert explained(error.value).startswith(MEMORY)


class _Dies(Dataset):
    """Rows of which one kills who reads it."""

    def __init__(self, deadly: int):
        self.deadly = deadly

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.deadly:
            os.kill(os.getpid(), 9)
        return torch.zeros(100_000)


@pytest.mark.parametrize("deadly", [0, 1, 2, 3, 19])
def test_a_worker_that_is_killed_is_explained(deadly):
    """Also where tensors that it sent are then nowhere to be had, by which torch may fail first."""
    with pytest.raises((RuntimeError, OSError, EOFError)) as error:
        try:
            for _ in DataLoader(_Dies(deadly), num_workers=1):
                time.sleep(0.005)
        finally:
            time.sleep(0.3)  # the signal that a process ended, on which torch raises, may come a moment later
    message = explained(error.value)
    assert message.startswith(KILLED) and "--dataloader_num_workers" in message and "--num_workers" in message


def test_a_script_ends_in_one_line_or_in_the_traceback():
    given = []
    run(given.append, "an argument")
    assert given == ["an argument"]

    def fails(error):
        raise error

    for error, said in (
        (UserError("row 3 is\n bad."), "error: row 3 is bad."),
        (DISK, "error: the disk is full ([Errno 28] No space left on device: 'out/rows.arrow'). Free"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(fails, error)
        assert ended.value.code.startswith(said)
    for error in (KeyError("a bug"), SystemExit(2)):
        with pytest.raises(type(error)) as same:
            run(fails, error)
        assert same.value is error


KILLED_AT_AN_IMAGE = """
import os, runpy, sys
from PIL import Image

def killed(image, main=os.getpid(), read=Image.Image.getexif):
    if os.getpid() != main:
        os.kill(os.getpid(), 9)  # as the kernel does where memory runs out
    return read(image)

Image.Image.getexif = killed
"""
RUN = """
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(before: str, name: str, *flags: str, cwd: Path) -> subprocess.CompletedProcess:
    caches = {"HF_HOME": str(cwd / "hf"), "HF_DATASETS_CACHE": str(cwd / "hf" / "datasets")}  # of its own
    environment = os.environ | {"PYTHONPATH": str(ROOT), **caches}
    return run_python("-c", before + RUN, ROOT / name, *flags, cwd=cwd, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.py", "eval.py"])
def test_a_killed_worker_ends_a_script_in_one_line(name, model_dir, dataset_dir, tmp_path):
    flags = ["--model", model_dir, "--dataset", dataset_dir, "--output_dir", str(tmp_path / "out")]
    flags += (
        ["--dataloader_num_workers", "1", "--eval_splits", "train", "--report_to", "none"]
        if name == "train.py"
        else ["--num_workers", "1", "--splits", "train"]
    )
    done = run_script(KILLED_AT_AN_IMAGE, name, *flags, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {KILLED}"), done.stderr
    assert "Traceback" not in done.stderr


FULL_AT_STEP_2 = """
import os, resource, runpy, sys
from transformers import Trainer

def full(self, output_dir, save=Trainer._save_optimizer_and_scheduler):
    if self.state.global_step == 2:  # from here on nothing is written beyond 4 kB, which no optimizer fits into
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    save(self, output_dir)

Trainer._save_optimizer_and_scheduler = full
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_the_last_checkpoint_to_go_on_from(model_dir, dataset_dir, tmp_path):
    flags = [
        "--model",
        model_dir,
        "--dataset",
        dataset_dir,
        "--output_dir",
        str(tmp_path / "out"),
        "--report_to",
        "none",
    ]
    flags += ["--max_steps", "3", "--save_steps", "1", "--eval_splits", "test"]
    done = run_script(FULL_AT_STEP_2, "train.py", *flags, "--save_total_limit", "1", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {FULL}"), done.stderr
    assert "Traceback" not in done.stderr and "--resume_from_checkpoint last" in done.stderr
    # What was cut off lies beside the whole one, and is not taken for it.
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    whole = tmp_path / "out" / "checkpoint-1" / "trainer_state.json"
    written = whole.stat().st_mtime_ns
    done = run_script("import os, runpy, sys", "train.py", *flags, "--resume_from_checkpoint", "last", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert whole.stat().st_mtime_ns == written  # the first step was not made again
    state = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3
