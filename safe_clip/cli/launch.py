"""Several processes for a verb, by the recipes of `accelerate` that come with the package."""

import os
import sys
from pathlib import Path

from ..config import RECIPES, suggest
from ..errors import UserError
from .help import Setting

FOLDER = RECIPES / "accelerate"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
LAUNCH = {
    each.name: each
    for each in (
        Setting(
            "accelerate_config",
            None,
            f"Start several processes with `accelerate launch`: one of {', '.join(NAMES)}, or a "
            "YAML file as `accelerate config` makes them.",
            "str",
        ),
        Setting("num_processes", None, "Processes on all machines together, in place of the file's number.", "int"),
        Setting("num_machines", None, "Machines, in place of the file's number.", "int"),
        Setting("machine_rank", None, "Which of the machines this one is, from 0.", "int"),
        Setting("main_process_ip", None, "Address of the machine with rank 0.", "str"),
        Setting("main_process_port", None, "Port on the machine with rank 0.", "int"),
    )
}
GROUP = "Several GPUs or machines (or start with accelerate launch -m safe_clip VERB ...)"


def launch(verb: str, argv: list[str]) -> None:
    """Starts a verb anew by `accelerate launch`, if its flags ask for that, and never returns then.

    Raises:
        UserError: there is no such recipe, or a flag of these lacks its value.
    """
    given, rest = _split(argv)
    if "accelerate_config" not in given:
        if given:
            raise UserError(f"--{next(iter(given))} requires --accelerate_config, such as --accelerate_config ddp.", 2)
        return
    name = given.pop("accelerate_config")
    config = FOLDER / f"{name}.yaml" if name in NAMES else Path(name)
    if not config.is_file():
        raise UserError(
            f"--accelerate_config {name}: it must be a file, or among {', '.join(NAMES)}.{suggest(name, NAMES)}",
            2,
        )
    options = [word for flag, value in given.items() for word in (f"--{flag}", value)]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *options]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, "-m", "safe_clip", verb, *rest])


def _split(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The values of these flags, and all other words."""
    given, rest, words = {}, [], iter(argv)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not word.startswith("--") or name not in LAUNCH:
            rest.append(word)
            continue
        value = value if equals else next(words, "--")
        if value.startswith("--"):
            raise UserError(f"--{name}: a value must follow it.", 2)
        given[name] = value
    return given, rest
