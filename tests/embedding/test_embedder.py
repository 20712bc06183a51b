import pytest
import torch
from datasets import Dataset, Image
from peft import LoraConfig, get_peft_model
from PIL import Image as PILImage

from safe_clip import FrozenReference, QuadrupletCollator, QuadrupletRows, UserError
from safe_clip.embedding import embedder as module
from safe_clip.embedding.embedder import Embedder
from safe_clip.embedding.items import IdentifiedItems
from safe_clip.evaluation.quadruplets import embed_quadruplets, readable_rows
from safe_clip.evaluation.transforms import mirror

from ..helpers import FEATURES, build_model, make_rows


def no_work(*args, **kwargs):
    raise AssertionError("embedded again")


def test_embeddings_are_stock_transformers_embeddings_in_order(model, processor, rows):
    items = embed_quadruplets(Embedder(model, processor, batch_size=7), rows)
    inputs = processor(
        text=list(rows["unsafe_caption"]), images=list(rows["unsafe_image"]), padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs)
    assert (items.unsafe_text.embeds - expected.text_embeds).abs().max() < 1e-5
    assert (items.unsafe_image.embeds - expected.image_embeds).abs().max() < 1e-5
    assert items.safe_text.embeds.shape == items.safe_image.embeds.shape == (24, 24)


def test_captions_beyond_the_text_encoder_are_cut_like_stock(model, processor):
    long = "a red square beside a blue one " * 20
    inputs = processor(text=[long], truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output, dim=1)
    assert (Embedder(model, processor).texts([long]).embeds - expected).abs().max() < 1e-6


def test_the_mode_of_the_model_is_left_as_it_was_and_dropout_is_off(processor, rows):
    model = build_model(processor)
    model.text_model.config.attention_dropout = model.vision_model.config.attention_dropout = 0.5
    model.train()
    first, second = (Embedder(model, processor).texts(rows["safe_caption"]).embeds for _ in range(2))
    assert model.training and torch.equal(first, second)


def test_identical_items_are_known_as_such(model, processor, rows):
    rows = rows.select([3, 0, 3, 1, 0])
    embedder = Embedder(model, processor)
    for items in (embedder.texts(rows["safe_caption"]), embedder.images(rows, "safe_image")):
        assert items.first.tolist() == [0, 1, 3]
        assert items.inverse.tolist() == [0, 1, 0, 2, 1]
        assert (items.different[items.inverse] - items.embeds).abs().max() < 1e-6


def test_the_same_pixels_in_another_file_format_are_the_same_image(model, processor, tmp_path):
    image = PILImage.new("RGB", (20, 16), "teal")
    for suffix in ("png", "bmp"):
        image.save(tmp_path / f"same.{suffix}")
    PILImage.new("RGB", (16, 20), "teal").save(tmp_path / "turned.png")
    names = [str(tmp_path / name) for name in ("same.png", "same.bmp", "turned.png")]
    rows = Dataset.from_dict({"image": names}).cast_column("image", Image())
    items = Embedder(model, processor).images(rows, "image")
    assert items.inverse.tolist() == [0, 0, 1]


def test_a_second_run_reads_the_cache(processor, model_dir, rows, tmp_path):
    def items():
        model = build_model(processor)  # another object with the same weights
        return model, Embedder(model, processor, cache_dir=tmp_path)

    _, first = items()
    texts, images = first.texts(rows["safe_caption"]), first.images(rows, "unsafe_image")
    model, second = items()
    model.get_text_features = model.get_image_features = no_work
    assert torch.equal(second.texts(rows["safe_caption"]).embeds, texts.embeds)
    again = second.images(rows, "unsafe_image")
    assert torch.equal(again.embeds, images.embeds) and torch.equal(again.ids, images.ids)
    for changed in (rows["unsafe_caption"], rows["safe_caption"][:-1]):
        with pytest.raises(AssertionError, match="embedded again"):
            second.texts(changed)
    with pytest.raises(AssertionError, match="embedded again"):
        second.images(rows, "safe_image")
    with pytest.raises(AssertionError, match="embedded again"):
        second.images(rows, "unsafe_image", transform=mirror)


def test_the_fingerprint_changes_with_whatever_changes_embeddings(processor, model, tmp_path):
    from transformers import CLIPImageProcessor, CLIPProcessor

    same = Embedder(build_model(processor), processor).fingerprint
    Embedder(model, processor).texts(["a red square"])  # which changes the tokenizer's settings, not its tokens
    assert Embedder(model, processor).fingerprint == same
    assert Embedder(model, processor, precision="bfloat16").fingerprint != same
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_convert_rgb=False)
    assert Embedder(model, CLIPProcessor(images, processor.tokenizer)).fingerprint != same
    model.config.text_config.hidden_act = "gelu"
    assert Embedder(model, processor).fingerprint != same
    model = build_model(processor)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1e-4
    assert Embedder(model, processor).fingerprint != same


