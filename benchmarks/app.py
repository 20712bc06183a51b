"""How long the page takes to start, once its gallery is embedded, and to answer a search.

    safe-clip train
    python benchmarks/app.py safe-clip

Starts `safe-clip app` twice on the bundled demo's 2,000 images of `test`, of which the second start finds what the
first embedded, and has it answer searches by words as a browser sends them: through the queue, with all that is shown.
In seconds from the command to the page's address, and in milliseconds from the request to the answer.
"""

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import safe_clip

BASE, SPLIT = "demo", "test"
QUERIES = 50
ADDRESS = re.compile(r"http://\S+")


def call(address: str, data: Any = None) -> Any:
    """An open answer to a request."""
    body = None if data is None else json.dumps(data).encode()
    return urllib.request.urlopen(urllib.request.Request(address, body, {"content-type": "application/json"}))


def handlers(address: str) -> dict[str, int]:
    """The number of each event of the page, by the name of the function that answers it; of several, the first."""
    with call(f"{address}/config") as answer:
        found: dict[str, int] = {}
        for number, event in enumerate(json.load(answer)["dependencies"]):
            found.setdefault(event["api_name"], event.get("id", number))
        return found


def ask(address: str, event: int, *values: Any) -> list:
    """What an event answers, as a browser asks for it.

    Raises:
        RuntimeError: it does not.
    """
    session = uuid.uuid4().hex
    with call(f"{address}/gradio_api/queue/join", {"data": values, "fn_index": event, "session_hash": session}):
        pass
    with call(f"{address}/gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream:
            said = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
            if said.get("msg") == "process_completed":
                if not said["success"]:
                    raise RuntimeError(said["output"])
                return said["output"]["data"]
    raise RuntimeError("the page did not answer")


@contextmanager
def started(*flags: str) -> Iterator[tuple[str, float]]:
    """The address of a page, and the seconds that it took to start."""
    command = [sys.executable, "-m", "safe_clip", "app", "--port", "0", *flags]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next(filter(None, map(ADDRESS.search, process.stdout)), None)
            if found is None:
                sys.exit("safe-clip app did not start")
            yield found.group(), time.perf_counter() - begin
        finally:
            process.send_signal(signal.SIGINT)


def times(address: str, captions: list[str]) -> list[float]:
    """Milliseconds that each search takes; one before them is not counted."""
    event, taken = handlers(address)["by_words"], []
    for caption in [captions[0], *captions]:
        begin = time.perf_counter()
        (answer, *_) = ask(address, event, caption, "images")
        taken.append(1000 * (time.perf_counter() - begin))
        if answer.count('class="hit ') != 24:
            sys.exit(f"a search was answered otherwise: {answer[:200]}")
    return taken[1:]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("model", help="the folder that `safe-clip train` wrote")
    flags = ["--model", options.parse_args().model, "--baseline", BASE]
    captions = safe_clip.load_quadruplets(BASE)[SPLIT]["unsafe_caption"][:QUERIES]
    with started(*flags) as (_, first):
        pass
    with started(*flags) as (address, second):
        taken = times(address, list(captions))
    print("| | |\n|---|---|")
    print(f"| first start | {first:.1f} s (less where embeddings were kept already) |")
    print(f"| second start | {second:.1f} s |")
    print(f"| a search, median of {len(taken)} | {statistics.median(taken):.0f} ms |")
    print(f"| a search, slowest | {max(taken):.0f} ms |")


if __name__ == "__main__":
    main()
