"""Trains the bundled demo's captioner anew, in minutes on a GPU: `python tools/captioner.py`."""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from scenes import draw_scenes
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from safe_clip.demo.captioner import CAPTIONER_DIR, WEIGHTS_FILE, build_captioner, load_processor
from safe_clip.demo.world import IMAGE_SIZE

LONGEST = 32  # tokens of a caption


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
    patches, image = model.config.image_seq_length, model.config.image_token_id
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
        pixels = (scenes.images[rows].to(device, non_blocking=True).float() / 255 - mean) / std
        ids, mask = tokens["input_ids"][rows].to(device), tokens["attention_mask"][rows].to(device)
        # The first token, the image's, and the caption, whose own first token it is.
        shown = ids.new_full((len(ids), patches), image)
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
