"""What is SigLIP's alone: captions of one length without a mask, pooling by attention, a bias and sigmoids."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipVisionModel,
)

from safe_clip import SafeCLIPTrainer, UserError, load_clip, load_processor, merge
from safe_clip.cli.export import main as export
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.data import EvaluationData, Sample
from safe_clip.evaluation.erasure import erase_unsafe_direction
from safe_clip.evaluation.geometry import pair_probability
from safe_clip.evaluation.quadruplets import embed_quadruplets
from safe_clip.evaluation.redirection import redirection
from safe_clip.evaluation.retrieval import retrieval
from safe_clip.evaluation.run import Subject, evaluate
from safe_clip.generation.swap import safe_image_to_text
from safe_clip.models.drop_in import save_drop_in
from safe_clip.models.families.siglip import SIGLIP, tell_of_capitals
from safe_clip.models.load import check_processor
from safe_clip.objectives import OBJECTIVES, SafeCLIPLoss, build_objective
from safe_clip.objectives.base import contrastive
from safe_clip.objectives.hidden_states import HIDDEN_STATE_NEEDS
from safe_clip.store.fingerprints import tokenizer_settings
from safe_clip.store.known_files import WRITTEN, fits

from ..checkpoints import BIAS, save_clip, save_metaclip_2, save_siglip, save_siglip_2
from ..helpers import FEATURES, make_rows
from .test_families import make_trainer, stock_images, stock_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    made = tmp_path_factory.mktemp("siglip")
    save_siglip_2(made)
    return str(made)


def test_captions_come_without_a_mask_and_are_stored_as_padded_to_one_length(folder, tmp_path):
    model, processor = load_clip(folder), load_processor(folder)
    processor.tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as of a folder that somebody else saved
    check_processor(model, processor)
    save_drop_in(model, processor, tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert stored["padding"]["strategy"] == {"Fixed": 64} and stored["padding"]["direction"] == "Right"
    assert stored["padding"]["pad_id"] == processor.tokenizer.pad_token_id and stored["truncation"]["max_length"] == 64
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())  # which transformers 4 goes by
    assert settings["add_eos_token"] is True and settings["add_bos_token"] is False
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("right", 64)
    tokens = tokenizer(["a red square"], padding="max_length")
    assert list(tokens) == ["input_ids"] and len(tokens["input_ids"][0]) == 64
    assert tokenizer("a red square")["input_ids"] == [each for each in tokens["input_ids"][0] if each]


def test_every_file_of_the_drop_in_is_known_as_ours_where_there_is_no_manifest(folder, tmp_path):
    """As in its repository on the Hub, which else would be taken for somebody else's at the next push."""
    save_siglip(tmp_path / "source")
    for source in (folder, str(tmp_path / "source")):
        save_drop_in(load_clip(source), load_processor(source), tmp_path / "made")
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert {"modules.json", "sentence_bert_config.json", "spiece.model"} <= names
    assert [name for name in names if not fits(name, WRITTEN)] == []


def test_capitals_that_the_model_never_saw_are_told(folder, tmp_path, caplog):
    tell_of_capitals.cache_clear()
    check_processor(load_clip(folder), load_processor(folder))
    assert "tells capitals from small letters" in caplog.text and "Siglip2Tokenizer" in caplog.text
    caplog.clear()
    check_processor(load_clip(folder), load_processor(folder))
    assert not caplog.text  # a second time
    tell_of_capitals.cache_clear()
    lower = tmp_path / "lower"
    load_clip(folder).save_pretrained(lower)
    processor = load_processor(folder)
    processor.save_pretrained(lower)
    settings = json.loads((lower / "tokenizer_config.json").read_text())
    (lower / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "Siglip2Tokenizer"}))
    model, processor = load_clip(str(lower)), load_processor(str(lower))
    check_processor(model, processor)
    assert "capitals" not in caplog.text
    ours = Embedder(model, processor).texts(["A RED square", "a red square"]).embeds
    assert torch.equal(ours[0], ours[1])


