"""Training by several processes, whose step is the step of one process on the same global batch."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from safe_clip.objectives import OBJECTIVES

from ..programs import run_python

ROOT = Path(__file__).parents[2]

# accelerate forms FSDP for accelerators alone, and on CPUs would quietly train under DDP.
FSDP_ON_CPU = """
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

init = AcceleratorState.__init__

def with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.fsdp_plugin = fsdp_plugin
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

AcceleratorState.__init__ = with_fsdp
"""

PROGRAM = """
import json, os, sys
from pathlib import Path
import datasets
import numpy as np
import torch
from datasets import load_from_disk
from peft import LoraConfig
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback
from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, load_clip, load_processor

model, data, out, cases = sys.argv[1:]
processes = int(os.environ.get("WORLD_SIZE", "1"))
datasets.config.HF_DATASETS_CACHE = f"{out}/cache"  # of its own, else it would find what another launch embedded
processor, rows = load_processor(model), load_from_disk(data)["train"]
table = rows.with_format("arrow")[:].to_pylist()
for number, row in enumerate(table):
    if number % 3:
        row["unsafe_image" if number % 3 == 1 else "safe_caption"] = None
gaps = type(rows).from_list(table, features=rows.features)


class Gradients(TrainerCallback):
    def __init__(self):
        self.seen = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            for name, weight in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
                if weight.grad is not None:
                    gradient = weight.grad
                    gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                    self.seen[name] = gradient.clone()


for name, settings in json.loads(cases).items():
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules=["fc1", "out_proj"], init_lora_weights=False)
    chosen = gaps if settings.pop("gaps", False) else rows
    settings["per_device_train_batch_size"] //= processes
    args = SafeCLIPTrainingArguments(
        f"{out}/{name}-{processes}", max_steps=2, learning_rate=1e-3, warmup_steps=0, max_grad_norm=0.0,
        logging_steps=1, report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True, bf16=False, **settings
    )
    gradients = Gradients()
    trainer = SafeCLIPTrainer(
        load_clip(model), args, chosen, processing_class=processor, peft_config=adapter, callbacks=[gradients]
    )
    assert trainer.accelerator.num_processes == processes
    trainer.train()
    sharded = sum(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    assert sharded == (len(list(trainer.model.parameters())) if args.fsdp else 0), sharded
    trainer.save_model()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_world_process_zero():
        torch.save([gradients.seen, logs], f"{out}/{name}-{processes}.pt")
    taken = trainer.targets.table.take(np.arange(len(chosen)))
    torch.save(taken, f"{out}/{name}-{processes}-{trainer.args.process_index}-table.pt")
    trainer.accelerator.free_memory()
"""


def run(folder: Path, cases: dict, model_dir: str, dataset_dir: str, processes: int) -> None:
    (folder / "program.py").write_text(FSDP_ON_CPU + PROGRAM)
    command = folder / "program.py", model_dir, dataset_dir, folder, json.dumps(cases)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_python(*command, cwd=folder, env=env, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]


FSDP = {"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT"}
FSDP |= {"transformer_layer_cls_to_wrap": ["CLIPEncoderLayer"], "cpu_ram_efficient_loading": False}
CASES = {name: {"objective": name, "per_device_train_batch_size": 12} for name in OBJECTIVES}
CASES |= {
    "chunks": {"objective": "safe_ranking", "per_device_train_batch_size": 6, "contrastive_batch_size": 12},
    "gaps": {"objective": "safe_clip", "per_device_train_batch_size": 12, "gaps": True},
    "gaps, states": {"objective": "safe_ranking", "per_device_train_batch_size": 12, "gaps": True},
    "drawn": {
        "objective": "safe_ranking",
        "per_device_train_batch_size": 12,
        "objective_options": {"anchors": 5},
    },
}
SHARDED = {
    name: {**settings, "fsdp": True, "fsdp_config": FSDP}
    for name, settings in CASES.items()
    if name in ("safe_clip", "chunks")
}


@pytest.fixture(scope="module")
def trained(model_dir, dataset_dir, tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("one", "two", "sharded")}
    run(folders["one"], CASES, model_dir, dataset_dir, 1)
    run(folders["two"], CASES, model_dir, dataset_dir, 2)
    run(folders["sharded"], SHARDED, model_dir, dataset_dir, 2)
    return folders


WAYS = [*(("two", case) for case in CASES), *(("sharded", case) for case in SHARDED)]


@pytest.mark.slow
@pytest.mark.parametrize(("way", "case"), WAYS)
def test_gradients_and_terms_are_those_of_one_process(way, case, trained):
    alone, logs = torch.load(trained["one"] / f"{case}-1.pt")
    shared, shared_logs = torch.load(trained[way] / f"{case}-2.pt")
    assert alone.keys() == shared.keys() and len(alone) > 10
    largest = max(gradient.abs().max() for gradient in alone.values())
    assert largest > 1e-3
    for name, gradient in alone.items():
        assert (gradient - shared[name]).abs().max() < 1e-5 * max(1, largest), name
    for entry, shared_entry in zip(logs, shared_logs, strict=True):
        terms = {name: value for name, value in entry.items() if "_" in name and name != "learning_rate"}
        assert {name: shared_entry[name] for name in terms} == pytest.approx(terms, rel=1e-3, abs=1e-5)
        assert shared_entry["loss"] == pytest.approx(entry["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "case"), WAYS)
def test_the_table_and_the_saved_model_are_those_of_one_process(way, case, trained):
    alone = torch.load(trained["one"] / f"{case}-1-0-table.pt")
    for process in (0, 1):
        shared = torch.load(trained[way] / f"{case}-2-{process}-table.pt")
        assert shared.keys() == alone.keys()
        for name, column in alone.items():
            assert column.shape == shared[name].shape == (24, 24)
            assert torch.equal(column.isnan(), shared[name].isnan())
            assert (column - shared[name]).nan_to_num().abs().max() < 1e-5, name
    expected = CLIPModel.from_pretrained(trained["one"] / f"{case}-1").state_dict()
    saved = CLIPModel.from_pretrained(trained[way] / f"{case}-2").state_dict()
    assert max((weight - saved[name]).abs().max() for name, weight in expected.items()) < 2e-4
