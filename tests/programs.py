"""Python programs, each in a process of its own, that need not import the large libraries anew.

Most of the time of a short program is the import of torch and transformers. Here one process imports them and does
nothing else; each program is a fork of it, with arguments, environment, folder, output and exit status of its own.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).parent.parent
# Which read nothing from the environment that a test sets.
PLAIN = ["torch", "torch._dynamo", "torch.distributed.tensor", "torchvision.transforms.v2", "pandas", "pyarrow.dataset"]
PLAIN += ["scipy.optimize", "scipy.stats", "matplotlib.figure", "matplotlib.backends.backend_agg", "httpx2", "requests"]
PLAIN += ["jinja2", "torch.utils.tensorboard", "aiohttp"]
# Which read the Hub's address and their folders as they are imported.
HUB = ["transformers.models.clip.modeling_clip", "transformers.models.clip.processing_clip", "transformers.trainer"]
HUB += ["transformers.models.auto.modeling_auto", "datasets", "accelerate", "peft", "evaluate"]
KEPT = 4


def run_python(
    *command: object,
    cwd: Path | str,
    env: dict[str, str] | None = None,
    processes: int = 1,
    timeout: float = 400,
    modules: Sequence[str] = (),
) -> subprocess.CompletedProcess:
    """`python *command`, by `processes` that find each other as those of one machine do which torchrun starts.

    Args:
        command: a script, `-c CODE` or `-m MODULE`, and its arguments.
        cwd: where it runs.
        env: the whole environment; this one with the package by default.
        processes: how many run it at once.
        timeout: seconds until it fails.
        modules: what these programs import beside what most do; the next that has the same settings finds it imported.
    """
    command = [str(word) for word in command]
    env = {**os.environ, "PYTHONPATH": str(ROOT)} if env is None else env
    env = env | _linked_caches(env)
    environments = [env]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        environments = [env | shared | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(processes)]
    with tempfile.TemporaryDirectory() as folder:
        task = {"command": command, "cwd": str(cwd), "environments": environments, "out": folder}
        task["modules"] = list(modules)
        server = _server()
        previous = signal.signal(signal.SIGALRM, lambda *_: _end(server))
        signal.setitimer(signal.ITIMER_REAL, timeout)
        try:
            server.stdin.write(json.dumps(task) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        out, err = (Path(folder, name).read_text() if Path(folder, name).exists() else "" for name in ("out", "err"))
    if not answer:
        _server.cache_clear()
        raise subprocess.TimeoutExpired(command, timeout, out, err)
    return subprocess.CompletedProcess(command, int(answer), out, err)


def _linked_caches(env: dict[str, str]) -> dict[str, str]:
    """The same caches through one link for all programs: for each other `HF_HOME`, what reads it would be imported
    anew."""
    if "HF_HOME" not in env:
        return {}
    home, link = Path(env["HF_HOME"]), _folder() / "hf"
    home.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(home.resolve())
    inside = {name: Path(env[name]) for name in ("HF_HOME", "HF_DATASETS_CACHE") if name in env}
    return {name: str(link / path.relative_to(home)) for name, path in inside.items() if path.is_relative_to(home)}


@cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="safe-clip-programs-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@cache
def _server() -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Asking for the number of GPUs may else start CUDA, which a fork cannot use then.
    environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    # Tests take turns on the cores already: threads that wait for a core of their own would wait in a loop.
    environment["OMP_THREAD_LIMIT"] = "1"
    server = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # and what it started
    server.wait()


def _import(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):  # the program that requires it says so
            importlib.import_module(name)
    gc.freeze()  # or each fork would go through all of it, and copy it, whenever it collects garbage


def _become(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _next_task(tasks: TextIO, answers: TextIO) -> tuple[TextIO, TextIO]:
    """Hands each task on to a fork that imported what reads the Hub's settings under those of the task, and returns in
    a new such fork with the ends of its pipes. The settings of the last few tasks are kept."""
    kept: dict[str, tuple[TextIO, TextIO]] = {}
    for line in tasks:
        environment = json.loads(line)["environments"][0]
        settings = {name: value for name, value in environment.items() if name.startswith(("HF_", "TRANSFORMERS_"))}
        settings.pop("HF_TOKEN", None)  # which is read when it is used
        key = json.dumps(settings, sort_keys=True)
        if key not in kept:
            if len(kept) == KEPT:
                for end in kept.pop(next(iter(kept))):
                    end.close()
                os.wait()
            (read, write), (read_answer, write_answer) = os.pipe(), os.pipe()
            if os.fork() == 0:
                for number in (write, read_answer):
                    os.close(number)
                for ends in kept.values():
                    for end in ends:
                        end.close()
                _become(environment)
                _import(HUB)
                return os.fdopen(read), os.fdopen(write_answer, "w")
            os.close(read)
            os.close(write_answer)
            kept[key] = os.fdopen(write, "w"), os.fdopen(read_answer)
        kept[key] = kept.pop(key)  # the last to be given up
        send, answer = kept[key]
        print(line, end="", file=send, flush=True)
        print(answer.readline() or "1\n", end="", file=answers, flush=True)
    sys.exit()


def _next_program(tasks: TextIO, answers: TextIO) -> list[str]:
    """Forks for each task, and returns in the fork, with everything of its own but what is to be run."""
    for line in tasks:
        task, started, codes = json.loads(line), set(), []
        if task["modules"]:
            _import(task["modules"])
        for environment in task["environments"]:
            process = os.fork()
            if process == 0:
                for place, name in enumerate((os.devnull, "out", "err")):
                    opened = os.open(os.path.join(task["out"], name), os.O_RDWR | os.O_CREAT | os.O_APPEND)
                    os.dup2(opened, place)
                    os.close(opened)
                _become(environment)
                os.chdir(task["cwd"])
                return task["command"]
            started.add(process)
        while started:
            ended, status = os.wait()
            started.remove(ended)
            codes.append(os.waitstatus_to_exitcode(status))
            if codes[-1]:  # the others would wait for it
                for process in started:
                    os.kill(process, signal.SIGTERM)
        print(next(filter(None, codes), 0), file=answers, flush=True)
    sys.exit()


def _run(kind: str, *rest: str) -> None:
    """What Python does with these arguments."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if kind == "-m":
        sys.path[:1] = [os.getcwd(), *paths]
        sys.argv = list(rest)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        sys.path[:1] = ["", *paths]
        source, name, sys.argv = rest[0], "<string>", ["-c", *rest[1:]]
    else:
        sys.path[:1] = [os.path.dirname(os.path.abspath(kind)), *paths]
        source, name, sys.argv = Path(kind).read_text(), kind, [kind, *rest]
        main.__file__ = kind
    exec(compile(source, name, "exec"), main.__dict__)


def _leave() -> None:
    """Ends a program without taking its modules apart, which takes longer than many a program."""
    if ended is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)


if __name__ == "__main__":
    ended: int | None = None  # a program's exit status, once it has one that is no signal
    atexit.register(_leave)  # the first to be registered, so the last to be called
    _import(PLAIN)
    program = _next_program(*_next_task(sys.stdin, sys.stdout))
    try:
        _run(*program)
        ended = 0
    except SystemExit as end:
        ended = end.code & 0xFF if isinstance(end.code, int) else int(end.code is not None)
        raise
    except Exception:
        ended = 1
        raise