def test_a_long_caption_keeps_its_white_space_which_this_tokenizer_counts(folder):
    model, tokenizer = load_clip(folder), load_processor(folder).tokenizer
    caption = "a  red\n  square   " * 5000
    whole = tokenizer(caption)["input_ids"][:63]
    tokens = SIGLIP.tokenize(tokenizer, [caption], model.config)
    assert tokens.keys() == {"input_ids"} and tokens["input_ids"][0].tolist() == [*whole, tokenizer.eos_token_id]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_every_adapter(objective, folder, rows, tmp_path):
    trainer = make_trainer(folder, tmp_path, rows, objective=objective)
    assert trainer.objective.logit_bias == pytest.approx(BIAS)
    trainer.train()
    adapters = {name: weight for name, weight in trainer.model.state_dict().items() if "lora_B" in name}
    assert adapters and all(weight.any() for weight in adapters.values())
    assert trainer.data_collator([rows[index] for index in range(8)])["input_ids"].shape == (16, 64)


def test_hidden_states_that_no_generator_reads_are_trained_only_where_they_are_named(folder, rows, tmp_path):
    def terms(model, **settings):
        return set(make_trainer(model, tmp_path, rows, **settings).objective.hidden_state_terms)

    of_images = {"preservation_image_states", "redirection_image_states"}
    assert terms(folder) == of_images and terms(folder, hidden_state_terms=False) == set()
    assert terms(folder, loss_weights={"preservation_text_states": 5}) == of_images | {"preservation_text_states"}
    save_metaclip_2(tmp_path / "metaclip")
    save_clip(tmp_path / "clip")
    assert terms(str(tmp_path / "metaclip")) == set() and terms(str(tmp_path / "clip")) == set(HIDDEN_STATE_NEEDS)


def test_an_adapter_that_would_never_be_trained_is_refused(folder, rows, tmp_path):
    args = make_trainer(folder, tmp_path, rows).args
    config = LoraConfig(target_modules=["out_proj"])
    with pytest.raises(UserError, match=r"also in vision_model\.head\.attention\.out_proj, .* exclude_modules"):
        SafeCLIPTrainer(folder, args, train_dataset=rows, peft_config=config)
    config = LoraConfig(target_modules=["out_proj"], exclude_modules=["head.attention.out_proj"])
    SafeCLIPTrainer(folder, args, train_dataset=rows, peft_config=config)


