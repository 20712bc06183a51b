"""Trains the bundled demo's painter anew, in minutes on a GPU: `python tools/painter.py`."""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from scenes import draw_scenes
from tqdm.auto import tqdm
from transformers import CLIPTokenizer, get_cosine_schedule_with_warmup

from safe_clip.demo.painter import IMAGE_SIZE, PAINTER_DIR, scheduler
from safe_clip.demo.towers import BASE_DIR, text_tower

UNCONDITIONAL = 0.1  # share of captions left out, for classifier-free guidance
SAVED_EVERY = 1000  # steps
SNR_GAMMA = 5.0  # Min-SNR weighting, Hang et al., 2023, arXiv 2303.09556


def build_unet() -> UNet2DConditionModel:
    """One with random weights, some three million."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE,
        in_channels=3,
        out_channels=3,
        block_out_channels=(48, 80, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=(3, 5, 6),  # the number of heads, as in Stable Diffusion 1.x
        norm_num_groups=16,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=PAINTER_DIR)
    parser.add_argument("--scenes", type=int, default=400_000)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    accelerator = Accelerator(mixed_precision="bf16")
    device = accelerator.device
    scenes = draw_scenes(args.scenes, "painter", IMAGE_SIZE)
    tokenizer = CLIPTokenizer.from_pretrained(BASE_DIR)
    text_encoder = text_tower().to(device).requires_grad_(False)
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    tokens = tokenizer(scenes.captions, **padded)["input_ids"].to(torch.int16)
    nothing = tokenizer([""], **padded)["input_ids"].to(device)

    torch.manual_seed(args.seed)
    unet, noising = build_unet(), DDPMScheduler.from_config(scheduler().config)
    print(f"{unet.num_parameters():,} parameters")
    ema = EMAModel(unet.parameters(), decay=0.9995, use_ema_warmup=True, power=0.75)
    ema.to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), args.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 40, args.steps)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    unet.train()
    bar = tqdm(range(args.steps), "Training the painter", mininterval=10)
    for step in bar:
        rows = torch.randint(len(scenes), (args.batch_size,))
        images = scenes.images[rows].to(device, non_blocking=True).float() / 127.5 - 1
        ids = tokens[rows].to(device, non_blocking=True).long()
        ids = torch.where(torch.rand(len(ids), 1, device=device) < UNCONDITIONAL, nothing, ids)
        with torch.no_grad(), accelerator.autocast():
            states = text_encoder(ids).last_hidden_state
        noise, times = torch.randn_like(images), torch.randint(1000, (len(images),), device=device)
        noisy = noising.add_noise(images, noise, times)
        with accelerator.autocast():
            made = unet(noisy, times, encoder_hidden_states=states).sample.float()
        snr = compute_snr(noising, times)
        weights = snr.clamp(max=SNR_GAMMA) / (snr + 1)
        errors = F.mse_loss(made, noising.get_velocity(images, noise, times), reduction="none").mean(dim=(1, 2, 3))
        loss = (weights * errors).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        ema.step(unet.parameters())
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if step % SAVED_EVERY == SAVED_EVERY - 1 or step == args.steps - 1:
            averaged = build_unet().to(device)
            ema.copy_to(averaged.parameters())
            averaged.half().save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