def test_the_fingerprint_changes_with_the_strength_of_an_adapter(processor):
    weaker, stronger = (
        get_peft_model(build_model(processor), LoraConfig(r=4, target_modules=["fc1"], lora_alpha=alpha))
        for alpha in (1, 2)
    )
    stronger.load_state_dict(weaker.state_dict())
    assert Embedder(weaker, processor).model.weights == Embedder(stronger, processor).model.weights
    assert Embedder(weaker, processor).fingerprint != Embedder(stronger, processor).fingerprint
    plain = Embedder(FrozenReference(build_model(processor)), processor)
    for adapted in (weaker, stronger):
        assert Embedder(FrozenReference(adapted), processor).fingerprint == plain.fingerprint


def test_interrupted_work_goes_on_where_it_was(processor, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    whole = Embedder(build_model(processor), processor, batch_size=4).texts(rows["safe_caption"])
    model = build_model(processor)
    encode, calls = model.get_text_features, []

    def stops(**inputs):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(inputs["input_ids"]))
        return encode(**inputs)

    model.get_text_features = stops
    with pytest.raises(KeyboardInterrupt):
        Embedder(model, processor, batch_size=4, cache_dir=tmp_path).texts(rows["safe_caption"])
    assert calls == [4, 4, 4]  # one chunk of two batches is done, and half of another
    model.get_text_features = lambda **inputs: (calls.append(len(inputs["input_ids"])), encode(**inputs))[1]
    resumed = Embedder(model, processor, batch_size=4, cache_dir=tmp_path).texts(rows["safe_caption"])
    assert calls == [4, 4, 4, 4, 4, 4, 4]
    assert torch.equal(resumed.embeds, whole.embeds)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_chunk_with_zeros_in_it_is_made_again(processor, rows, tmp_path, caplog):
    def embeds() -> torch.Tensor:
        return Embedder(build_model(processor), processor, cache_dir=tmp_path).texts(rows["safe_caption"]).embeds

    whole = embeds()
    (file,) = tmp_path.rglob("*.safetensors")
    content = file.read_bytes()
    for damage in (content[:-500].ljust(len(content), b"\0"), content[:-4] + b"\0\0\x80\x3f"):
        file.write_bytes(damage)
        assert torch.equal(embeds(), whole) and "does not hold what was written): it is made again" in caplog.text
        caplog.clear()
    assert torch.equal(embeds(), whole) and not caplog.text


def test_batches_that_do_not_divide_a_chunk_keep_the_order(processor, model, rows, monkeypatch, tmp_path):
    whole = Embedder(model, processor).texts(rows["safe_caption"]).embeds
    monkeypatch.setattr(module, "CHUNK", 10)
    for cache_dir in (None, tmp_path):
        parts = Embedder(model, processor, batch_size=4, cache_dir=cache_dir).texts(rows["safe_caption"]).embeds
        assert (parts - whole).abs().max() < 1e-6


def test_lower_precision_stays_close(model, processor, rows):
    exact = Embedder(model, processor).images(rows, "safe_image").embeds
    half = Embedder(model, processor, precision="bfloat16").images(rows, "safe_image").embeds
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    assert (half * exact).sum(dim=1).min() > 0.999


def broken_rows():
    """Rows of which 1 has a broken safe image and 3 a broken unsafe one, and 4 no unsafe image."""
    table = Dataset.from_dict(make_rows(6), features=FEATURES).with_format("arrow")[:].to_pylist()
    table[1]["safe_image"] = {"bytes": b"GIF89a broken", "path": "cat.gif"}
    table[3]["unsafe_image"] = {"bytes": b"", "path": None}
    table[4]["unsafe_image"] = None
    return Dataset.from_list(table, features=FEATURES)


