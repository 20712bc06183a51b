"""What a LLaVA says about images of your own, with its own vision tower and with a safe one.

python examples/llava.py photos llava-hf/llava-1.5-7b-hf you/safe-clip-336

The safe CLIP is one that `safe-clip train` made of the CLIP that the LLaVA was made with, which for LLaVA 1.5 is
openai/clip-vit-large-patch14-336; another is refused.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from safe_clip import UserError, safe_image_to_text

QUESTION = "USER: <image>\nWhat does the image show? ASSISTANT:"


def main(folder: str, generator: str, safe: str, most: int = 8, words: int = 40) -> list[tuple[str, str, str]]:
    files = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))[:most]
    if not files:
        raise UserError(f"{folder} holds no image (.jpg, .jpeg or .png).")
    images = [Image.open(file).convert("RGB") for file in files]
    processor = AutoProcessor.from_pretrained(generator)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    llava = AutoModelForImageTextToText.from_pretrained(generator).eval().to(device)
    before = [caption(llava, processor, image, words) for image in images]
    llava = safe_image_to_text(llava, safe)  # the same model, which looks with the safe tower from here on
    after = [caption(llava, processor, image, words) for image in images]
    said = [(file.name, *both) for file, *both in zip(files, before, after, strict=True)]
    for name, one, other in said:
        print(f"{name}\n  before: {one}\n  after:  {other}")
    return said


@torch.inference_mode()
def caption(llava, processor, image: Image.Image, words: int) -> str:
    inputs = processor(images=image, text=QUESTION, return_tensors="pt").to(llava.device, llava.dtype)
    made = llava.generate(**inputs, do_sample=False, max_new_tokens=words)
    return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