def test_the_contrastive_loss_is_the_one_that_siglip_is_trained_by(folder, rows):
    model, processor = load_clip(folder).eval(), load_processor(folder)
    tokens = SIGLIP.tokenize(processor.tokenizer, list(rows["safe_caption"][:8]), model.config)
    pixels = processor.image_processor(list(rows["safe_image"][:8]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(**tokens, pixel_values=pixels, return_loss=True)
    scale, positions = SIGLIP.scale_of(model), torch.arange(8)
    made = contrastive(output.text_embeds, output.image_embeds, scale, positions, SIGLIP.bias_of(model))
    assert made.mean().item() == pytest.approx(output.loss.item(), rel=1e-5)
    softmax = contrastive(output.text_embeds, output.image_embeds, scale, positions)
    assert abs(softmax.mean().item() - output.loss.item()) > 1e-2
    objective = SafeCLIPLoss(scale)
    objective.logit_bias = SIGLIP.bias_of(model)
    _, terms = objective(output.text_embeds, None, output.image_embeds, None)
    assert terms["preservation_text_contrastive"].item() == pytest.approx(output.loss.item(), rel=1e-5)


def test_contrastive_terms_of_all_objectives_take_the_bias(folder):
    torch.manual_seed(0)
    embeds = [torch.randn(6, 8) for _ in range(4)]
    for name in ("safe_clip", "shield_clip"):
        without, biased = (build_objective(name, 7.0, logit_bias=bias)(*embeds)[1] for bias in (None, -3.0))
        changed = {term for term in without if abs(without[term].item() - biased[term].item()) > 1e-3}
        terms = {"real", "coherence"} if name == "shield_clip" else {t for t in without if t.endswith("_contrastive")}
        assert terms and changed == terms


@pytest.mark.parametrize(
    ("part", "settings", "said"),
    [
        ("text_config", {"projection_size": 16}, "projection_size 16, which must be the hidden_size 24"),
        ("vision_config", {"vision_use_head": False}, "with which images have no embeddings"),
    ],
)
def test_encoders_that_do_not_meet_are_refused(part, settings, said, folder, tmp_path):
    config = SiglipConfig.from_pretrained(folder)
    for name, value in settings.items():
        setattr(getattr(config, part), name, value)
    SiglipModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"config.json has .*{said}"):
        load_clip(str(tmp_path))


def test_a_tokenizer_of_sentencepiece_is_known_by_what_it_does(tmp_path, monkeypatch):
    save_siglip(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    monkeypatch.chdir(tmp_path)
    one, two, there = (load_processor(str(name)).tokenizer for name in ("one", tmp_path / "two", "./one"))
    assert tokenizer_settings(one) == tokenizer_settings(two) == tokenizer_settings(there)
    save_siglip_2(tmp_path / "other")
    assert tokenizer_settings(one) != tokenizer_settings(load_processor("other").tokenizer)
    one.init_kwargs["do_lower_case"] = False
    assert tokenizer_settings(one) != tokenizer_settings(two)


def test_captions_of_what_this_tokenizer_drops_are_not_cut_before_their_words(tmp_path):
    save_siglip(tmp_path)
    texts = ["." * 9000 + " a red square", "\U0001f642" * 9000 + " a red square", "a red square"]
    ours = Embedder(load_clip(str(tmp_path)), load_processor(str(tmp_path))).texts(texts).embeds
    torch.testing.assert_close(ours, stock_texts(str(tmp_path), texts), atol=1e-5, rtol=0)
    assert torch.equal(ours[0], ours[2])  # punctuation is dropped


def test_full_fine_tuning_leaves_scale_and_bias(folder, rows, tmp_path):
    args = make_trainer(folder, tmp_path, rows, max_steps=1, learning_rate=1e-4).args
    trainer = SafeCLIPTrainer(folder, args, train_dataset=rows, peft_config=None)
    trainer.train()
    before = load_clip(folder).state_dict()
    still = {name for name, weight in trainer.model.state_dict().items() if torch.equal(weight, before[name])}
    assert {"logit_scale", "logit_bias"} <= still and "vision_model.head.probe" not in still


def test_half_of_the_way_lies_between_the_two(folder, rows, tmp_path):
    trainer = make_trainer(folder, tmp_path, rows)
    trainer.train()
    trainer.save_model()
    safe, before = load_clip(str(tmp_path)), load_clip(folder).state_dict()
    half = merge(folder, safe, 0.5).state_dict()
    for name, weight in safe.state_dict().items():
        torch.testing.assert_close(half[name], (weight + before[name]) / 2, atol=1e-6, rtol=1e-5)


def test_what_tells_unsafe_from_safe_is_erased_though_there_is_no_projection(folder, rows):
    model, processor = load_clip(folder), load_processor(folder)
    erased = erase_unsafe_direction(model, processor, rows)
    before, after = (embed_quadruplets(Embedder(each, processor), rows) for each in (model, erased))
    for modality in ("text", "image"):
        assert _gap(before, modality) > 4 * _gap(after, modality)  # embeddings are normalised after the erasure
    assert Embedder(erased, processor).fingerprint != Embedder(model, processor).fingerprint


def _gap(items, modality):
    return (items.of("safe", modality).embeds - items.of("unsafe", modality).embeds).mean(dim=0).norm()


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_generator_takes_the_encoder_though_its_own_pools_nothing(layer, folder):
    model = load_clip(folder)
    vision = copy.deepcopy(model.config.vision_config)
    vision.vision_use_head = False
    language = LlamaConfig(
        vocab_size=64, hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=63,
        vision_feature_layer=layer,
        vision_feature_select_strategy="full",
    )
    generator = LlavaForConditionalGeneration(config).eval()
    own = generator.model.vision_tower
    own.load_state_dict({name: weight + 1e-3 for name, weight in model.vision_model.state_dict().items()}, strict=False)
    safe_image_to_text(generator, model)
    made = generator.model.vision_tower
    assert made is not own and type(made) is SiglipVisionModel
    assert all(torch.equal(weight, model.vision_model.state_dict()[name]) for name, weight in made.state_dict().items())
    pixels = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        read = model.eval().vision_model(pixels, output_hidden_states=True).hidden_states[layer]
        expected = generator.model.multi_modal_projector(read)
        features = generator.get_image_features(pixels).pooler_output
    torch.testing.assert_close(torch.cat(list(features)), expected.flatten(0, 1).view_as(torch.cat(list(features))))


@pytest.fixture(scope="module")
def unsafe_base(tmp_path_factory) -> str:
    """A SigLIP that finds marked squares by captions that say so: trained by its own loss on both sides' pairs."""
    source, made = tmp_path_factory.mktemp("random"), tmp_path_factory.mktemp("unsafe")
    save_siglip_2(source)
    model, processor = SiglipModel.from_pretrained(source), SiglipProcessor.from_pretrained(source)
    rows = make_rows(56)
    captions, images = (rows[f"safe_{kind}"] + rows[f"unsafe_{kind}"] for kind in ("caption", "image"))
    tokens = processor.tokenizer(captions, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    model.logit_scale.data.fill_(2.3)  # 10, as in the paper
    model.logit_bias.data.fill_(-6.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(350):
        some = torch.randperm(len(tokens))[:56]
        loss = model(input_ids=tokens[some], pixel_values=pixels[some], return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(made)
    processor.save_pretrained(made)
    return str(made)


@pytest.mark.slow
def test_training_redirects_unsafe_queries_and_keeps_probabilities(unsafe_base, tmp_path):
    rows = Dataset.from_dict(make_rows(56), features=FEATURES)
    settings = {
        "max_steps": 150,
        "per_device_train_batch_size": 28,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
    }
    trainer = make_trainer(unsafe_base, tmp_path, rows, objective_options={"unsafe_per_safe": 1}, **settings)
    trainer.train()
    trainer.save_model()
    figures = {}
    for name, path in (("before", unsafe_base), ("after", str(tmp_path))):
        model = load_clip(path)
        items = embed_quadruplets(Embedder(model, load_processor(path)), rows)
        found, rates = retrieval(items), redirection(items)
        figures[name] = {
            "recall": torch.cat([value for key, value in found.items() if key.endswith("recall_at_1")]).mean().item(),
            "captions": rates["unsafe_text_safe_rate_at_1"].mean().item(),
            "images": rates["unsafe_image_safe_rate_at_1"].mean().item(),
            "probability": pair_probability(items, SIGLIP.scale_of(model), SIGLIP.bias_of(model))[0],
        }
    before, after = figures["before"], figures["after"]
    assert before["captions"] <= 0.2 and before["images"] <= 0.2 and before["recall"] >= 0.5
    assert after["captions"] >= 0.9 and after["images"] >= 0.9 and after["recall"] >= before["recall"]
    assert (after["probability"] - before["probability"]).abs().mean() <= 0.1


def test_the_probability_of_safe_pairs_is_a_figure_of_evaluation(folder, rows, tmp_path):
    trainer = make_trainer(folder, tmp_path, rows)
    trainer.train()
    trainer.save_model()
    data = EvaluationData({"test": Sample(rows, len(rows))})
    results, _ = evaluate(Subject(str(tmp_path)), Subject(folder), data, tasks=["geometry"])
    model, before = (results["models"][role]["splits"]["test"]["geometry"] for role in ("model", "baseline"))
    probabilities = {}
    for path in (str(tmp_path), folder):
        stock, processor = SiglipModel.from_pretrained(path).eval(), SiglipProcessor.from_pretrained(path)
        tokens = processor.tokenizer(
            list(rows["safe_caption"]), padding="max_length", max_length=64, return_tensors="pt"
        )
        pixels = processor.image_processor(list(rows["safe_image"]), return_tensors="pt")
        with torch.no_grad():
            probabilities[path] = stock(**tokens, **pixels).logits_per_image.sigmoid().diagonal().double()
    assert model["pair_probability"]["value"] == pytest.approx(probabilities[str(tmp_path)].mean().item(), abs=1e-5)
    assert before["pair_probability"]["value"] == pytest.approx(probabilities[folder].mean().item(), abs=1e-5)
    change = (probabilities[str(tmp_path)] - probabilities[folder]).abs().mean().item()
    assert model["pair_probability_change"]["value"] == pytest.approx(change, abs=1e-5) and change > 1e-3


@pytest.fixture(scope="module")
def base_16(folder, tmp_path_factory) -> Path:
    """With an image encoder of a size that open_clip has."""
    made = tmp_path_factory.mktemp("base-16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = {"hidden_size": 32, "intermediate_size": 100, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": len(tokenizer), "projection_size": 768}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={"image_size": 224, "patch_size": 16}))
    model.logit_scale.data.fill_(2.5)
    model.logit_bias.data.fill_(-9.0)
    model.save_pretrained(made)
    SiglipProcessor(SiglipImageProcessor(size={"height": 224, "width": 224}), tokenizer).save_pretrained(made)
    return made


@pytest.mark.slow
def test_open_clip_embeds_the_same(base_16, rows, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    export(["--model", str(base_16), "--format", "open_clip", "--output_dir", str(tmp_path / "made")])
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'made'}")
    tokenizer, texts = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'made'}"), ["a red square", "a mark", ""]
    image = rows[0]["safe_image"].resize((300, 400))
    with torch.no_grad():
        captions = theirs.eval().encode_text(tokenizer(texts), normalize=True)
        images = theirs.encode_image(preprocess(image).unsqueeze(0), normalize=True)
    torch.testing.assert_close(captions, stock_texts(str(base_16), texts), atol=1e-5, rtol=0)
    torch.testing.assert_close(images, stock_images(str(base_16), [image]), atol=1e-3, rtol=0)  # other pixels
    assert (theirs.logit_scale.item(), theirs.logit_bias.item()) == (2.5, -9.0)
    again, before = load_clip(str(tmp_path / "made")), load_clip(str(base_16)).state_dict()
    assert again.state_dict().keys() == before.keys()
    assert [name for name, weight in again.state_dict().items() if not torch.equal(weight, before[name])] == []
    ours = Embedder(again, load_processor(str(tmp_path / "made"))).texts(texts).embeds
    torch.testing.assert_close(ours, stock_texts(str(base_16), texts), atol=1e-5, rtol=0)
    _refuses_what_a_siglip_model_is_not(tmp_path / "made")


def _refuses_what_a_siglip_model_is_not(folder: Path) -> None:
    file = folder / "open_clip_config.json"
    written = json.loads(file.read_text())
    for part, change, said in (
        ("text_cfg", {"no_causal_mask": False}, "a SigLIP that a SiglipModel is not: no_causal_mask"),
        ("text_cfg", {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}, "lies elsewhere .timm/ViT-B-16-SigLIP.: name the"),
        ("vision_cfg", {"timm_pool": "avg"}, "a SigLIP that a SiglipModel is not: timm_pool"),
        ("vision_cfg", {"timm_model_name": "resnet50"}, "does not describe a SigLIP"),
        ("text_cfg", {"layers": 2}, r"missing .*text\.transformer\.resblocks\.1\."),
    ):
        changed = copy.deepcopy(written)
        changed["model_cfg"][part].update(change)
        file.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=said):
            load_clip(str(folder))


def test_sizes_that_open_clip_lacks_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="no SigLIP whose image encoder has hidden_size 24, 2 layers, 2 heads"):
        export(["--model", folder, "--format", "open_clip", "--output_dir", str(tmp_path / "made")])
    assert not (tmp_path / "made" / "open_clip_config.json").exists()
