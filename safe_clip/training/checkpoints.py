"""Whether a checkpoint is whole: what it must hold, and by what that is known."""

import json
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from ..errors import first_line
from ..store.known_files import file_facts
from ..store.writing import write_whole
from .run_identity import OLD_FILE, RUN_FILE

STATE_FILE = "trainer_state.json"
# What training goes on from, besides the state; a Trainer goes on without any of it, and says nothing.
WEIGHTS = ("adapter_model.safetensors", "model*.safetensors", "pytorch_model*", "global_step*")
OPTIMIZER = ("optimizer.*", "optimizer_*", "global_step*")
SCHEDULER = ("scheduler.pt",)
RANDOM = ("rng_state*.pth",)
NEEDED = (*WEIGHTS, "adapter_config.json", *OPTIMIZER, *SCHEDULER, *RANDOM, "scaler.pt")
# Of `RUN_FILE`, of which type its parts are.
PARTS = {"run": (str, type(None)), "is": dict, "recipe": dict, "data": (dict, type(None)), "files": (dict, type(None))}


def seal(checkpoint: Path) -> None:
    """Notes in a checkpoint that is written to its end what it is made of; and takes the machine's paths out of it."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    if best := state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = Path(best).name
        write_whole(checkpoint / STATE_FILE, json.dumps(state, indent=2, sort_keys=True) + "\n")
    facts = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    facts["files"] = {path.relative_to(checkpoint).as_posix(): file_facts(path) for path in _needed(checkpoint)}
    write_whole(checkpoint / RUN_FILE, json.dumps(facts, indent=1))


def fault_of(checkpoint: Path) -> str | None:
    """Why training cannot go on from a checkpoint, in words that follow its name; `None` where it can."""
    try:
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        if not (isinstance(state.global_step, int) and state.global_step > 0 and isinstance(state.log_history, list)):
            return f"says no step in its {STATE_FILE}"
    except FileNotFoundError:
        return f"has no {STATE_FILE}"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"has a {STATE_FILE} that cannot be read ({first_line(error)})"
    facts: dict[str, Any] = {}
    if named := next((name for name in (RUN_FILE, OLD_FILE) if (checkpoint / name).exists()), None):
        try:
            found = json.loads((checkpoint / named).read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise TypeError("it is no object")
            facts = found if named == RUN_FILE else {"data": found}
            right = all(isinstance(facts[name], kind) for name, kind in PARTS.items() if name in facts)
            data = facts.get("data")
            if not right or (data and not isinstance(data["rows"], int)):
                raise TypeError("a part of it is not what it should be")
        except (OSError, ValueError, TypeError, KeyError) as error:
            return f"has a {named} that cannot be read ({first_line(error)})"
    if "files" in facts and facts["files"] is None:
        return "was cut off while it was written"
    for name, known in (facts.get("files") or {}).items():
        path = checkpoint / name
        if not path.is_file():
            return f"has no {name} any more"
        if file_facts(path) != known:
            return f"has another {name} than was saved"
    there = [path.name for path in checkpoint.iterdir()]
    for patterns in (WEIGHTS, OPTIMIZER, SCHEDULER, RANDOM):
        if not any(_fits(name, patterns) for name in there):
            return f"has no {patterns[0]} (as under --save_only_model)"
    return None if facts.get("files") else _damage(checkpoint)


def _damage(checkpoint: Path) -> str | None:
    """What of a checkpoint of an earlier version, which has no list of its files, cannot be read."""
    for path in _needed(checkpoint):
        try:
            if path.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        return f"has a damaged {path.name}"
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
        except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
            return f"has a damaged {path.name} ({first_line(error)})"
    return None


def _needed(checkpoint: Path) -> list[Path]:
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file())
    return [path for path in files if _fits(path.relative_to(checkpoint).parts[0], NEEDED)]


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
