"""A small LLaVA of the world: tells from the patch states of the base's vision tower what a picture shows.

Run `python -m safe_clip.demo.captioner` to train it anew, in minutes on a GPU. The vision tower is the base's and is
not trained, as LLaVA's is OpenAI's; the projector and the small Llama behind it are. `load_captioner()` gives an
ordinary `LlavaForConditionalGeneration`.
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from tokenizers import decoders
from tokenizers.processors import TemplateProcessing
from tqdm.auto import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from .pretrain import BASE_DIR, vision_tower
from .scenes import draw_scenes
from .world import IMAGE_SIZE

CAPTIONER_DIR = Path(__file__).parent / "models" / "captioner"
WEIGHTS_FILE = "captioner.safetensors"  # without those of the vision tower, which are the base's
IMAGE_TOKEN = "<image>"
LONGEST = 32  # tokens of a caption


def load_processor() -> LlavaProcessor:
    """Makes the captioner's inputs; the prompt is the image token alone."""
    # Captions begin and end by the tokens of the base; what is to be gone on with must not end.
    base = CLIPTokenizer.from_pretrained(BASE_DIR)
    backend = base.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{base.bos_token} $A", special_tokens=[(base.bos_token, base.bos_token_id)]
    )
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=base.bos_token,
        eos_token=base.eos_token,
        pad_token=base.pad_token,
        unk_token=base.unk_token,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )
    vision = CLIPConfig.from_pretrained(BASE_DIR).vision_config
    return LlavaProcessor(
        CLIPImageProcessor.from_pretrained(BASE_DIR),
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def build_captioner(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The base's vision tower, and some 1.6 million random weights behind it."""
    tokenizer = processor.tokenizer
    width = 160
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPConfig.from_pretrained(BASE_DIR).vision_config
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            image_seq_length=(vision.image_size // vision.patch_size) ** 2,
            vision_feature_layer=-2,  # as in LLaVA
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
        )
    )
    model.model.vision_tower = vision_tower().requires_grad_(False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def load_captioner() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The embedded captioner in float32 and evaluation mode, with the vision tower that it was trained on."""
    processor = load_processor()
    model = build_captioner(processor)
    trained = {name: weight.float() for name, weight in load_file(CAPTIONER_DIR / WEIGHTS_FILE).items()}
    missing, unexpected = model.load_state_dict(trained, strict=False)
    left = [name for name in missing if "vision_tower" not in name and name != "lm_head.weight"]
    if left or unexpected:
        raise OSError(f"{CAPTIONER_DIR / WEIGHTS_FILE} does not fit the captioner: {left or unexpected}")
    return model.eval(), processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=CAPTIONER_DIR)
    parser.add_argument("--scenes", type=int, default=150_000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    accelerator = Accelerator(mixed_precision="bf16")
    device = accelerator.device
    scenes = draw_scenes(args.scenes, "captioner", IMAGE_SIZE)
    torch.manual_seed(args.seed)
    processor = load_processor()
    tokenizer, images = processor.tokenizer, processor.image_processor
    model = build_captioner(processor)
    print(f"{sum(weight.numel() for weight in model.parameters() if weight.requires_grad):,} weights to train")
    patches, picture = model.config.image_seq_length, model.config.image_token_id
    ends = tokenizer.eos_token
    tokens = tokenizer(
        [caption + ends for caption in scenes.captions],
        padding="max_length",
        padding_side="right",
        truncation=True,
        max_length=LONGEST,
        return_tensors="pt",
    )
    mean, std = (torch.tensor(levels, device=device).view(3, 1, 1) for levels in (images.image_mean, images.image_std))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, args.learning_rate, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    bar = tqdm(range(args.steps), "Training the captioner", mininterval=10)
    for step in bar:
        rows = torch.randint(len(scenes), (args.batch_size,))
        pixels = (scenes.pictures[rows].to(device, non_blocking=True).float() / 255 - mean) / std
        ids, mask = tokens["input_ids"][rows].to(device), tokens["attention_mask"][rows].to(device)
        # The first token, the image's, and the caption, whose own first token it is.
        shown = ids.new_full((len(ids), patches), picture)
        inputs = torch.cat([ids[:, :1], shown, ids[:, 1:]], dim=1)
        labels = torch.cat(
            [ids.new_full((len(ids), 1 + patches), -100), ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)], dim=1
        )
        loss = model(input_ids=inputs, pixel_values=pixels, labels=labels).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    kept = {
        name: weight.detach().half().cpu().contiguous()
        for name, weight in model.state_dict().items()
        if "vision_tower" not in name and name != "lm_head.weight"
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    save_file(kept, args.output_dir / WEIGHTS_FILE)


if __name__ == "__main__":
    main()
