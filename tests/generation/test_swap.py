import copy
import sys

import pytest
import torch
from accelerate import cpu_offload
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    T5Config,
    T5EncoderModel,
)

from safe_clip import UserError, safe_image_to_text, safe_text_to_image
from safe_clip.models.load import DEMO_DIR

from ..helpers import build_model

diffusers = pytest.importorskip("diffusers")

PROMPTS = ["a red square", "a blue square beside a green one"]
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 4,
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    diffusers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="module")
def clip(processor) -> CLIPModel:
    """The original."""
    return build_model(processor)


@pytest.fixture(scope="module")
def safe(clip) -> CLIPModel:
    """The original, of which only what adapters reach has moved."""
    torch.manual_seed(1)
    model = copy.deepcopy(clip)
    for name, weight in model.named_parameters():
        if "layers" in name or "text_projection" in name:
            weight.data += 0.1 * torch.randn_like(weight)
    return model


def changed(model: CLIPModel, part: str, **settings) -> CLIPModel:
    """A CLIP of random weights, one of whose configurations is another."""
    config = copy.deepcopy(model.config)
    for name, value in settings.items():
        setattr(getattr(config, part), name, value)
    return CLIPModel(config)


def text_encoder(clip: CLIPModel, kind: type = CLIPTextModel, layers: int = 2):
    config = copy.deepcopy(clip.config.text_config)
    config.num_hidden_layers = layers
    encoder = kind(config)
    weights = {name: weight for name, weight in clip.text_model.state_dict().items() if f"layers.{layers}" not in name}
    getattr(encoder, "text_model", encoder).load_state_dict(weights)
    if kind is CLIPTextModelWithProjection:
        encoder.text_projection.load_state_dict(clip.text_projection.state_dict())
    return encoder.eval()


def stable_diffusion(encoder, tokenizer):
    torch.manual_seed(2)
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=[32, 32], norm_num_groups=8, latent_channels=4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(cross_attention_dim=32, **UNET),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(encoder, second, tokenizer):
    torch.manual_seed(3)
    return diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=[32, 32], norm_num_groups=8, latent_channels=4),
        text_encoder=encoder,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=diffusers.UNet2DConditionModel(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            **UNET,
        ),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        add_watermarker=False,
    )


