import pytest
import torch
from transformers import BertConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from safe_clip import UserError, load_clip, load_processor
from safe_clip.models.load import check_processor


def test_loads_in_float32_whatever_was_stored(model, tmp_path):
    model.half().save_pretrained(tmp_path)
    assert load_clip(str(tmp_path)).dtype == torch.float32


def test_refuses_another_architecture(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a 'bert' model, not a CLIP"):
        load_clip(str(tmp_path))


def test_refuses_pickled_weights(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="offers no safetensors weights"):
        load_clip(str(tmp_path))


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match=f"--model {tmp_path} cannot be opened"):
        load_clip(str(tmp_path))


def test_a_model_without_a_processor(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no usable tokenizer and image processor"):
        load_processor(str(tmp_path))


def test_images_of_another_size(model, processor):
    large = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with pytest.raises(UserError, match="makes images of 32x32 pixels, but the model takes 16x16"):
        check_processor(model, CLIPProcessor(large, processor.tokenizer))
    check_processor(model, processor)


def test_images_that_keep_their_shape(model, processor):
    loose = CLIPImageProcessor(size={"shortest_edge": 16}, do_center_crop=False)
    with pytest.raises(UserError, match="neither crops nor fixes both sides"):
        check_processor(model, CLIPProcessor(loose, processor.tokenizer))


def test_a_truncated_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match=f"--model {tmp_path} cannot be opened"):
        load_clip(str(tmp_path))


def test_a_tokenizer_with_more_tokens_than_the_model(model, processor):
    model.config.text_config.vocab_size = 10
    with pytest.raises(UserError, match="but the model's vocabulary only 10"):
        check_processor(model, processor)


def test_any_clip_is_loaded_as_stock_transformers_does(model_dir):
    stock = CLIPModel.from_pretrained(model_dir)
    for ours, theirs in zip(load_clip(model_dir).parameters(), stock.parameters(), strict=True):
        assert torch.equal(ours, theirs)
