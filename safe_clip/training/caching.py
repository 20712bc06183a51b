"""What of the training rows is computed once, before training, and why it may not be."""

from typing import Any

from accelerate import Accelerator
from transformers import ProcessorMixin

from ..data.pixels import cache_size, has_room, pixel_shape
from ..data.streams import QuadrupletStream
from ..errors import UserError
from .arguments import SafeCLIPTrainingArguments
from .targets import Targets


def compute_once(
    rows: Any,
    processor: ProcessorMixin,
    collator: Any,
    targets: Targets,
    args: SafeCLIPTrainingArguments,
    accelerator: Accelerator,
) -> None:
    """Decodes the images of the training rows and embeds the rows by the original, as far as this may be done once.

    Args:
        rows: of the training, or a stream of them.
        processor: of the model.
        collator: of the trainer.
        targets: which ask the original.
        args, accelerator: the trainer's.
    """
    _cache_images(rows, processor, args, accelerator)
    cache = args.reference_cache != "off"
    if cache and (why := _why_not_cached(rows, args, targets)):
        cache = False
        if args.process_index == 0 and not args.disable_tqdm:
            print(f"The original model is run at every step: {why}.", flush=True)
    targets.prepare(rows, collator, cache)


def _cache_images(
    rows: Any, processor: ProcessorMixin, args: SafeCLIPTrainingArguments, accelerator: Accelerator
) -> None:
    """Has the training images decoded once, where that is asked for or costs nobody anything."""
    wanted, streamed = args.cache_images, isinstance(rows, QuadrupletStream)
    whole = not streamed and rows.layout is not None and rows.augment is None
    sees = processor.image_processor is not None
    shape = pixel_shape(processor.image_processor) if wanted != "off" and whole and sees else None
    if wanted == "on" and shape is None:
        raise UserError(
            "--cache_images on requires rows of a data set, no stream, no --random_crop, and an image processor "
            "whose pixels are levels from 0 to 255."
        )
    if shape is None or (wanted == "auto" and not has_room(cache_size(rows.rows, shape))):
        return
    progress = not args.disable_tqdm and args.process_index == 0
    rows.cache_images(processor.image_processor, args.dataloader_num_workers, progress, accelerator)


def _why_not_cached(rows: Any, args: SafeCLIPTrainingArguments, targets: Targets) -> str | None:
    """Why the original's embeddings of the training rows may not be computed once; `None` where they may."""
    if args.random_crop is not None:
        return "images are cropped at random (--random_crop), so that the original model has to see each crop"
    if rows.augment is not None:
        return "images are changed as they are read, so that the original model has to see each change"
    if isinstance(rows, QuadrupletStream):
        return "rows come in a stream, without numbers to find them by"
    if not has_room(size := targets.table_size(len(rows))):
        return f"what it says of the training rows, {size / 1e9:,.0f} GB, would take over half of the free disk"
    return None