def llava(clip: CLIPModel) -> LlavaForConditionalGeneration:
    torch.manual_seed(4)
    language = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = LlavaConfig(
        vision_config=copy.deepcopy(clip.config.vision_config), text_config=language, image_token_index=63
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    return model


@pytest.fixture
def painter(clip, processor):
    return stable_diffusion(text_encoder(clip), processor.tokenizer)


@pytest.fixture(scope="module")
def painter_dir(clip, processor, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("sd")
    stable_diffusion(text_encoder(clip), processor.tokenizer).save_pretrained(folder)
    return str(folder)


def states(model: CLIPModel, tokenizer, prompts: list[str] = PROMPTS):
    """What the model's text encoder gives for prompts as a pipeline pads them, and the token ids."""
    tokens = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.text_model(tokens, output_hidden_states=True)


def draw(pipeline, seed: int = 0, prompts=PROMPTS, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": 2, "output_type": "pt", "height": 16, "width": 16, **options}
    return pipeline(prompts, generator=generator, **options).images


def weights(module) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("by_name", [True, False])
def test_stable_diffusion_reads_prompts_with_the_safe_clip(by_name, painter, painter_dir, safe, processor, tmp_path):
    model, pipeline = safe, painter
    if by_name:
        safe.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        model, pipeline = str(tmp_path), painter_dir
    made = safe_text_to_image(pipeline, model)
    assert type(made) is diffusers.StableDiffusionPipeline and type(made.text_encoder) is CLIPTextModel
    assert not made.text_encoder.training and made.config["text_encoder"] == ("transformers", "CLIPTextModel")
    embeds, _ = made.encode_prompt(PROMPTS, "cpu", 1, False)
    torch.testing.assert_close(embeds, states(safe, processor.tokenizer).last_hidden_state)


def test_images_change_and_depend_on_the_seed_alone(painter, safe):
    before = draw(painter)
    others = {name: weights(getattr(painter, name)) for name in ("unet", "vae")}
    made = safe_text_to_image(painter, safe)
    assert made is painter
    after = draw(made)
    assert after.shape == (2, 3, 16, 16) and (after - before).abs().max() > 1e-4
    assert torch.equal(after, draw(made)) and not torch.equal(after, draw(made, seed=1))
    assert all(equal(others[name], weights(getattr(made, name))) for name in others)


def test_the_original_clip_draws_the_same_bits(painter, clip):
    before = draw(painter, negative_prompt=["a mark", "a mark"])
    assert torch.equal(draw(safe_text_to_image(painter, clip), negative_prompt=["a mark", "a mark"]), before)


def test_negative_prompts_are_read_by_it_too(painter, safe, processor):
    made = safe_text_to_image(painter, safe)
    _, negative = made.encode_prompt(PROMPTS, "cpu", 1, True, negative_prompt=["a mark", "a mark"])
    torch.testing.assert_close(negative, states(safe, processor.tokenizer, ["a mark", "a mark"]).last_hidden_state)
    assert not torch.equal(draw(made, negative_prompt=["a mark", "a mark"]), draw(made))


def test_the_encoder_that_was_there_stays_as_it_was(painter, safe):
    encoder = painter.text_encoder
    before = weights(encoder)
    made = safe_text_to_image(painter, safe)
    assert made.text_encoder is not encoder and equal(weights(encoder), before)


def test_dtype_attention_and_configuration_are_those_of_the_old_encoder(painter_dir, clip, safe):
    encoder = CLIPTextModel._from_config(copy.deepcopy(clip.config.text_config), attn_implementation="eager")
    getattr(encoder, "text_model", encoder).load_state_dict(clip.text_model.state_dict())
    encoder.config.eos_token_id = 2
    made = safe_text_to_image(painter_dir, safe, torch_dtype=torch.float16, text_encoder=encoder.half())
    assert made.text_encoder.dtype == made.unet.dtype == torch.float16
    assert made.text_encoder.config._attn_implementation == "eager" and made.text_encoder.config.eos_token_id == 2


def test_a_changed_pipeline_is_saved_and_loaded_as_any_other(painter, safe, tmp_path):
    made = safe_text_to_image(painter, safe)
    made.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    assert equal(weights(again.text_encoder), weights(made.text_encoder)) and torch.equal(draw(again), draw(made))


def test_sdxl_reads_the_safe_penultimate_states_and_keeps_its_second_encoder(clip, safe, processor, caplog):
    second = text_encoder(build_model(processor, seed=5), CLIPTextModelWithProjection)
    pipeline = sdxl(text_encoder(clip), second, processor.tokenizer)
    second_before, image_before = weights(second), draw(pipeline)
    made = safe_text_to_image(pipeline, safe)
    assert made.text_encoder_2 is second and equal(weights(second), second_before)
    embeds = made.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(embeds[..., :32], states(safe, processor.tokenizer).hidden_states[-2])
    assert (draw(made) - image_before).abs().max() > 1e-4
    assert "text_encoder_2 reads prompts as before" in caplog.text


def test_an_encoder_that_was_cut_off_is_cut_off_again(clip, safe, processor):
    made = safe_text_to_image(stable_diffusion(text_encoder(clip, layers=1), processor.tokenizer), safe)
    assert made.text_encoder.config.num_hidden_layers == 1
    embeds, _ = made.encode_prompt(PROMPTS, "cpu", 1, False)
    with torch.no_grad():
        after_one = safe.text_model.final_layer_norm(states(safe, processor.tokenizer).hidden_states[1])
    torch.testing.assert_close(embeds, after_one)


def test_a_projection_comes_along(clip, safe, processor):
    pipeline = stable_diffusion(text_encoder(clip, CLIPTextModelWithProjection), processor.tokenizer)
    made = safe_text_to_image(pipeline, safe)
    assert type(made.text_encoder) is CLIPTextModelWithProjection
    tokens = processor.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            made.text_encoder(**tokens).text_embeds, safe.get_text_features(**tokens).pooler_output
        )


def test_the_demo_clip_by_its_name():
    original = CLIPModel.from_pretrained(DEMO_DIR)
    pipeline = stable_diffusion(text_encoder(original, layers=3), CLIPTokenizer.from_pretrained(DEMO_DIR))
    made = safe_text_to_image(pipeline, "demo")
    assert equal(weights(getattr(made.text_encoder, "text_model", made.text_encoder)), weights(original.text_model))


def test_the_demo_painter_and_captioner_by_their_name(painter, clip, safe, monkeypatch):
    generator = llava(clip)
    monkeypatch.setattr("safe_clip.demo.painter.load_painter", lambda: painter)
    monkeypatch.setattr("safe_clip.demo.captioner.load_captioner", lambda: (generator, None))
    assert safe_text_to_image("demo", safe) is painter and safe_image_to_text("demo", safe) is generator
    assert equal(weights(generator.model.vision_tower), weights(safe.vision_model))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 64}, "has hidden_size 32, but the safe model 64"),
        ({"intermediate_size": 32}, "has intermediate_size 64, but the safe model 32"),
        ({"num_attention_heads": 4}, "has num_attention_heads 2, but the safe model 4"),
        ({"hidden_act": "gelu"}, "has hidden_act quick_gelu, but the safe model gelu"),
        ({"vocab_size": 700}, r"has vocab_size \d+, but the safe model 700"),
        ({"max_position_embeddings": 64}, "has max_position_embeddings 77, but the safe model 64"),
        ({"num_hidden_layers": 1}, "has num_hidden_layers 2, but the safe model only 1"),
    ],
)
def test_a_text_encoder_of_another_shape(painter, clip, settings, message):
    before = painter.text_encoder
    with pytest.raises(UserError, match=f"the text encoder of the StableDiffusionPipeline {message}"):
        safe_text_to_image(painter, changed(clip, "text_config", **settings))
    assert painter.text_encoder is before


