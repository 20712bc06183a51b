"""What becomes of a program that is stopped, and of one that nobody reads any more."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import TrainerCallback

from safe_clip import lora_config
from safe_clip.errors import explained, run
from safe_clip.stopping import SIGNALS, Stopped, handled
from safe_clip.training.interruption import StopAfterStep

from ..helpers import largest_difference, make_trainer, weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def signals():
    """Handlers as they were, whatever a test leaves."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class KillAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_training_that_is_stopped_goes_on_to_the_same_weights(number, processor, rows, tmp_path):
    config = lora_config(lora_alpha=16, lora_dropout=0.1)
    common = {"max_steps": 6, "lr_scheduler_type": "linear"}
    straight = make_trainer(processor, rows, tmp_path / "a", config, **common)
    straight.train()
    stopped = make_trainer(processor, rows, tmp_path / "b", config, **common)
    stopped.add_callback(KillAt(3, number))
    stop = StopAfterStep(stopped.accelerator)
    stopped.add_callback(stop)
    with handled(stop.handle):
        stopped.train()
    with pytest.raises(Stopped, match="stopped after step 3 of 6, .* --resume_from_checkpoint last goes on") as error:
        stop.check(stopped.state)
    assert error.value.code == 128 + number
    assert [folder.name for folder in (tmp_path / "b").glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = make_trainer(processor, rows, tmp_path / "b", config, **common)
    resumed.train("last")
    assert resumed.state.global_step == 6
    assert largest_difference(weights(straight), weights(resumed)) == 0


def test_a_training_that_is_not_stopped_is_as_it_was(processor, rows, tmp_path):
    trainer = make_trainer(processor, rows, tmp_path, max_steps=2)
    stop = StopAfterStep(trainer.accelerator)
    trainer.add_callback(stop)
    before = signal.getsignal(signal.SIGINT)
    with handled(stop.handle):
        assert signal.getsignal(signal.SIGINT) is not before
        trainer.train()
    stop.check(trainer.state)
    assert signal.getsignal(signal.SIGINT) is before and trainer.state.global_step == 2
    with pytest.raises(Stopped), handled(stop.handle):  # training is over
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_that_is_stopped_ends_in_one_line(number, capsys):
    def main():
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("went on")

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 128 + number and capsys.readouterr().err == "\ninterrupted.\n"


def test_a_forked_process_is_not_told():
    """As those that read rows, which Ctrl-C reaches too."""
    caught = []
    with handled(caught.append):
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
            os._exit(len(caught))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert caught == []


PROGRAM = """
import os, signal, sys, time
from safe_clip.errors import UserError, run

def main(what):
    if what == "chat":
        for number in range(100_000):
            print(number)
    elif what == "pipe":
        raise BrokenPipeError(32, "Broken pipe")
    elif what == "code":
        raise UserError("a mistake", 2)
    elif what == "twice":
        try:
            print("waiting", flush=True)
            time.sleep(20)
        except KeyboardInterrupt:
            print("ending", flush=True)
            time.sleep(20)
    else:
        print(os.environ["HOME"], __import__("getpass").getuser())

if sys.argv[1] == "home":
    os.setuid(54321)  # which has no entry
run(main, sys.argv[1])
"""


def program(what, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | options.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in environment.items() if value is not None},
        **options,
    )


def test_a_program_that_nobody_reads_ends_quietly():
    process = program("chat")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(20) == 141
    process = program("pipe")  # of something else
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and err.splitlines()[-1] == "BrokenPipeError: [Errno 32] Broken pipe"


def test_a_second_time_ends_a_program_at_once():
    process = program("twice")
    for said in ("waiting\n", "ending\n"):
        assert process.stdout.readline() == said
        process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT


def test_mistakes_in_flags_end_with_2():
    process = program("code")
    assert process.communicate(timeout=20)[1] == "error: a mistake\n" and process.returncode == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_user_without_a_name_or_home(tmp_path):
    """As in a container that is started with `--user`."""
    nobody = {"HOME": None, "USER": None, "LOGNAME": None, "LNAME": None, "USERNAME": None}
    process = program("home", cwd=tmp_path, env=nobody)
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == ("", 1)
    assert err == (
        "error: the user of number 54321 has no home folder, where what is downloaded is kept: set HOME to a folder "
        "that may be written.\n"
    )
    process = program("home", cwd=tmp_path, env=nobody | {"HOME": str(tmp_path)})
    assert process.communicate(timeout=20) == (f"{tmp_path} 54321\n", "")
    assert not list(tmp_path.iterdir())


SHARED = "the shared memory (/dev/shm) is too small"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("unable to open shared memory object </torch_7_1> in read-write mode: No space left"), SHARED),
        (RuntimeError("unable to write to file </torch_7_1_0>: No space left on device (28)"), SHARED),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_7>: Success (0)"), SHARED),
        (OSError(28, "No space left on device", "/dev/shm/rows"), SHARED),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that"), SHARED),
        (OSError(24, "Too many open files"), "too many files are open"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "too many files"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "a process that reads rows was ended"),
        (OSError(28, "No space left on device", "out/rows"), "the disk is full"),
    ],
)
def test_shared_memory_is_told_from_the_disk(error, said):
    caught = explained(error)
    assert caught.startswith(said) and "\n" not in caught and ("--output_dir" in caught) == (said == "the disk is full")
