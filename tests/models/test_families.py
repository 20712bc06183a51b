"""Whatever its family, a model embeds as transformers has it, trains, and comes out as a plain model of its class."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, CLIPProcessor, pipeline

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
from safe_clip.evaluation.quadruplets import embed_quadruplets
from safe_clip.models import onnx_format
from safe_clip.models.families import FAMILIES, family_named, family_of
from safe_clip.models.load import check_processor
from safe_clip.models.onnx_format import GRAPHS

from ..checkpoints import SAVE, save_clip, save_metaclip_2
from ..programs import run_python

CLASSES = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", "siglip": "SiglipModel", "siglip_2": "SiglipModel"}
TEXTS = ["a red square", "A BLUE one", "", "a green square beside a white one with a mark " * 20]


@pytest.fixture(scope="module", params=SAVE)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory) -> str:
    made = tmp_path_factory.mktemp(kind)
    SAVE[kind](made)
    return str(made)


def stock_texts(folder, texts):
    """What transformers alone makes of texts, as the pages of the models have it."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    tokens = processor.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        return normalize(model.get_text_features(**tokens).pooler_output, dim=1)


def stock_images(folder, images):
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        pixels = processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=1)


def make_trainer(folder, output, rows, **settings):
    defaults = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none"}
    defaults |= {"disable_tqdm": True, "save_strategy": "no", "logging_steps": 1, "bf16": False, "warmup_steps": 0}
    args = SafeCLIPTrainingArguments(output_dir=str(output), **(defaults | settings))
    return SafeCLIPTrainer(folder, args, train_dataset=rows, peft_config=lora_config(model=load_clip(folder)))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A trainer that has trained, with weights of the model before, and where it was saved."""
    from datasets import Dataset

    from ..helpers import FEATURES, make_rows

    output = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(folder, output, Dataset.from_dict(make_rows(), features=FEATURES))
    before = trainer.model.state_dict()
    before = {name: weight.clone() for name, weight in before.items()}
    trainer.train()
    trainer.save_model()
    return trainer, before, output


def test_embeddings_are_those_of_transformers(kind, folder, rows):
    model, processor = load_clip(folder), load_processor(folder)
    check_processor(model, processor)
    assert type(model).__name__ == CLASSES[kind] and family_of(model) is FAMILIES[model.config.model_type]
    embedder = Embedder(model, processor)
    torch.testing.assert_close(embedder.texts(TEXTS).embeds, stock_texts(folder, TEXTS), atol=1e-5, rtol=0)
    items = embed_quadruplets(embedder, rows)
    for side in ("safe", "unsafe"):
        texts, images = items.of(side, "text").embeds, items.of(side, "image").embeds
        torch.testing.assert_close(texts, stock_texts(folder, list(rows[f"{side}_caption"])), atol=1e-5, rtol=0)
        torch.testing.assert_close(images, stock_images(folder, rows[f"{side}_image"]), atol=1e-5, rtol=0)


def test_what_is_stored_in_half_precision_is_read_and_saved_so(folder, rows, tmp_path):
    AutoModel.from_pretrained(folder).half().save_pretrained(tmp_path / "half", max_shard_size="40KB")
    load_processor(folder).save_pretrained(tmp_path / "half")
    assert len(list((tmp_path / "half").glob("*.safetensors"))) > 1
    model = load_clip(str(tmp_path / "half"))
    assert model.dtype == torch.float32
    model.half()
    trainer = SafeCLIPTrainer(
        model, make_trainer(folder, tmp_path / "made", rows).args, rows, None, load_processor(folder)
    )
    trainer.train()
    trainer.save_model()
    assert AutoModel.from_pretrained(tmp_path / "made", dtype="auto").dtype == torch.float16


def test_every_adapter_is_trained_and_nothing_else(trained):
    trainer, before, _ = trained
    after = trainer.model.state_dict()
    adapters = [name for name in after if "lora_B" in name]
    targets = family_of(trainer.model).lora_targets
    assert {name.split(".lora_B")[0].rsplit(".", 1)[-1] for name in adapters} == set(targets)
    for name, weight in after.items():
        changed = not torch.equal(weight, before[name])
        assert changed == ("lora_" in name), name


def test_the_reference_stays_the_original(folder, trained, rows):
    trainer, _, _ = trained
    batch = trainer.data_collator([rows[index] for index in range(8)])
    output = trainer.reference(input_ids=batch["input_ids"][:8], pixel_values=batch["pixel_values"][:8])
    expected = stock_texts(folder, list(rows["safe_caption"][:8]))
    torch.testing.assert_close(output.text_embeds, expected, atol=1e-5, rtol=0)
    expected = stock_images(folder, rows["safe_image"][:8])
    torch.testing.assert_close(output.image_embeds, expected, atol=1e-5, rtol=0)


def test_the_drop_in_is_a_model_of_the_same_class_to_a_process_without_this_package(kind, folder, trained, rows):
    trainer, _, output = trained
    code = """if True:
        import json, sys, torch
        for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
            del sys.modules[name]  # which programs of tests find imported
        from PIL import Image
        from torch.nn.functional import normalize
        from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, CLIPProcessor, pipeline
        model, processor = AutoModel.from_pretrained(sys.argv[1]), AutoProcessor.from_pretrained(sys.argv[1])
        tokens = processor.tokenizer(sys.argv[2:], padding="max_length", return_tensors="pt")
        with torch.no_grad():
            embeds = normalize(model.eval().get_text_features(**tokens).pooler_output, dim=1)
        scores = pipeline("zero-shot-image-classification", sys.argv[1])(
            Image.new("RGB", (30, 20), "red"), candidate_labels=sys.argv[2:], hypothesis_template="{}"
        )
        loaded = [name for name in ("peft", "safe_clip") if name in sys.modules]
        scores = {each["label"]: each["score"] for each in scores}
        print(json.dumps([type(model).__name__, loaded, embeds.tolist(), [scores[text] for text in sys.argv[2:]]]))
    """
    captions = list(rows["safe_caption"][:3])
    done = run_python("-c", code, output, *captions, cwd=output, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    name, loaded, embeds, scores = json.loads(done.stdout.splitlines()[-1])
    assert name == CLASSES[kind] and not loaded
    ours = Embedder(trainer.model, trainer.processing_class).texts(captions).embeds
    torch.testing.assert_close(torch.tensor(embeds), ours, atol=1e-5, rtol=0)
    assert (ours - stock_texts(folder, captions)).abs().max() > 1e-2  # training moved it
    from PIL import Image

    image = Image.new("RGB", (30, 20), "red")
    cosines = stock_images(str(output), [image]) @ ours.T
    model = load_clip(str(output))
    family = family_of(model)
    logits = family.scale_of(model) * cosines[0] + (family.bias_of(model) or 0)
    expected = logits.softmax(0) if family.bias_of(model) is None else logits.sigmoid()
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-5, rtol=0)


def test_the_card_is_of_the_family(kind, trained):
    trainer, _, _ = trained
    card = write_model_card(trainer).read_text()
    assert f"a plain\n`{CLASSES[kind]}`" in card and f"- {trainer.model.config.model_type}\n" in card
    assert kind == "clip" or ("CLIPModel," not in card and "--format onnx" in card)
    assert "--format open_clip" in card


def test_sentence_transformers_embeds_the_same(trained, rows):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    _, _, output = trained
    model = sentence_transformers.SentenceTransformer(str(output), device="cpu")
    texts, images = ["a red square", "a blue square beside a white one"], list(rows["safe_image"][:3])
    made = torch.tensor(model.encode(texts, normalize_embeddings=True))
    torch.testing.assert_close(made, stock_texts(str(output), texts), atol=1e-5, rtol=0)
    made = torch.tensor(model.encode(images, normalize_embeddings=True))
    torch.testing.assert_close(made, stock_images(str(output), images), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["metaclip_2", "siglip_2"])  # of a CLIP in test_drop_in.py
def test_the_graphs_for_onnx_embed_the_same(kind, tmp_path, capsys, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    # Each takes seconds. MetaCLIP 2's encoders alone are a CLIP's.
    graphs = GRAPHS if kind == "siglip_2" else {"model.onnx": GRAPHS["model.onnx"]}
    monkeypatch.setattr(onnx_format, "GRAPHS", graphs)
    source, made = tmp_path / "source", tmp_path / "made"
    SAVE[kind](source, layers=1)  # to trace each layer takes seconds
    export(["--model", str(source), "--format", "onnx", "--output_dir", str(made)])
    assert capsys.readouterr().out.count("_quantized.onnx: embeddings at a cosine of ") == len(graphs)
    model, processor = AutoModel.from_pretrained(source).eval(), AutoProcessor.from_pretrained(made)
    texts = ["a red square", "a mark", "a blue one"]
    tokens = dict(processor.tokenizer(texts, padding="max_length", return_tensors="pt"))
    inputs = {**tokens, "pixel_values": torch.rand(2, 3, 16, 16)}
    with torch.no_grad():
        whole = model(**inputs)
        text = model.get_text_features(**tokens).pooler_output
        image = model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
    family = family_of(model)
    expected = {
        "model": {"text_embeds": whole.text_embeds, "image_embeds": whole.image_embeds},
        "text_model": {family.text.onnx_output: text},
        "vision_model": {family.image.onnx_output: image},
    }
    for name, outputs in expected.items():
        if f"{name}.onnx" not in graphs:
            continue
        for suffix, least in (("", 1 - 1e-6), ("_quantized", 0.95)):
            session = onnxruntime.InferenceSession(made / "onnx" / f"{name}{suffix}.onnx")
            given = {each.name: inputs[each.name].numpy() for each in session.get_inputs()}
            for values, wanted in zip(session.run(list(outputs), given), outputs.values(), strict=True):
                assert torch.cosine_similarity(torch.tensor(values), wanted, dim=1).min() >= least, (name, suffix)
        sizes = [(made / "onnx" / f"{name}{suffix}.onnx").stat().st_size for suffix in ("", "_quantized")]
        assert sizes[1] < sizes[0]


def test_models_of_two_families_have_nothing_between_them(tmp_path):
    """Their weights have the same names, and may have the same shapes."""
    save_metaclip_2(tmp_path)
    model = load_clip(str(tmp_path))
    config = {key: value for key, value in model.config.to_dict().items() if key != "model_type"}
    for part in ("text_config", "vision_config"):
        config[part].pop("model_type")
    twin = CLIPModel(CLIPConfig(**config))
    twin.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match="the two models are a MetaCLIP 2 and a CLIP; interpolate between"):
        merge(model, twin, 0.5)


def test_what_is_near_a_family_but_not_of_it_is_refused_with_what_to_take(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"NaFlex.*such as google/siglip2-base-patch16-224\.$"):
        load_clip(str(tmp_path))
    with pytest.raises(UserError, match="is a 'blip' model, not a CLIP, MetaCLIP 2 or SigLIP. Name a checkpoint of"):
        family_named("blip")
    with pytest.raises(UserError, match="is a 'siglip_text_model' model, .*, but one encoder of it"):
        family_named("siglip_text_model")


def test_the_pipeline_of_the_original_is_what_it_was(kind, folder, tmp_path):
    """The drop-in of an untouched model scores as the original does, by what lies in its folder alone."""
    export(["--model", folder, "--format", "transformers", "--output_dir", str(tmp_path / "made")])
    from PIL import Image

    image, labels = Image.new("RGB", (20, 20), "blue"), ["a red square", "a BLUE one", "a mark"]
    before, after = (
        pipeline("zero-shot-image-classification", str(each))(image, candidate_labels=labels)
        for each in (folder, tmp_path / "made")
    )
    assert before == after
    names = {path.name for path in Path(tmp_path, "made").iterdir()}
    assert ("modules.json" in names) == kind.startswith("siglip")


def test_captions_beyond_77_tokens_are_read_where_the_model_has_places_for_them(rows, tmp_path):
    """As LongCLIP and others have, whose tables of positions were lengthened."""
    source = tmp_path / "long"
    save_clip(source)
    processor, config = CLIPProcessor.from_pretrained(source), CLIPModel.from_pretrained(source).config
    config.text_config.max_position_embeddings = 248
    CLIPModel(config).save_pretrained(source)
    caption = "a red square beside a blue one with a mark " * 15
    assert 77 < len(processor.tokenizer(caption)["input_ids"]) < 248
    trainer = make_trainer(str(source), tmp_path / "made", rows)
    embeds = Embedder(trainer.model, trainer.processing_class).texts([caption, caption[:100]]).embeds
    torch.testing.assert_close(embeds, stock_texts(str(source), [caption, caption[:100]]), atol=1e-5, rtol=0)
    assert trainer.data_collator([{**rows[0], "safe_caption": caption}])["input_ids"].shape[1] > 77
    trainer.train()
    trainer.save_model()
    assert AutoProcessor.from_pretrained(tmp_path / "made").tokenizer.model_max_length == 248


def test_open_clip_embeds_as_metaclip_2_does_and_its_folder_is_read_back(rows, tmp_path):
    """Its end token is 2, which in the configuration of a CLIP would mean the largest token."""
    open_clip = pytest.importorskip("open_clip")
    source, made = tmp_path / "source", tmp_path / "made"
    save_metaclip_2(source)
    export(["--model", str(source), "--format", "open_clip", "--output_dir", str(made)])
    text = json.loads((made / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert (text["pool_type"], text["eos_id"]) == ("eos", 2)
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{made}")
    tokenizer, texts = open_clip.get_tokenizer(f"local-dir:{made}"), ["a red square", "a mark", ""]
    with torch.no_grad():
        captions = theirs.eval().encode_text(tokenizer(texts), normalize=True)
        image = theirs.encode_image(preprocess(rows[0]["safe_image"]).unsqueeze(0), normalize=True)
    torch.testing.assert_close(captions, stock_texts(str(source), texts), atol=1e-5, rtol=0)
    torch.testing.assert_close(image, stock_images(str(source), rows["safe_image"][:1]), atol=1e-5, rtol=0)
    back, processor = load_clip(str(made)), load_processor(str(made))
    check_processor(back, processor)
    assert type(back).__name__ == "MetaClip2Model"
    torch.testing.assert_close(Embedder(back, processor).texts(texts).embeds, captions, atol=1e-5, rtol=0)
