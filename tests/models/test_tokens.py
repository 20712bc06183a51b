"""A tokenizer that ends captions where the model does not read them would make all of them alike."""

import copy

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

from safe_clip import UserError
from safe_clip.models.load import check_processor
from safe_clip.models.tokens import fit_tokenizer

from ..helpers import build_model

CAPTIONS = ["a red square", "a blue square beside a green one with a mark"]


@pytest.fixture
def tokenizer(processor) -> CLIPTokenizer:
    return copy.deepcopy(processor.tokenizer)


@torch.no_grad()
def embed(model, tokenizer):
    batch = tokenizer(CAPTIONS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    return model.get_text_features(**batch).pooler_output


def test_a_model_and_its_own_tokenizer(model, tokenizer):
    def state():
        tokens = tokenizer(CAPTIONS)["input_ids"]  # which takes back how others padded and cut
        return tokenizer.backend_tokenizer.to_str(), tokens

    before = state()
    fit_tokenizer(tokenizer, model.config.text_config)
    assert state() == before


def test_an_end_token_that_the_model_does_not_look_for(processor, tokenizer):
    model = build_model(processor)
    model.config.text_config.eos_token_id = model.text_model.eos_token_id = len(tokenizer) - 1
    alike = embed(model, tokenizer)
    assert torch.allclose(alike[0], alike[1], atol=1e-5)  # what would happen
    end = tokenizer.eos_token_id
    with pytest.raises(UserError, match=rf"but the tokenizer ends captions with '<\|endoftext\|>' \({end}\)") as error:
        fit_tokenizer(tokenizer, model.config.text_config)
    assert str(error.value).endswith(f"or set eos_token_id to {end}.")


@pytest.mark.parametrize("end", [2, None, [1, 5]])
def test_an_end_token_that_is_not_where_the_model_reads(end, model, tokenizer):
    """2 stands for the largest token, and this tokenizer's end token is its second."""
    model.config.text_config.eos_token_id = end
    with pytest.raises(UserError, match=r"eos_token_id .* of text_config in config\.json"):
        fit_tokenizer(tokenizer, model.config.text_config)


def largest_at_the_end() -> CLIPTokenizer:
    """Numbered as OpenAI's, whose end token is the largest."""
    letters = [letter + end for letter in "abdefghinorstu" for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocabulary, [], model_max_length=77)


def test_old_configurations_read_at_the_largest_token(model):
    tokenizer, text = largest_at_the_end(), model.config.text_config
    text.vocab_size, text.bos_token_id, text.eos_token_id = len(tokenizer), 0, 2  # as OpenAI's configurations have it
    fit_tokenizer(tokenizer, text)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # is larger, and would be read in its place
    text.vocab_size = len(tokenizer)
    with pytest.raises(UserError, match=r"its largest token .* pads them with '<pad>' \(30\)"):
        fit_tokenizer(tokenizer, text)
    text.eos_token_id = 29
    fit_tokenizer(tokenizer, text)


def test_a_token_beyond_the_end_token_does_not_take_its_place(processor, caplog):
    """Old configurations read at the largest token: two captions with one that was added would be alike."""
    tokenizer = largest_at_the_end()
    tokenizer.add_tokens("<foo>")
    model = build_model(CLIPProcessor(processor.image_processor, tokenizer))
    text, end = model.config.text_config, tokenizer.eos_token_id
    text.eos_token_id = model.text_model.eos_token_id = 2
    added = tokenizer(["a <foo> dog", "a <foo> gun"], padding=True, return_tensors="pt")
    plain = tokenizer(["a dog", "a big gun"], padding=True, return_tensors="pt")
    with torch.no_grad():
        alike = model.get_text_features(**added).pooler_output
        before = model.get_text_features(**plain).pooler_output
    torch.testing.assert_close(alike[0], alike[1])
    check_processor(model, CLIPProcessor(processor.image_processor, tokenizer))
    assert (text.eos_token_id, model.text_model.eos_token_id) == (end, end)
    assert f"such as '<foo>' ({end + 1}): eos_token_id is set to {end}" in caplog.text
    with torch.no_grad():
        embeds = model.get_text_features(**added).pooler_output
        assert torch.equal(model.get_text_features(**plain).pooler_output, before)
    assert (embeds[0] - embeds[1]).abs().max() > 1e-3


def test_begin_tokens(model, tokenizer):
    model.config.text_config.bos_token_id = 7
    with pytest.raises(UserError, match=r"captions begin with token 7 .* or set bos_token_id to 0\."):
        fit_tokenizer(tokenizer, model.config.text_config)
    for harmless in (None, 49406):  # nothing said, or transformers' own value for what was not said
        model.config.text_config.bos_token_id = harmless
        fit_tokenizer(tokenizer, model.config.text_config)


def test_a_tokenizer_that_puts_nothing_around_a_caption(model, tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    with pytest.raises(UserError, match="puts 0 special tokens around a caption"):
        fit_tokenizer(tokenizer, model.config.text_config)


def test_what_is_not_said_is_set(model, tokenizer):
    tokenizer.pad_token, tokenizer.model_max_length = None, int(1e30)
    tokenizer.padding_side = tokenizer.truncation_side = "left"
    fit_tokenizer(tokenizer, model.config.text_config)
    assert (tokenizer.pad_token, tokenizer.model_max_length) == ("<|endoftext|>", 77)
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("right", "right")
    alone = torch.cat([embed(model, tokenizer)[[0]]])
    ids = tokenizer(CAPTIONS[0], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(alone, model.get_text_features(**ids).pooler_output, atol=1e-5, rtol=0)
    cut = tokenizer("a red square " * 100, truncation=True)["input_ids"]
    assert len(cut) == 77 and cut[0] == tokenizer.bos_token_id and cut[-1] == tokenizer.eos_token_id


def test_another_vocabulary(model, tokenizer):
    text = model.config.text_config
    text.vocab_size = 2 * len(tokenizer) + 1
    with pytest.raises(UserError, match="but the model's vocabulary"):
        fit_tokenizer(tokenizer, text)
    text.vocab_size = len(tokenizer) + 60  # filled up to a round number
    fit_tokenizer(tokenizer, text)
    vocabulary = {token: 2 * number for token, number in largest_at_the_end().get_vocab().items()}
    text.vocab_size = 40
    with pytest.raises(UserError, match="a token with the number 58, but the model's vocabulary ends at 39"):
        fit_tokenizer(CLIPTokenizer(vocabulary, []), text)


def test_a_tokenizer_that_knows_no_words(model):
    empty = CLIPTokenizer({"<|startoftext|>": 0, "<|endoftext|>": 1, "!": 2}, [])
    text = model.config.text_config
    text.vocab_size = 3
    with pytest.raises(UserError, match="cannot tell captions from each other"):
        fit_tokenizer(empty, text)


def test_the_model_is_named_whose_processor_does_not_fit(model, processor):
    model.config._name_or_path, model.config.text_config.eos_token_id = "you/clip", 7
    with pytest.raises(UserError, match="^you/clip: the model reads a caption at its first end token"):
        check_processor(model, processor)


@pytest.mark.parametrize("part", ["tokenizer", "image_processor"])
def test_half_a_processor(part, model, processor):
    half = getattr(processor, part)
    with pytest.raises(UserError, match=rf"processing_class is a {type(half).__name__}, not a CLIPProcessor"):
        check_processor(model, half)


def test_pixels_of_another_range(model, processor):
    raw = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_rescale=False)
    with pytest.raises(UserError, match="do_rescale"):
        check_processor(model, CLIPProcessor(raw, processor.tokenizer))
    grey = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    check_processor(model, CLIPProcessor(grey, processor.tokenizer))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rescale_factor": 1 / 65025}, "leaves 0.01.* between black and white"),
        ({"image_std": [9000.0] * 3}, "leaves 0.000.* between black and white"),
        ({"image_std": [0.26, 0.26, 30.0]}, "between black and white"),  # in one colour
        ({"image_std": [-0.5] * 3}, "leaves -2 between black and white"),
        ({"image_mean": [-9.0] * 3}, "of white or black, where a CLIP is used to"),
        (
            {"do_resize": False, "do_center_crop": False, "size": {"height": 16, "width": 16}},
            "neither resizes nor crops",
        ),
    ],
)
def test_images_that_come_out_alike_or_of_any_size(settings, said, model, processor):
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    images = CLIPImageProcessor(**(sizes | settings))
    with pytest.raises(UserError, match=said):
        check_processor(model, CLIPProcessor(images, processor.tokenizer))


@pytest.mark.parametrize("settings", [{"do_normalize": False}, {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}])
def test_other_ranges_that_tell_images_apart(settings, model, processor):
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, **settings)
    check_processor(model, CLIPProcessor(images, processor.tokenizer))
