"""What is said of a family is so of a model of it."""

import pytest
import torch
from peft import get_peft_model
from transformers import CLIPVisionConfig, Siglip2Config

from safe_clip import UserError, lora_config
from safe_clip.models.export import FORMATS
from safe_clip.models.families import CLIP, family_named, family_of

from ..helpers import build_model


def test_all_that_a_family_names_is_in_a_model_of_it(model):
    config = model.config
    assert family_of(model) is family_of(config) is CLIP
    assert isinstance(model, CLIP.model) and isinstance(config, CLIP.config)
    assert (CLIP.dimension(config), CLIP.max_length(config), CLIP.image_size(config)) == (24, 77, 16)
    assert CLIP.scale_of(model) == pytest.approx(1 / 0.07, rel=1e-3)
    assert CLIP.logit_scale in CLIP.scalars and all(getattr(model, name).dim() == 0 for name in CLIP.scalars)
    assert [getattr(config, name) for name in (*CLIP.positive_ints, *CLIP.log_settings)] == [24, pytest.approx(2.6592)]
    assert set(CLIP.exports) <= set(FORMATS)
    for tower, tables in ((CLIP.text, 1), (CLIP.image, 2)):
        part = tower.config_of(config)
        assert part.model_type == tower.model_type and part.hidden_size == 32
        assert all(isinstance(getattr(part, name), int) for name in tower.positive_ints)
        assert all(hasattr(part, name) for name in (*tower.shape, *tower.base_by))
        projection, found = tower.projection_of(model), tower.embedding_tables(tower.of(model))
        assert projection.weight.shape == (24, 32) and len(found) == tables
        assert all(table.shape[1] == 32 for table in found)
        for kind in tower.encoders:
            alone = kind(part)
            assert tower.of(alone).state_dict().keys() == tower.of(model).state_dict().keys()
            assert (tower.projection_of(alone) is not None) == kind.__name__.endswith("WithProjection")


def test_each_weight_belongs_to_one_tower_or_is_a_scalar(processor):
    model = get_peft_model(build_model(processor), lora_config())
    assert family_of(model) is CLIP
    for name, _ in model.named_parameters():
        owners = [tower.holds(name) for tower in CLIP.towers.values()]
        assert sum(owners) == (name.rsplit(".", 1)[-1] not in CLIP.scalars), name


def test_the_states_are_those_before_the_last_layer_and_the_last_of_text(model):
    tokens, pixels = torch.tensor([[0, 5, 1]]), torch.rand(2, 3, 16, 16)
    output = model(input_ids=tokens, pixel_values=pixels, output_hidden_states=True)
    states = CLIP.hidden_states(output)
    assert [layer.shape for layer in states["text"]] == [(1, 3, 32)] * 2
    assert torch.equal(states["text"][0], output.text_model_output.hidden_states[-2])
    assert torch.equal(states["text"][1], output.text_model_output.last_hidden_state)
    assert [layer.shape for layer in states["image"]] == [(2, 5, 32)]  # four patches and the class
    output.text_model_output = None
    assert CLIP.hidden_states(output).keys() == {"image"}


def test_the_default_adapter_is_in_the_modules_that_are_named_and_in_no_others(model):
    expected = {
        name
        for name, _ in model.named_modules()
        if name.rsplit(".", 1)[-1] in CLIP.lora_targets and name.rsplit(".", 1)[-1] not in CLIP.lora_excluded
    }
    assert {name.rsplit(".", 1)[-1] for name in expected} == set(CLIP.lora_targets) and len(expected) == 21
    config = lora_config(model=model)
    assert config.target_modules == lora_config().target_modules and config.exclude_modules is None
    assert set(get_peft_model(model, config).base_model.targeted_module_names) == expected


def test_an_unknown_family_is_one_line(model):
    models = "CLIPModel, MetaClip2Model or SiglipModel"
    whole = f"not a {models} (both encoders in one). Pass a {models}, a PeftModel of one, a folder or a Hub id."
    alone = CLIP.image.encoders[0](model.config.vision_config)
    for given in (Siglip2Config(), CLIPVisionConfig(), alone, None, "clip"):
        with pytest.raises(UserError) as error:
            family_of(given)
        assert str(error.value) == f"the model is a {type(given).__name__}, {whole}"
    checkpoint = f"Name a checkpoint of the {models} class, such as openai/clip-vit-base-patch32, "
    checkpoint += "facebook/metaclip-2-worldwide-b32 or google/siglip2-base-patch16-224."
    for kind, part in (("blip", ""), ("clip_vision_model", ", but one encoder of it")):
        with pytest.raises(UserError) as error:
            family_named(kind)
        assert str(error.value) == f"is a '{kind}' model, not a CLIP, MetaCLIP 2 or SigLIP{part}. {checkpoint}"
    assert family_named("clip") is CLIP