def test_a_projection_of_another_size(clip, processor):
    pipeline = stable_diffusion(text_encoder(clip, CLIPTextModelWithProjection), processor.tokenizer)
    other = copy.deepcopy(clip.config)
    other.projection_dim = 16
    with pytest.raises(UserError, match="has projection_dim 24, but the safe model 16"):
        safe_text_to_image(pipeline, CLIPModel(other))


@pytest.mark.parametrize(
    "width, base",
    [
        (768, "openai/clip-vit-large-patch14"),
        (1024, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        (1280, "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
    ],
)
def test_the_likely_original_is_named(painter, clip, width, base):
    config = copy.deepcopy(clip.config.text_config)
    config.hidden_size, config.num_hidden_layers = width, 1
    painter.register_modules(text_encoder=CLIPTextModel(config))
    with pytest.raises(UserError, match=f"has hidden_size {width}, but the safe model 32.*most likely is {base}\\."):
        safe_text_to_image(painter, clip)


def test_another_clip_of_the_same_shape(painter_dir, processor):
    with pytest.raises(UserError, match=r"the text encoder of .* comes from another CLIP: .* is -?0\.\d\d, where 0\.9"):
        safe_text_to_image(painter_dir, build_model(processor, seed=6))


def test_another_tokenizer(clip, safe, processor, tmp_path):
    safe.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    vocabulary = processor.tokenizer.get_vocab()
    file = tmp_path / "tokenizer.json"
    words = sorted(vocabulary, key=vocabulary.get)[300:302]
    text = file.read_text()
    for old, new in ((words[0], "\0"), (words[1], words[0]), ("\0", words[1])):
        text = text.replace(f'"{old}": {{}}', f'"{new}": {{}}').replace(f'"{old}":', f'"{new}":')
    file.write_text(text)
    pipeline = stable_diffusion(text_encoder(clip), processor.tokenizer)
    with pytest.raises(UserError, match="the tokenizer of the StableDiffusionPipeline numbers words otherwise"):
        safe_text_to_image(pipeline, tmp_path)


def test_a_model_without_a_processor_will_do(painter, safe, tmp_path):
    safe.save_pretrained(tmp_path)
    made = safe_text_to_image(painter, tmp_path)
    assert equal(weights(getattr(made.text_encoder, "text_model", made.text_encoder)), weights(safe.text_model))


def test_a_pipeline_that_reads_with_no_clip(painter, safe):
    painter.text_encoder = T5EncoderModel(T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2, vocab_size=9))
    with pytest.raises(UserError, match="is a T5EncoderModel, not a CLIP's"):
        safe_text_to_image(painter, safe)
    painter.text_encoder = None
    with pytest.raises(UserError, match="is missing, not a CLIP's"):
        safe_text_to_image(painter, safe)


def test_what_is_no_pipeline_and_no_model(painter, safe, tmp_path):
    with pytest.raises(UserError, match=f"the pipeline {tmp_path}: it cannot be opened .*Check the spelling"):
        safe_text_to_image(tmp_path, safe)
    with pytest.raises(UserError, match=f"--model {tmp_path} cannot be opened"):
        safe_text_to_image(painter, tmp_path)
    with pytest.raises(UserError, match="the safe model is a UNet2DConditionModel, not a CLIPModel"):
        safe_text_to_image(painter, painter.unet)
    with pytest.raises(UserError, match="variant: only a pipeline that is opened by its name"):
        safe_text_to_image(painter, safe, variant="fp16")


@pytest.mark.parametrize("part, file", [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_pickled_weights_are_not_loaded(part, file, painter, safe, tmp_path):
    painter.save_pretrained(tmp_path)
    (tmp_path / part / f"{file}.safetensors").unlink()
    name = "pytorch_model.bin" if file == "model" else f"{file}.bin"
    torch.save(getattr(painter, part).state_dict(), tmp_path / part / name)
    with pytest.raises(UserError, match=f"the pipeline {tmp_path}: it cannot be opened.*has safetensors weights"):
        safe_text_to_image(tmp_path, safe)


def test_a_pipeline_that_offloads_already(painter, safe):
    cpu_offload(painter.text_encoder, torch.device("cpu"))
    with pytest.raises(UserError, match="is moved between devices by hooks"):
        safe_text_to_image(painter, safe)


def test_diffusers_is_not_installed(painter_dir, safe, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    for pipeline in (painter_dir, "demo"):
        with pytest.raises(UserError, match=r"pip install 'safe-clip\[generation\]'"):
            safe_text_to_image(pipeline, safe)


@pytest.mark.parametrize("by_name", [True, False])
def test_llava_looks_with_the_safe_clip(by_name, clip, safe, tmp_path):
    generator = llava(clip)
    before = {name: weight for name, weight in weights(generator).items() if "vision_tower" not in name}
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen_before = generator.model.get_image_features(pixels).pooler_output[0]
    if by_name:
        generator.save_pretrained(tmp_path)
        generator = tmp_path
    made = safe_image_to_text(generator, safe)
    assert type(made) is LlavaForConditionalGeneration and not made.model.vision_tower.training
    assert equal(before, {name: weight for name, weight in weights(made).items() if "vision_tower" not in name})
    with torch.no_grad():
        seen = made.model.get_image_features(pixels).pooler_output[0]
        wanted = safe.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(seen, made.model.multi_modal_projector(wanted)[0])
        ids = torch.tensor([[1, 63, 63, 63, 63, 2]])
        words = made.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert words.shape == (1, 9) and (seen - seen_before).abs().max() > 1e-4


def test_llava_with_the_original_clip_says_the_same(clip):
    generator, pixels = llava(clip), torch.rand(1, 3, 16, 16)
    inputs = {"input_ids": torch.tensor([[1, 63, 63, 63, 63, 2]]), "pixel_values": pixels}
    with torch.no_grad():
        before = generator(**inputs).logits
        assert torch.equal(safe_image_to_text(generator, clip)(**inputs).logits, before)


def test_llava_keeps_its_dtype(clip, safe, tmp_path):
    llava(clip).save_pretrained(tmp_path)
    made = safe_image_to_text(tmp_path, safe, dtype=torch.bfloat16, attn_implementation="eager")
    assert made.model.vision_tower.dtype == torch.bfloat16
    assert made.model.vision_tower.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 64}, "has hidden_size 32, but the safe model 64"),
        ({"num_hidden_layers": 3}, "has num_hidden_layers 2, but the safe model 3"),
        ({"image_size": 24}, "has image_size 16, but the safe model 24"),
        ({"patch_size": 4}, "has patch_size 8, but the safe model 4"),
    ],
)
def test_a_vision_tower_of_another_shape(clip, settings, message):
    with pytest.raises(UserError, match=f"the vision tower of the LlavaForConditionalGeneration {message}"):
        safe_image_to_text(llava(clip), changed(clip, "vision_config", **settings))


