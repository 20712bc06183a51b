"""Models that are asked and never changed, among them the original, as the reference of training."""

import copy
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..errors import UserError
from ..store.fingerprints import weights_digest
from .families import family_of
from .family import Family
from .patches import accept_one_modality

# Ways of drawing an adapter's first weights that leave the original's own weights alone.
HARMLESS_INITS = (True, False, "gaussian")


class FrozenCLIP:
    """A CLIP that is asked and stays as it is: in eval mode, without gradients.

    Args:
        model: of a known family, or a `PeftModel` of one.

    Attributes:
        model: without what wraps it.
    """

    def __init__(self, model: nn.Module):
        self.model = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> ModelOutput:
        """Embeds N captions and M images, or one of the two.

        Args:
            **inputs: `input_ids` and `attention_mask`, `pixel_values`; `output_hidden_states`.

        Returns:
            `text_embeds` (N x dimension) and `image_embeds` (M x dimension), of length 1; `None` for what is not given.
        """
        return self._run(self.model, inputs)

    def _run(self, model: nn.Module, inputs: dict[str, Any]) -> ModelOutput:
        """What `self.model` gives, run through what wraps it, in eval mode, in which it does not stay."""
        training = model.training
        model.eval()
        try:
            with accept_one_modality(self.model):
                return model(**inputs)
        finally:
            model.train(training)

    @cached_property
    def weights(self) -> str:
        """A digest of the weights."""
        return weights_digest(self.model.state_dict().items())

    @property
    def adapters(self) -> dict[str, PeftConfig]:
        """The settings of the adapters that are part of it, by name."""
        return cast(dict, getattr(self.model, "peft_config", {}))

    @property
    def config(self) -> PreTrainedConfig:
        """The model's."""
        return self.model.config

    @property
    def family(self) -> Family:
        """The model's."""
        return family_of(self.model)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.family.dimension(self.config)

    @property
    def logit_scale(self) -> float:
        """The factor that the model learned to put before its cosines (OpenAI's CLIP: 100)."""
        return self.family.scale_of(self.model)

    @property
    def logit_bias(self) -> float | None:
        """What the model learned to add to scaled cosines (SigLIP: about -16); `None` for a CLIP."""
        return self.family.bias_of(self.model)


class FrozenReference(FrozenCLIP):
    """The original CLIP, which training must never move.

    A model trained through adapters already contains it: with the adapters disabled, in eval mode
    and without gradients, it *is* the original, at no memory. Wherever training writes to the
    original's own weights (full fine-tuning, or adapters that also train biases or whole modules),
    the reference is a copy made before training.

    Args:
        model: the model about to be trained: a `PeftModel` whose base is the original, or the
            original itself.

    Raises:
        UserError: the adapter was initialised by moving weights of the original into it.
    """

    def __init__(self, model: nn.Module):
        for config in cast(dict, getattr(model, "peft_config", {})).values():
            init = getattr(config, "init_lora_weights", True)
            if init not in HARMLESS_INITS:
                raise UserError(
                    f"init_lora_weights={init!r} takes weights out of the original model, of which nothing would be "
                    f"left to compare with; use one of {HARMLESS_INITS}."
                )
        shared = isinstance(model, PeftModel) and all(
            "lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad
        )
        # pyrefly: ignore [bad-assignment]: None only beside a copy, which takes its place
        self._shared: PeftModel = model if shared else None
        self._copy: nn.Module | None = None
        if not shared:
            original = copy.deepcopy(model)
            original = original.unload() if isinstance(original, PeftModel) else original
            self._copy = original.requires_grad_(False).eval()
        super().__init__(self._copy or model)

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> ModelOutput:
        """As any `FrozenCLIP`; a copy goes to the device of the inputs."""
        if self._copy is not None:
            device = next(value.device for value in inputs.values() if isinstance(value, Tensor))
            return self._run(self._copy.to(device), inputs)
        trained = [(parameter, parameter.requires_grad) for parameter in self._shared.parameters()]
        try:
            with self._shared.disable_adapter():
                return self._run(self._shared, inputs)
        finally:
            for parameter, requires_grad in trained:  # enabling an adapter again makes all of it trainable
                parameter.requires_grad_(requires_grad)

    def put_away(self) -> None:
        """Frees the device of a copy, until it is called again."""
        if self._copy is not None:
            self._copy.to("cpu")

    def scalable(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """Weights that hold all of what training changed, each with what it was: for LoRA one factor of every update.

        Args:
            model: the model that is trained, as at construction.

        Raises:
            UserError: it has an adapter whose update is not a product with one such factor.
        """
        if self._copy is not None and not isinstance(model, PeftModel):
            before = dict(self._copy.named_parameters())
            return [(weight, before[name]) for name, weight in model.named_parameters() if weight.requires_grad]
        layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        factors = [*_weights(layers, "B")]
        known = {id(weight) for weight in (*_weights(layers, "A"), *factors)}
        if any(weight.requires_grad and id(weight) not in known for weight in model.parameters()):
            raise UserError("--strength requires LoRA or --full_finetuning; this adapter's update cannot be scaled.")
        return [(factor, torch.zeros_like(factor)) for factor in factors]

    @torch.no_grad()
    def scale_update(self, model: nn.Module, strength: float) -> None:
        """Takes the trained model to a point between the original (0) and what it became (1), in place.

        Raises:
            UserError: as `scalable`.
        """
        for weight, before in self.scalable(model):
            weight.lerp_(before.to(weight), 1 - strength)

    @cached_property
    def weights(self) -> str:
        """A digest of the original's weights."""
        named = ((name.replace(".base_layer.", "."), weight) for name, weight in self.model.state_dict().items())
        return weights_digest((name, weight) for name, weight in named if "lora_" not in name)

    @property
    def adapters(self) -> dict[str, PeftConfig]:
        """None: what is trained is not part of it."""
        return {}


def _weights(layers: Iterable[LoraLayer], factor: str) -> Iterator[nn.Parameter]:
    """The first (`A`) or second (`B`) factors of the updates of layers."""
    for layer in layers:
        yield from (part.weight for part in getattr(layer, f"lora_{factor}").values())
        yield from getattr(layer, f"lora_embedding_{factor}").values()
