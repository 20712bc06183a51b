"""A family that is not in the package comes in through `FAMILIES` alone: SigLIP, which differs from CLIP in much.

Captions are all padded to one length and read at the last place, attention goes both ways, there are no projections,
images are pooled by attention, and there is a bias beside the scale.
"""

import copy
import json
import os

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import normalize
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTextModel,
    SiglipVisionModel,
)
from transformers.models.siglip.modeling_siglip import SiglipOutput

from safe_clip import (
    SafeCLIPTrainer,
    SafeCLIPTrainingArguments,
    UserError,
    load_clip,
    load_processor,
    lora_config,
    merge,
)
from safe_clip.card import write_model_card
from safe_clip.cli.export import main as export
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.erasure import erase_unsafe_direction
from safe_clip.evaluation.quadruplets import embed_quadruplets
from safe_clip.evaluation.zero_shot import class_embeddings
from safe_clip.generation.swap import safe_image_to_text
from safe_clip.models.export import GRAPHS
from safe_clip.models.family import FAMILIES, LAYERS, Family, Tower, family_of
from safe_clip.models.load import check_processor
from safe_clip.models.reference import FrozenReference
from safe_clip.models.tokens import CURE, fit_vocabulary
from safe_clip.objectives import OBJECTIVES

from ..helpers import COLOURS
from ..programs import run_python

SHAPE = ("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act")


def fit_tokenizer(tokenizer, text):
    fit_vocabulary(tokenizer, text)
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer has no token to pad captions with. {CURE}.")


SIGLIP = Family(
    name="SigLIP",
    example="google/siglip2-base-patch16-224",
    model=SiglipModel,
    config=SiglipConfig,
    processor=SiglipProcessor,
    tokenizer=Siglip2Tokenizer,
    output=SiglipOutput,
    text=Tower(
        name="text_model",
        projection=None,
        sub_config="text_config",
        model_type="siglip_text_model",
        positive_ints=(*LAYERS, "vocab_size", "max_position_embeddings"),
        encoders=(SiglipTextModel,),
        shape=(*SHAPE, "vocab_size", "max_position_embeddings"),
        embedding_tables=lambda encoder: [encoder.embeddings.token_embedding.weight],
        states=lambda output: (output.last_hidden_state,),
        onnx_output="pooler_output",
        base_by=(),
        bases={},
        example="none that is known",
    ),
    image=Tower(
        name="vision_model",
        projection=None,
        sub_config="vision_config",
        model_type="siglip_vision_model",
        positive_ints=(*LAYERS, "image_size", "patch_size", "num_channels"),
        encoders=(SiglipVisionModel,),
        shape=(*SHAPE, "num_hidden_layers", "image_size", "patch_size"),
        embedding_tables=lambda encoder: [encoder.embeddings.position_embedding.weight],
        states=lambda output: (output.last_hidden_state,),
        onnx_output="pooler_output",
        base_by=(),
        bases={},
        example="llava-hf/llava-interleave-qwen-0.5b-hf",
    ),
    logit_scale="logit_scale",
    scalars=("logit_scale", "logit_bias"),
    dimension=lambda config: config.vision_config.hidden_size,
    text_inputs=("input_ids",),
    padding="max_length",
    fit_tokenizer=fit_tokenizer,
    lora_targets=("k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding"),
    lora_excluded=("head.attention.out_proj",),  # whose weight nn.MultiheadAttention takes past the adapter
    exports=("transformers", "onnx"),
)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(FAMILIES, "siglip", SIGLIP)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A checkpoint as transformers writes it, of random weights."""
    return save_model(tmp_path_factory.mktemp("siglip"), layers=2)


def save_model(folder, layers) -> str:
    texts = [f"a {a} square beside a {b} one with a mark" for a in COLOURS for b in COLOURS]
    tokenizer = Siglip2Tokenizer().train_new_from_iterator(texts, vocab_size=200, show_progress=False)
    ends = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = ends
    torch.manual_seed(0)
    tower = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 2}
    model = SiglipModel(
        SiglipConfig(
            text_config={**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 40, "projection_size": 24},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
        )
    )
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-3.0)
    model.save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return str(folder)


def stock(folder, rows):
    """What transformers alone makes of the rows' safe items: captions padded to the whole length, on the left."""
    model, processor = SiglipModel.from_pretrained(folder).eval(), SiglipProcessor.from_pretrained(folder)
    tokens = processor.tokenizer(list(rows["safe_caption"]), padding="max_length", max_length=40, return_tensors="pt")
    pixels = processor.image_processor(list(rows["safe_image"]), return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=tokens["input_ids"], **pixels)