def test_unreadable_images_are_listed_all_at_once_and_left_out_only_when_asked(model, processor, tmp_path):
    rows = broken_rows().add_column("safe_clip_row", [10, 11, 12, 13, 14, 15])
    embedder = Embedder(model, processor, cache_dir=tmp_path)
    items = embed_quadruplets(embedder, rows)
    assert items.safe_image.row.tolist() == [0, 2, 3, 4, 5] and not items.safe_image.embeds.isnan().any()
    images = [items.safe_image, items.unsafe_image]
    with pytest.raises(UserError, match=r"test: 2 of 11 images cannot be read.*--on_bad_row skip") as error:
        readable_rows(images, "test")
    assert "row 11, column 'safe_image': the image cannot be read" in str(error.value)
    assert "row 13, column 'unsafe_image': the image cannot be read" in str(error.value)
    with pytest.raises(UserError, match=r"test: 2 of 11 images .* more than --max_bad_fraction 0\.3 allows"):
        readable_rows(images, "test", max_bad_fraction=0.3)
    with pytest.raises(UserError, match="more than --max_bad_fraction 0.34 allows"):
        readable_rows(images, "test", max_bad_fraction=0.34, left_out=1)  # 3 of 7
    keep, reasons = readable_rows(images, "test", max_bad_fraction=0.34)
    assert keep.tolist() == [0, 2, 4, 5] and len(reasons) == 2
    assert items.select(keep).unsafe_image.row.tolist() == [0, 1, 3]


def test_an_image_that_was_mended_or_replaced_is_read_again(model, processor, tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        PILImage.new("RGB", (16, 16), colour).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no image yet")
    rows = Dataset.from_dict({"image": [str(tmp_path / f"{name}.png") for name in "abc"]})
    rows = rows.cast_column("image", Image())
    embedder = Embedder(model, processor, cache_dir=tmp_path / "cache")
    first = embedder.images(rows, "image")
    assert set(first.unreadable) == {2} and first.row.tolist() == [0, 1] and len(first.embeds) == 2
    PILImage.new("RGB", (16, 16), "green").save(tmp_path / "c.png")
    second = embedder.images(rows, "image")
    assert not second.unreadable and (second.embeds[:2] - first.embeds).abs().max() < 1e-6
    PILImage.new("RGB", (16, 16), "blue").save(tmp_path / "a.png")
    third = embedder.images(rows, "image")
    assert third.inverse.tolist() == [0, 0, 1] and (third.embeds[0] - first.embeds[1]).abs().max() < 1e-6


def test_weights_that_give_no_numbers_are_no_corrupt_images(model, processor, rows):
    with torch.no_grad():
        model.visual_projection.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="gives embeddings that are not finite numbers"):
        Embedder(model, processor).images(rows, "safe_image")


def test_an_original_that_gives_no_numbers_is_no_missing_item(model, processor, rows):
    with torch.no_grad():
        model.visual_projection.weight.fill_(torch.nan)
    collator = QuadrupletCollator(processor, 77)
    with pytest.raises(UserError, match="The original gives embeddings that are not finite numbers"):
        Embedder(FrozenReference(model), processor, "The original").rows(QuadrupletRows(rows), collator, "rows")


def test_nothing_readable_is_an_error_even_when_skipping(model, processor):
    rows = Dataset.from_dict({"image": [b"no image", b"nor this"]})
    images = Embedder(model, processor).images(rows, "image")
    with pytest.raises(UserError, match="gallery: 2 of 2 images cannot be read, and none is left"):
        readable_rows([images], "gallery", max_bad_fraction=1.0)


def test_an_empty_caption_is_named_by_its_row(model, processor, rows):
    rows = rows.map(lambda row, index: {"unsafe_caption": " " if index == 5 else "a"}, with_indices=True)
    with pytest.raises(UserError, match="row 5, column 'unsafe_caption': the caption is empty"):
        embed_quadruplets(Embedder(model, processor), rows)


def test_items_of_a_selection_know_their_own_order():
    ids = torch.tensor([9, -3, 9, 5])
    items = IdentifiedItems(torch.eye(4), torch.arange(4), ids=ids, count=4).select(torch.tensor([1, 2, 3]))
    assert items.first.tolist() == [0, 1, 2] and items.ids.tolist() == [-3, 9, 5]


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-9], lambda whole: b"\0" + whole])
def test_a_damaged_chunk_alone_is_made_again(damage, model, processor, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "CHUNK", 2)

    def embedded() -> tuple:
        embedder = Embedder(model, processor, cache_dir=tmp_path)
        made, embed = [], embedder.embed
        embedder.embed = lambda inputs: made.append(1) or embed(inputs)
        return embedder.texts(["a red square", "a blue one", "a green one"]).embeds, len(made)

    first, made = embedded()
    assert made == 2 and embedded()[1] == 0 and "made again" not in caplog.text
    file = sorted(tmp_path.rglob("*.safetensors"))[0]
    file.write_bytes(damage(file.read_bytes()))
    again, made = embedded()
    assert made == 1 and torch.equal(first, again) and caplog.text.count("made again") == 1
    assert embedded()[1] == 0
