"""Libraries and programs that single settings require, looked for before anything slow."""

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config import json_object
from ..errors import UserError

# What --report_to names: modules of which one has to be there, and what pip calls it.
REPORTERS = {
    "wandb": ("wandb",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "dvclive": ("dvclive",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "trackio": ("trackio",),
    "azure_ml": ("azureml",),
    "dagshub": ("dagshub",),
    "flyte": ("flytekit",),
}
# What --optim names, by a pattern of which the first that is found counts.
OPTIMIZERS = {
    r"galore": ("galore_torch",),
    r"adamw_torch_[48]bit": ("torchao",),
    r"8bit|paged|bnb|ademamix|lion": ("bitsandbytes",),
    r"lomo": ("lomo_optim",),
    r"grokadamw": ("grokadamw",),
    r"schedule_free": ("schedulefree",),
    r"apollo": ("apollo_torch",),
    r"stable_adamw": ("optimi",),
    r"apex": ("apex",),
    r"anyprecision": ("torchdistx",),
    r"npu": ("torch_npu",),
    r"xla": ("torch_xla",),
}
PIP = {"azureml": "azureml-core", "optimi": "torch-optimi", "lomo_optim": "lomo-optim", "galore_torch": "galore-torch"}
PIP |= {"apollo_torch": "apollo-torch"}
COMPILERS = ("g++", "clang++", "c++", "cl")


def check_optional(settings: Any, on_cpu: bool) -> None:
    """Raises `UserError` for the first of the training settings that requires what is not there.

    Args:
        settings: `TrainingArguments`, as they were given.
        on_cpu: whether training is to run on the CPU.
    """
    for flag, modules in _required(settings):
        if not any(map(installed, modules)):
            names = " or ".join(PIP.get(module, module) for module in modules)
            raise UserError(f"{flag} requires {names}, which is not installed: pip install {names.split(' ')[0]}.")
    if settings.fsdp and "LOCAL_RANK" not in os.environ:
        raise UserError("--fsdp requires several processes: safe-clip train --accelerate_config fsdp2 starts them.")
    for name in ("deepspeed", "fsdp_config", "accelerator_config"):
        value = getattr(settings, name)
        if isinstance(value, str) and value.strip().startswith("{"):
            json_object(f"--{name}", value)
        elif isinstance(value, str):
            _check_json_file(f"--{name} {value}", Path(value).expanduser())
    compiled = settings.torch_compile or settings.torch_compile_backend or settings.torch_compile_mode
    if compiled and on_cpu and settings.torch_compile_backend in (None, "inductor"):
        wanted = os.environ.get("CXX")
        if not any(map(shutil.which, [wanted] if wanted else COMPILERS)):
            raise UserError(
                f"--torch_compile requires a C++ compiler on the CPU, and {wanted or 'none'} "
                f"{'is not there' if wanted else 'was found'}: install g++, or leave it out."
            )


def installed(module: str) -> bool:
    """Whether a module can be imported; a folder of that name in the working directory is none."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def _required(settings: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Flags and the modules of which they require one."""
    for name in reporters(settings.report_to):
        if name not in REPORTERS:
            raise UserError(f"--report_to {name}: it must be none, all, or among {', '.join(REPORTERS)}.")
        yield f"--report_to {name}", REPORTERS[name]
    optimizer = str(getattr(settings.optim, "value", settings.optim))
    modules = next((modules for pattern, modules in OPTIMIZERS.items() if re.search(pattern, optimizer)), None)
    if modules:
        yield f"--optim {optimizer}", modules
    if settings.deepspeed:
        yield "--deepspeed", ("deepspeed",)
    if settings.use_liger_kernel:
        yield "--use_liger_kernel", ("liger_kernel",)


def reporters(report_to: Any) -> list[str]:
    """The names that --report_to gives, but for those that stand for none or for all that there are.

    Raises:
        UserError: it is no text or list of texts.
    """
    names = report_to if isinstance(report_to, list | tuple) else [report_to]
    names = [name for name in names if name is not None]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"--report_to is {report_to!r}; it must be a name or a list of names, such as tensorboard.")
    return [name for name in names if name not in ("none", "all")]


def _check_json_file(what: str, file: Path) -> None:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{what} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.") from error
    json_object(what, text)
