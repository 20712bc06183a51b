"""Settings that `transformers` or this package had once, and what stands in their place."""

LEAVE_OUT = "`transformers` has it no more; leave it out."
# Of each old name the setting that does the same now, and how where it is no mere renaming.
RENAMED = {
    "warmup_ratio": ("warmup_steps", "below 1 it is a share of all steps"),
    "evaluation_strategy": ("eval_strategy", ""),
    "evaluate_during_training": ("eval_strategy", "steps or epoch"),
    "group_by_length": ("train_sampling_strategy", "group_by_length"),
    "no_cuda": ("use_cpu", ""),
    "adafactor": ("optim", "adafactor"),
    "push_to_hub_token": ("hub_token", ""),
    "push_to_hub_model_id": ("hub_model_id", ""),
    "push_to_hub_organization": ("hub_model_id", "as ORGANIZATION/NAME"),
    "per_gpu_train_batch_size": ("per_device_train_batch_size", ""),
    "per_gpu_eval_batch_size": ("per_device_eval_batch_size", ""),
    "half_precision_backend": ("bf16", "or fp16"),
    "fp16_backend": ("bf16", "or fp16"),
    "fp16_opt_level": ("bf16", "or fp16"),
    "sharded_ddp": ("fsdp", ""),
    "fsdp_min_num_params": ("fsdp_config", "a mapping with min_num_params"),
    "fsdp_transformer_layer_cls_to_wrap": ("fsdp_config", "a mapping with transformer_layer_cls_to_wrap"),
    "dispatch_batches": ("accelerator_config", "a mapping with dispatch_batches"),
    "split_batches": ("accelerator_config", "a mapping with split_batches"),
    "torchdynamo": ("torch_compile_backend", ""),
    "xpu_backend": ("ddp_backend", ""),
    "include_inputs_for_metrics": ("include_for_metrics", "inputs"),
    "include_tokens_per_second": ("include_num_input_tokens_seen", ""),
    # Of this package.
    "missing_pictures": ("missing_images", ""),
    "cache_pictures": ("cache_images", ""),
    "generators": ("hidden_state_terms", ""),
    "no_generators": ("hidden_state_terms", "--no_hidden_state_terms"),
    "task": ("tasks", ""),
}
DROPPED = {
    "logging_dir": "Its place is taken by the environment variable TENSORBOARD_LOGGING_DIR.",
    "save_safetensors": "Weights are always saved as safetensors; leave it out.",
    "use_mps_device": "An Apple GPU is used where there is one; leave it out.",
}
DROPPED |= dict.fromkeys(
    ("jit_mode_eval", "mp_parameters", "past_index", "ray_scope", "torch_empty_cache", "tpu_metrics_debug"), LEAVE_OUT
)
DROPPED |= dict.fromkeys(("tpu_num_cores", "use_ipex", "use_legacy_prediction_loop"), LEAVE_OUT)


def now(name: str, known: list[str]) -> str | None:
    """What stands in the place of an old setting, as a sentence; `None` where it is none.

    Args:
        name: what was given.
        known: the settings that there are.
    """
    if name in DROPPED:
        return DROPPED[name]
    new, how = RENAMED.get(name, (None, ""))
    return f"It is called {new} now{f' ({how})' if how else ''}." if new in known else None
