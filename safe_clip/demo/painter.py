"""A small Stable Diffusion of the world: draws 32-pixel images from the states of the base's text encoder.

`tools/painter.py` trains it. The text encoder is the base's and is not trained, as Stable Diffusion's is OpenAI's.
`load_painter()` gives an ordinary `StableDiffusionPipeline`.
"""

from pathlib import Path

import torch
from diffusers import (
    ConfigMixin,
    DPMSolverMultistepScheduler,
    ModelMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor
from transformers import CLIPTokenizer

from .towers import BASE_DIR, text_tower

PAINTER_DIR = Path(__file__).parent / "models" / "painter"
IMAGE_SIZE = 32


class PixelVAE(ModelMixin, ConfigMixin):
    """In the place of Stable Diffusion's autoencoder, for a UNet that draws pixels: does nothing."""

    @register_to_config
    def __init__(self, block_out_channels: tuple[int, ...] = (1,), latent_channels: int = 3, scaling_factor: float = 1):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))  # what has no weight has neither device nor type

    def decode(self, latents: Tensor, return_dict: bool = True, generator: torch.Generator | None = None):
        """The latents themselves: N x 3 x height x width."""
        return DecoderOutput(sample=latents) if return_dict else (latents,)


def scheduler() -> DPMSolverMultistepScheduler:
    """The noise of training and the steps of drawing."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        thresholding=True,  # Imagen's, for pixels, which guidance drives out of their range
        lambda_min_clipped=-5.1,  # as the library recommends for this schedule
        timestep_spacing="trailing",
        steps_offset=1,  # what the pipeline requires
    )


def load_painter() -> StableDiffusionPipeline:
    """The bundled pipeline in float32, with the text encoder that it was trained on, the base's."""
    return StableDiffusionPipeline(
        vae=PixelVAE(),
        text_encoder=text_tower(),
        tokenizer=CLIPTokenizer.from_pretrained(BASE_DIR),
        unet=UNet2DConditionModel.from_pretrained(PAINTER_DIR, torch_dtype=torch.float32, use_safetensors=True),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
