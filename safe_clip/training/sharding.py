"""Training in shards: under FSDP2, or DeepSpeed's ZeRO-2."""

from peft import PeftModel
from torch.distributed.fsdp import StateDictType

from ..errors import UserError
from ..models.preparation import accept_sharding


class ShardingMixin:
    """For a `Trainer` of a CLIP, of which a process may have a part alone."""

    def _prepare_sharding(self, mixed: bool) -> None:
        """Makes the model ready for FSDP2 or DeepSpeed, or raises `UserError` for what they cannot do.

        Args:
            mixed: whether a process may be dealt rows of one modality, whose other tower the others would wait for.
        """
        state = self.accelerator.state
        plugin = getattr(state, "fsdp_plugin", None)
        how = "FSDP" if self.is_fsdp_enabled else "DeepSpeed"
        if plugin is not None and (plugin.fsdp_version != 2 or plugin.state_dict_type != StateDictType.FULL_STATE_DICT):
            raise UserError(
                "FSDP wants fsdp_version 2 and FULL_STATE_DICT checkpoints, as in configs/accelerate/fsdp2.yaml."
            )
        if getattr(getattr(state, "deepspeed_plugin", None), "zero_stage", None) == 3:
            raise UserError(
                "DeepSpeed's ZeRO-3 leaves no weights to save; use ZeRO-2, or configs/accelerate/fsdp2.yaml."
            )
        if mixed:
            raise UserError(f"{how} wants rows that have all items, or a single modality; others train under DDP.")
        if self.args.strength != 1 and not isinstance(self.model, PeftModel):
            raise UserError(f"--strength with --full_finetuning wants DDP; under {how}, use LoRA or export it later.")
        accept_sharding(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)
        # The original embeds the training rows before there are shards.
        self._move_model_to_device(self.model, self.args.device)

    @property
    def is_sharded(self) -> bool:
        """Whether no process has the whole model while it is trained."""
        return self.is_fsdp_enabled or self.is_deepspeed_enabled