@pytest.mark.parametrize(
    "size, base", [(336, "openai/clip-vit-large-patch14-336"), (224, "openai/clip-vit-large-patch14")]
)
def test_the_likely_original_of_a_vision_tower_is_named(clip, size, base):
    large = changed(clip, "vision_config", hidden_size=1024, num_hidden_layers=1, patch_size=14, image_size=size)
    with pytest.raises(UserError, match=f"has hidden_size 1024, but the safe model 32.*most likely is {base}\\."):
        safe_image_to_text(llava(large), clip)


def test_a_vision_tower_of_another_clip(clip, processor):
    with pytest.raises(UserError, match="the vision tower of .* comes from another CLIP"):
        safe_image_to_text(llava(clip), build_model(processor, seed=6))


def test_generators_that_see_with_no_clip(clip, safe, tmp_path):
    generator = llava(clip)
    config = generator.config
    config.vision_config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a SiglipVisionModel, not a CLIP's"):
        safe_image_to_text(tmp_path, safe)
    with pytest.raises(UserError, match="is missing, not a CLIP's"):
        safe_image_to_text(generator.model.language_model, safe)


def test_generators_that_cannot_be_opened(clip, safe, tmp_path):
    with pytest.raises(UserError, match=f"the generator {tmp_path} offers no safetensors weights"):
        safe_image_to_text(tmp_path, safe)
    with pytest.raises(UserError, match="the generator nobody/nothing: it cannot be opened .*Check the spelling"):
        safe_image_to_text("nobody/nothing", safe)
