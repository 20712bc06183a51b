"""Whether an image processor makes the pixels that an image encoder takes."""

from PIL import Image
from transformers import BaseImageProcessor

from ..errors import UserError

BRIGHTEST = 10.0  # pixel: with OpenAI's mean and deviation white is 2.1 at most, with one half each it is 1
LEAST_CONTRAST = 0.2  # between white and black: 4 with OpenAI's deviation, 1 without any


def check_pixels(image_processor: BaseImageProcessor, expected: int) -> None:
    """Checks the size and the range of what becomes of images.

    Args:
        image_processor: as it belongs to a CLIP.
        expected: the side of the square that the model takes, in pixels.

    Raises:
        UserError: images would be of another size, or too bright, or nearly alike.
    """
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    made = (size["height"], size["width"]) if "height" in size else (size.get("shortest_edge"),) * 2
    if not image_processor.do_center_crop and "height" not in size:
        raise UserError(
            "the image processor neither crops nor fixes both sides, so that images keep their shape, but the model "
            f"takes {expected}x{expected} pixels. Use the processor that belongs to the model, or set `do_center_crop`."
        )
    if made != (expected, expected):
        raise UserError(
            f"the image processor makes images of {made[0]}x{made[1]} pixels, but the model takes "
            f"{expected}x{expected}. Use the processor that belongs to the model, or set its `size` and `crop_size`."
        )
    if not (image_processor.do_resize or image_processor.do_center_crop):
        raise UserError(
            f"the image processor neither resizes nor crops (do_resize, do_center_crop), but the model takes "
            f"{expected}x{expected} pixels. Use the processor that belongs to the model, or set its `do_resize`."
        )
    images = [Image.new("RGB", (expected, expected), colour) for colour in ("white", "black")]
    white, black = image_processor(images, return_tensors="pt")["pixel_values"]
    brightest = max(white.abs().max(), black.abs().max())
    cure = "set its `do_rescale`, `rescale_factor` (1/255) and `image_std`, or use the processor of the model"
    if not brightest <= BRIGHTEST:
        raise UserError(
            f"the image processor makes {brightest:g} of white or black, where a CLIP is used to about 2: {cure}."
        )
    if not (contrast := (white - black).min()) >= LEAST_CONTRAST:
        raise UserError(
            f"the image processor leaves {contrast:g} between black and white, where a CLIP is used to about 4, so "
            f"that all images come out nearly alike: {cure}."
        )
