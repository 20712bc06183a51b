"""What is trained: a whole CLIP, in float32, through adapters of both encoders."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection, TrainerCallback

from safe_clip import SafeCLIPTrainer, SafeCLIPTrainingArguments, UserError
from safe_clip.models.families import CLIP
from safe_clip.models.preparation import lora_config, prepare_model

from ..helpers import build_model


def test_lora_adapts_both_encoders(model):
    config = lora_config()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0)
    adapted = get_peft_model(model, config)
    names = {
        name.split(".lora_")[0].rsplit("base_model.model.")[-1]
        for name, p in adapted.named_parameters()
        if p.requires_grad
    }
    assert {name.rsplit(".", 1)[-1] for name in names} == set(CLIP.lora_targets)
    assert sum(name.startswith("text_model") for name in names) == 2 * 5
    assert sum(name.startswith("vision_model") for name in names) == 2 * 5 + 1
    assert not adapted.base_model.model.logit_scale.requires_grad


def test_models_that_cannot_be_trained(model, processor):
    """Each is told in one line that names what it is."""
    adapted = get_peft_model(build_model(processor), lora_config())
    with torch.device("meta"):
        empty = CLIPModel(model.config)
    broken = build_model(processor)
    with torch.no_grad():
        broken.visual_projection.weight[0, 0] = torch.nan
    quantised = build_model(processor)
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    for given, said in (
        (CLIPVisionModel(model.config.vision_config), "the model is a CLIPVisionModel, not a CLIPModel"),
        (CLIPVisionModelWithProjection(model.config.vision_config), "is a CLIPVisionModelWithProjection, not a CLIP"),
        (processor.tokenizer, "the model is a CLIPTokenizer, not a CLIPModel"),
        (None, "the model is a NoneType, not a CLIPModel"),
        (
            get_peft_model(CLIPVisionModel(model.config.vision_config), lora_config()),
            "is a CLIPVisionModel, not a CLIP",
        ),
        (adapted.get_base_model(), "with an adapter in its layers: pass the PeftModel"),
        (empty, "78 tensors of the model have no values"),
        (broken, r"the model's tensors hold values that are not finite numbers \(1\): visual_projection.weight"),
        (quantised, "the model is quantised"),
    ):
        with pytest.raises(UserError, match=said) as error:
            prepare_model(given)
        assert "\n" not in str(error.value)


def test_models_are_unwrapped_and_widened(model, processor):
    expected = {name: value.half().float() for name, value in model.state_dict().items()}
    model = model.half()
    for given in (model, torch.nn.DataParallel(model), torch.compile(model)):
        prepared, dtype = prepare_model(given)
        assert (prepared, dtype) == (model, torch.float16)
        assert all(torch.equal(value, expected[name]) for name, value in prepared.state_dict().items())
        model.half()
    adapted = get_peft_model(build_model(processor).bfloat16(), lora_config())
    prepared, dtype = prepare_model(adapted)
    assert prepared is adapted and dtype == torch.bfloat16
    assert {weight.dtype for weight in adapted.parameters()} == {torch.float32}


def test_captions_are_read_where_the_saved_configuration_says(model, processor):
    """A model keeps what its configuration said when it was made."""
    model.text_model.eos_token_id = 5
    tokens = processor.tokenizer(["a red square", "a blue square"], return_tensors="pt")
    with torch.no_grad():
        alike = model.get_text_features(**tokens).pooler_output
        found = prepare_model(model)[0].get_text_features(**tokens).pooler_output
        expected = build_model(processor).get_text_features(**tokens).pooler_output
    assert not torch.equal(alike, expected) and torch.equal(found, expected)


def test_a_trainer_says_what_it_was_not_given(model, processor, tmp_path):
    args = SafeCLIPTrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    for given, said in (
        ({"model_init": lambda: model}, "model_init is not supported: pass the model as `model`"),
        ({"model": model, "tokenizer": processor.tokenizer}, "tokenizer is not supported"),
        ({"model": model, "processing_class": processor.tokenizer}, "processing_class is a CLIPTokenizer"),
        ({"model": CLIPVisionModel(model.config.vision_config)}, "the model is a CLIPVisionModel"),
    ):
        with pytest.raises(UserError, match=said):
            SafeCLIPTrainer(args=args, **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"train_dataset": "demo"}, r"rows are required here, not 'demo': load them with load_quadruplets\('demo'\)"),
        ({"train_dataset": Path("data/rows")}, r"load_quadruplets\('data/rows'\)"),
        ({"train_dataset": iter(())}, "rows come as tuple_iterator, not as rows with a length"),
        ({"train_dataset": list}, "rows come as type"),
        ({"train_dataset": 3}, "rows come as int"),
        ({"eval_dataset": "validation"}, "rows are required here, not 'validation'"),
        ({"eval_dataset": {"a": "b"}}, "rows are required here, not 'b'"),
        ({"eval_dataset": []}, "there is no row to evaluate on"),
        ({"eval_dataset": {}}, "there is no row to evaluate on"),
        ({"peft_config": "lora"}, "peft_config is 'lora'; it must be a configuration of peft"),
        ({"peft_config": {"r": 4}}, "peft_config is {'r': 4}; it must be"),
        ({"peft_config": False}, "peft_config is False; .*None to train all weights"),
        ({"peft_config": LoraConfig}, "it must be a configuration of peft"),
        ({"peft_config": LoraConfig(target_modules=["zzz"])}, "peft_config does not fit the model: Target modules"),
        ({"peft_config": LoraConfig()}, "peft_config does not fit the model: Please specify `target_modules`"),
        ({"peft_config": LoraConfig(target_modules=["fc1"], task_type="CAUSAL_LM")}, "has the task_type CAUSAL_LM"),
        ({"callbacks": ["x"]}, "callbacks holds 'x', which is no TrainerCallback"),
        ({"callbacks": "x"}, "callbacks is 'x'; it must be a list"),
        ({"compute_metrics": "accuracy"}, "compute_metrics is 'accuracy'; it must be a function"),
        ({"data_collator": "x"}, "data_collator is 'x'; it must be a function"),
        ({"compute_loss_func": print}, "compute_loss_func is not supported: the loss is the objective's"),
        ({"optimizers": "x"}, "optimizers is 'x'; it must be an optimizer and its schedule, as a tuple"),
        ({"optimizer_cls_and_kwargs": "x"}, "optimizer_cls_and_kwargs is 'x'"),
        ({"train_datset": []}, "SafeCLIPTrainer takes no 'train_datset'. Did you mean 'train_dataset'"),
    ],
)
def test_what_a_trainer_cannot_take_is_one_line(given, said, model, processor, rows, tmp_path):
    args = SafeCLIPTrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    with pytest.raises(UserError, match=said) as error:
        SafeCLIPTrainer(model, args, **{"train_dataset": rows, "processing_class": processor} | given)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_what_a_trainer_cannot_do_is_one_line(model, processor, rows, tmp_path):
    args = SafeCLIPTrainingArguments(str(tmp_path / "out"), report_to="none", use_cpu=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    given = {"peft_config": LoraConfig(target_modules=["fc1"]), "callbacks": [TrainerCallback, TrainerCallback()]}
    given |= {"optimizers": (optimizer, None), "compute_metrics": None, "compute_loss_func": None}
    trainer = SafeCLIPTrainer(model, args, rows, processing_class=processor, **given)
    for fails, said in (
        (trainer.hyperparameter_search, "hyperparameter_search is not supported"),
        (lambda: trainer.add_callback("x"), "callbacks holds 'x'"),
        (lambda: trainer.evaluate(tmp_path), "rows are required here"),
        (lambda: trainer.evaluate(3), "rows come as int"),
        (lambda: trainer.evaluate(rows.select([])), "there is no row to evaluate on"),
        (lambda: trainer.predict(rows.select([])), "there is no row to evaluate on"),
        (lambda: trainer.predict("x"), "rows are required here, not 'x'"),
    ):
        with pytest.raises(UserError, match=said):
            fails()


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_half_precision_model_is_trained_in_float32_and_saved_as_it_was(full, processor, rows, tmp_path, capsys):
    """It learns what its widened copy does, to the bit, until it is rounded at the end."""
    settings = {"max_steps": 2, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True}
    saved = {}
    for name, dtype in (("half", torch.float16), ("widened", torch.float32)):
        model = build_model(processor).half().to(dtype)
        args = SafeCLIPTrainingArguments(str(tmp_path / name), **settings)
        trainer = SafeCLIPTrainer(model, args, rows, None, processor, None if full else lora_config(4, 8))
        assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
        trainer.train()
        trainer.save_model()
        saved[name] = CLIPModel.from_pretrained(tmp_path / name)
        assert saved[name].dtype == dtype
        line = "The model is in torch.float16: it is trained in float32, and saved as it was."
        assert (line in capsys.readouterr().out) == (name == "half")
    moved = 0
    for name, value in saved["half"].state_dict().items():
        assert torch.equal(value, saved["widened"].state_dict()[name].half()), name
        moved += not torch.equal(value, build_model(processor).state_dict()[name].half())
    assert moved > 10