def train(folder, output, rows, **settings):
    defaults = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none"}
    defaults |= {"disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "bf16": False}
    args = SafeCLIPTrainingArguments(output_dir=str(output), **(defaults | settings))
    trainer = SafeCLIPTrainer(folder, args, train_dataset=rows, peft_config=lora_config(model=load_clip(folder)))
    trainer.train()
    return trainer


def test_loading_and_embedding_are_those_of_transformers(folder, rows):
    model, processor = load_clip(folder), load_processor(folder)
    assert family_of(model) is SIGLIP and type(processor) is SiglipProcessor
    check_processor(model, processor)
    expected = stock(folder, rows)
    items = embed_quadruplets(Embedder(model, processor), rows)
    torch.testing.assert_close(items.of("safe", "text").embeds, expected.text_embeds)
    torch.testing.assert_close(items.of("safe", "image").embeds, expected.image_embeds)
    reference = FrozenReference(model)
    assert (reference.dimension, reference.logit_scale) == (24, pytest.approx(2.718281828**2))
    classes = class_embeddings(Embedder(model, processor), ["red", "blue"], ["a {} square"], "classes")
    assert classes.shape == (2, 24)
    with pytest.raises(UserError, match="a SiglipTextConfig, not"):
        family_of(model.config.text_config)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_every_adapter_and_nothing_else(objective, folder, rows, tmp_path):
    trainer = train(folder, tmp_path, rows, objective=objective)
    model, before = trainer.model.get_base_model(), SiglipModel.from_pretrained(folder).state_dict()
    for name, weight in model.state_dict().items():
        if "lora_B" in name:
            assert weight.any(), name
        elif "lora_" not in name:
            assert torch.equal(weight, before[name.replace(".base_layer", "")]), name
    expected = stock(folder, rows)
    batch = trainer.data_collator([rows[index] for index in range(8)])
    assert batch["input_ids"].shape == (16, 40)
    output = trainer.reference(input_ids=batch["input_ids"][:8], pixel_values=batch["pixel_values"][:8])
    torch.testing.assert_close(output.text_embeds, expected.text_embeds[:8])
    torch.testing.assert_close(output.image_embeds, expected.image_embeds[:8])


def test_a_long_caption_keeps_its_white_space_which_this_tokenizer_counts(folder):
    model, tokenizer = load_clip(folder), load_processor(folder).tokenizer
    caption = "a  red\n  square   " * 5000
    whole = tokenizer(caption)["input_ids"][:39]
    tokens = SIGLIP.tokenize(tokenizer, [caption], model.config)
    assert tokens.keys() == {"input_ids"} and tokens["input_ids"][0].tolist() == [*whole, tokenizer.eos_token_id]


def test_the_drop_in_is_a_model_of_the_same_class_in_a_process_without_this_package(folder, rows, tmp_path):
    trainer = train(folder, tmp_path, rows)
    trainer.save_model()
    card = write_model_card(trainer).read_text()
    assert "a plain\n`SiglipModel`" in card and "- siglip\n" in card and "CLIPModel" not in card
    code = """if True:
        import json, sys, torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
            del sys.modules[name]  # which programs of tests find imported
        from transformers import AutoModel, AutoProcessor
        model, processor = AutoModel.from_pretrained(sys.argv[1]), AutoProcessor.from_pretrained(sys.argv[1])
        tokens = processor.tokenizer(sys.argv[2:], padding="max_length", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            embeds = model.eval().get_text_features(input_ids=tokens).pooler_output
        loaded = [name for name in ("peft", "safe_clip") if name in sys.modules]
        print(json.dumps([type(model).__name__, loaded, embeds.tolist()]))
    """
    captions = list(rows["safe_caption"][:2])
    done = run_python("-c", code, tmp_path, *captions, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    name, loaded, embeds = json.loads(done.stdout.splitlines()[-1])
    assert name == "SiglipModel" and not loaded
    safe, processor = load_clip(str(tmp_path)), load_processor(str(tmp_path))
    ours = Embedder(safe, processor).texts(captions).embeds
    torch.testing.assert_close(normalize(torch.tensor(embeds), dim=1), ours)
    trained = Embedder(trainer.model, trainer.processing_class).texts(captions).embeds
    torch.testing.assert_close(ours, trained, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, stock(folder, rows).text_embeds[:2], atol=1e-3)
    half = merge(folder, safe, 0.5).state_dict()["text_model.head.weight"]
    torch.testing.assert_close(half, load_clip(folder).text_model.head.weight)  # in which there is no adapter


def test_full_fine_tuning_leaves_scale_and_bias(folder, rows, tmp_path):
    args = SafeCLIPTrainingArguments(
        output_dir=str(tmp_path), max_steps=1, report_to="none", warmup_steps=0, bf16=False, save_strategy="no"
    )
    trainer = SafeCLIPTrainer(folder, args, train_dataset=rows, peft_config=None)
    trainer.train()
    before = load_clip(folder).state_dict()
    still = {name for name, weight in trainer.model.state_dict().items() if torch.equal(weight, before[name])}
    assert {"logit_scale", "logit_bias"} <= still and "vision_model.head.probe" not in still


def test_what_tells_unsafe_from_safe_is_erased_though_there_is_no_projection(folder, rows):
    model, processor = load_clip(folder), load_processor(folder)
    erased = erase_unsafe_direction(model, processor, rows)
    before, after = (embed_quadruplets(Embedder(each, processor), rows) for each in (model, erased))
    for modality in ("text", "image"):
        assert _gap(before, modality) > 5 * _gap(after, modality)  # embeddings are normalised after the erasure
    assert Embedder(erased, processor).fingerprint != Embedder(model, processor).fingerprint


def _gap(items, modality):
    return (items.of("safe", modality).embeds - items.of("unsafe", modality).embeds).mean(dim=0).norm()


def test_a_generator_takes_the_encoder_though_its_own_pools_nothing(folder):
    model = load_clip(folder)
    vision = copy.deepcopy(model.config.vision_config)
    vision.vision_use_head = False
    language = LlamaConfig(
        vocab_size=64, hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    generator = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=language, image_token_index=63)
    )
    own = generator.model.vision_tower
    own.load_state_dict({name: weight + 1e-3 for name, weight in model.vision_model.state_dict().items()}, strict=False)
    safe_image_to_text(generator, model)
    made = generator.model.vision_tower
    assert made is not own and type(made) is SiglipVisionModel
    assert all(torch.equal(weight, model.vision_model.state_dict()[name]) for name, weight in made.state_dict().items())


def test_the_graphs_for_onnx_embed_the_same(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = save_model(tmp_path / "siglip", layers=1)  # to trace each layer takes seconds
    model, processor = load_clip(folder), load_processor(folder)
    tokens = SIGLIP.tokenize(processor.tokenizer, ["a red square", "a mark", "a blue one"], model.config)
    inputs = {**tokens, "pixel_values": torch.rand(2, 3, 16, 16)}
    with torch.no_grad():
        expected = model(**inputs)
        for file, name in (("text_model.onnx", "input_ids"), ("vision_model.onnx", "pixel_values")):
            graph = GRAPHS[file](model)
            assert (graph.inputs, graph.outputs) == ((name,), ("pooler_output",))
            assert graph(inputs[name]).shape == (len(inputs[name]), 24)
    monkeypatch.delitem(GRAPHS, "text_model.onnx")  # each takes some seconds
    monkeypatch.delitem(GRAPHS, "vision_model.onnx")
    export(["--model", folder, "--format", "onnx", "--output_dir", str(tmp_path / "made")])
    session = onnxruntime.InferenceSession(str(tmp_path / "made" / "onnx" / "model.onnx"))
    assert [each.name for each in session.get_inputs()] == ["input_ids", "pixel_values"]
    outputs = ["logits_per_image", "text_embeds", "image_embeds"]
    made = session.run(outputs, {name: value.numpy() for name, value in inputs.items()})
    for name, value in zip(outputs, made, strict=True):
        torch.testing.assert_close(torch.tensor(value), expected[name], atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="--format open_clip has no models of this family; take transformers, onnx"):
        export(["--model", folder, "--format", "open_clip", "--output_dir", str(tmp_path / "other")])
