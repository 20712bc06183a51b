"""What the devices of a training can do."""

import os

import torch


def fast_in_bfloat16(on_cpu: bool) -> bool:
    """Whether the device computes faster in bfloat16 than in float32."""
    if not on_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def workers() -> int:
    """Processes that read rows beside a GPU, of which this machine has several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
