"""Checkpoints of each family as they lie on the Hub, with random weights and few tokens."""

import io
import json
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GemmaTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    XLMRobertaTokenizer,
)

from .helpers import COLOURS, build_model

TEXTS = [f"a {a} square beside a {b} one with a mark" for a in COLOURS for b in COLOURS]
SCALE, BIAS = 2.0, -3.0  # the logarithm of SigLIP's factor, and what it adds


def save_clip(folder: Path, layers: int = 2) -> None:
    tokenizer = CLIPTokenizer(model_max_length=77).train_new_from_iterator(TEXTS, vocab_size=600, show_progress=False)
    processor = CLIPProcessor(_square_images(), tokenizer)
    build_model(processor, layers=layers).save_pretrained(folder)
    processor.save_pretrained(folder)


def save_metaclip_2(folder: Path, layers: int = 2) -> None:
    """2 ends captions, as in the released models, where it would mean something else to a CLIP."""
    tokenizer = XLMRobertaTokenizer().train_new_from_iterator(TEXTS, vocab_size=200, show_progress=False)
    torch.manual_seed(0)
    config = MetaClip2Config(
        projection_dim=24,
        text_config={
            **_tower(layers),
            "vocab_size": len(tokenizer),
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={**_tower(layers), "image_size": 16, "patch_size": 8},
    )
    MetaClip2Model(config).save_pretrained(folder)
    CLIPProcessor(_square_images(), tokenizer).save_pretrained(folder)


def save_siglip(folder: Path, layers: int = 2) -> None:
    """With a tokenizer of SentencePiece's, which pads with its end token."""
    import sentencepiece
    from transformers import SiglipTokenizer

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=made,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "spiece.model").write_bytes(made.getvalue())
    _save_siglip(folder, SiglipTokenizer(f"{folder}/spiece.model", model_input_names=["input_ids"]), layers)


def save_siglip_2(folder: Path, layers: int = 2) -> None:
    """With Gemma's tokenizer, which pads on the right to one length, and tells capitals from small letters."""
    texts = [*TEXTS, *map(str.upper, TEXTS)]
    tokenizer = GemmaTokenizer().train_new_from_iterator(texts, vocab_size=300, show_progress=False)
    ends = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = ends
    tokenizer.padding_side = "right"
    _save_siglip(folder, tokenizer, layers)
    settings = json.loads(Path(folder, "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "GemmaTokenizer", "model_input_names": ["input_ids"], "padding_side": "right"}
    settings |= {"add_bos_token": False, "add_eos_token": True}
    Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))


def _save_siglip(folder: Path, tokenizer, layers: int) -> None:
    torch.manual_seed(0)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 24}
    config = SiglipConfig(
        text_config={**_tower(layers), **text, "bos_token_id": None, "eos_token_id": 1},
        vision_config={**_tower(layers), "image_size": 16, "patch_size": 8},
    )
    model = SiglipModel(config)
    model.logit_scale.data.fill_(SCALE)
    model.logit_bias.data.fill_(BIAS)
    model.save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)


def _tower(layers: int) -> dict[str, int]:
    return {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2}


def _square_images() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


def save_pipeline(folder: Path, layers: int = 2) -> None:
    """The text encoders of a pipeline of diffusers, as of SD 3: two of CLIPs, and one that is none."""
    parts = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    for name, kind in parts.items():
        tokenizer = CLIPTokenizer(model_max_length=77).train_new_from_iterator(
            TEXTS, vocab_size=600, show_progress=False
        )
        if name == "text_encoder_2":
            tokenizer.pad_token = "!"
        torch.manual_seed(0)
        ends = {"bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1}
        config = CLIPTextConfig(
            **_tower(layers) | ends, vocab_size=len(tokenizer), projection_dim=20, initializer_factor=2.0
        )
        kind(config).save_pretrained(Path(folder, name))
        tokenizer.save_pretrained(Path(folder, name.replace("text_encoder", "tokenizer")))
    index = {name: ["transformers", kind.__name__] for name, kind in parts.items()}
    index |= {"_class_name": "StableDiffusion3Pipeline", "text_encoder_3": ["transformers", "T5EncoderModel"]}
    Path(folder, "model_index.json").write_text(json.dumps(index))


SAVE = {"clip": save_clip, "metaclip_2": save_metaclip_2, "siglip": save_siglip, "siglip_2": save_siglip_2}
