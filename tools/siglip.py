"""Makes the bundled SigLIP of the demo world, of the bundled CLIP's size and from its weights.

Run `python tools/siglip.py` to make `safe_clip/demo/siglip/` anew, in about 20 minutes on one core. Layers and
embeddings start as the CLIP's; what a SigLIP has of its own (pooling of images by attention, a last position that
pools the caption, a scale and a bias) is learnt on scenes that are drawn as training goes, each with its unsafe
counterpart in the same batch. The loss is the sigmoid loss of `SiglipModel` and the distance of each embedding from
the CLIP's of the same item, which takes a fraction of the steps that the CLIP took. An interrupted run goes on from
its last checkpoint when started again; delete `safe_clip/demo/siglip-checkpoints/` to start anew.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from pretrain import Scenes
from torch.nn.functional import cosine_similarity
from transformers import (
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from safe_clip.models.load import BUNDLED

LENGTH = 40  # tokens of a caption: the longest of the demo's has 39
BIAS = -10.0  # of the logits, to begin with (Zhai et al., section 3.2)
DISTILLED = 20.0  # weight of the distance from the CLIP's embeddings


def build_model(clip: CLIPModel, pad: int) -> SiglipModel:
    """A `SiglipModel` of the CLIP's widths and depths, with all of the CLIP's weights that it has a place for."""
    towers = {}
    for name in ("text_config", "vision_config"):
        given = getattr(clip.config, name)
        shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        towers[name] = {key: getattr(given, key) for key in shape}
    text, vision = clip.config.text_config, clip.config.vision_config
    towers["text_config"] |= {"vocab_size": text.vocab_size, "max_position_embeddings": LENGTH}
    towers["text_config"] |= {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": pad}
    towers["vision_config"] |= {"image_size": vision.image_size, "patch_size": vision.patch_size}
    model = SiglipModel(SiglipConfig(**towers))
    given, own = clip.state_dict(), model.state_dict()
    positions = "embeddings.position_embedding.weight"
    given[f"text_model.{positions}"] = given[f"text_model.{positions}"][:LENGTH]
    given[f"vision_model.{positions}"] = given[f"vision_model.{positions}"][1:]  # the first is that of the class
    given["text_model.head.weight"] = given["text_projection.weight"]
    shared = {name: weight for name, weight in given.items() if name in own and weight.shape == own[name].shape}
    shared["logit_scale"] = given["logit_scale"].reshape(1)
    shared["logit_bias"] = torch.full((1,), BIAS)
    model.load_state_dict(own | shared)
    print(f"{model.num_parameters():,} parameters, {sum(map(torch.numel, shared.values())):,} of them from the CLIP")
    return model


@dataclass
class Collator:
    """Items of both sides, as each of the two models takes them."""

    processor: SiglipProcessor
    clip_processor: CLIPProcessor

    def __call__(self, scenes: list[list[dict]]) -> dict:
        items = [item for scene in scenes for item in scene]
        texts, images = [item["caption"] for item in items], [item["image"] for item in items]
        tokens = self.processor.tokenizer(
            texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        )
        clip = self.clip_processor(text=texts, images=images, padding=True, return_tensors="pt")
        # The two processors make the same pixels of the world's images.
        return {"input_ids": tokens["input_ids"], "pixel_values": clip["pixel_values"], "clip": clip}


class Distilling(Trainer):
    """Trains by the sigmoid loss, and by how far embeddings lie from those of a CLIP."""

    def __init__(self, clip: CLIPModel, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.clip = clip.to(self.args.device).eval()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            known = self.clip(**inputs.pop("clip"))
        output = model(**inputs, return_loss=True)
        distance = sum(
            (1 - cosine_similarity(made, meant)).mean()
            for made, meant in (
                (output.text_embeds, known.text_embeds),
                (output.image_embeds, known.image_embeds),
            )
        )
        loss = output.loss + DISTILLED * distance
        return (loss, output) if return_outputs else loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=BUNDLED["demo-siglip"])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch_size", type=int, default=128, help="captioned images a step")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    clip, clip_processor = CLIPModel.from_pretrained(BUNDLED["demo"]), CLIPProcessor.from_pretrained(BUNDLED["demo"])
    tokenizer = CLIPTokenizer.from_pretrained(BUNDLED["demo"], model_max_length=LENGTH, model_input_names=["input_ids"])
    side, normalised = clip.config.vision_config.image_size, clip_processor.image_processor
    images = SiglipImageProcessor(
        size={"height": side, "width": side}, image_mean=normalised.image_mean, image_std=normalised.image_std
    )
    model, processor = build_model(clip, tokenizer.pad_token_id), SiglipProcessor(images, tokenizer)
    folder = Path(f"{args.output_dir}-checkpoints")
    trainer = Distilling(
        clip,
        model,
        TrainingArguments(
            output_dir=str(folder),
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size // 2,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=args.steps // 20,
            weight_decay=0.1,
            adam_beta2=0.98,
            max_grad_norm=1.0,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=50,
            save_steps=250,
            save_total_limit=1,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            seed=args.seed,
        ),
        data_collator=Collator(processor, clip_processor),
        train_dataset=Scenes(args.steps * args.batch_size // 2, "siglip", both_sides=True),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    model.half().save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
