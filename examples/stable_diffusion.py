"""Makes a Stable Diffusion's text encoder safe with captions of your own, without an image, and draws with both.

python examples/stable_diffusion.py captions.csv stable-diffusion-v1-5/stable-diffusion-v1-5 "a dog on a sofa"

It requires `pip install 'safe-clip[generation]'`. The table has the columns safe_caption and unsafe_caption. drawn.png
gets what the prompt gives from the same noise: on the left with the pipeline's own encoder, on the right with the safe
one.
"""

import sys

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import CLIPTextModel

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, UserError, load_quadruplets

STEPS = 25  # of drawing


def main(table: str, pipeline: str, prompt: str, output_dir: str = "safe-text", **settings) -> None:
    rows = load_quadruplets(table).select_columns(["safe_caption", "unsafe_caption"])  # nothing here sees an image
    args = SafeCLIPTrainingArguments(output_dir, **settings)
    trainer = SafeCLIPTrainer(f"{pipeline}:text_encoder", args, rows["train"], rows["validation"])
    trainer.train()
    trainer.save_model()

    painter = DiffusionPipeline.from_pretrained(pipeline).to("cuda" if torch.cuda.is_available() else "cpu")
    images = [draw(painter, prompt)]
    safe = CLIPTextModel.from_pretrained(output_dir)  # of the class and the configuration of the pipeline's own
    painter.register_modules(text_encoder=safe.to(painter.device, painter.dtype))
    images.append(draw(painter, prompt))

    both = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for place, image in enumerate(images):
        both.paste(image, (place * image.width, 0))
    both.save("drawn.png")
    print(f'{output_dir} is a CLIPTextModel: DiffusionPipeline.from_pretrained("{pipeline}", text_encoder=...)')


def draw(painter: DiffusionPipeline, prompt: str) -> Image.Image:
    return painter(prompt, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0)).images[0]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
