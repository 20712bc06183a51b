"""Opening a CLIP and preparing it for training."""

from pathlib import Path
from types import MethodType

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPModel, CLIPProcessor, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .errors import UserError, first_line, hub_trouble
from .names import public

DEMO = "demo"
DEMO_DIR = Path(__file__).parent / "demo" / "base"

# Of both encoders, as in the paper's script.
TARGET_MODULES = ("k_proj", "v_proj", "out_proj", "fc1", "fc2", "patch_embedding")


def resolve_model(name: str) -> str:
    """The path behind `"demo"`, the embedded base model; any other name as it is."""
    return str(DEMO_DIR) if name == DEMO else name


def public_name(name: str | None) -> str:
    """What others may know a model by: of a path on this machine, its last part."""
    if name == str(DEMO_DIR):
        return DEMO
    return public(name) if name else "a model of no stated name"


def load_clip(name: str, revision: str | None = None, token: str | None = None) -> CLIPModel:
    """Loads a `CLIPModel` in float32 from safetensors weights.

    Args:
        name: `"demo"` for the embedded base, a Hub id, or a folder.
        revision: a branch, tag or commit of a Hub repository.
        token: a Hub token; the one stored by `hf auth login` by default.

    Raises:
        UserError: there is no such model, it is gated, it is not a CLIP, it has no safetensors, it wants its own code
            to be run, or the Hub cannot serve it just now.
    """
    path = resolve_model(name)
    where = {"revision": revision, "token": token}
    try:
        config, _ = PreTrainedConfig.get_config_dict(path, **where)
        # Asked for such weights where there are none, transformers would have them made by a bot on the Hub.
        safe = _has_safetensors(path, **where)
    except Exception as error:
        raise _unavailable(name, error) from error
    if not config.get("model_type"):
        raise _unavailable(name, OSError("it has no config.json that names a model_type"))
    _refuse_code(name, config, "config.json")
    if config.get("model_type") != "clip":
        raise UserError(
            f"--model {name} is a '{config['model_type']}' model, not a CLIP. "
            "Name a checkpoint of the CLIPModel class, such as openai/clip-vit-base-patch32."
        )
    if not safe:
        raise UserError(
            f"--model {name} offers no safetensors weights, and others, such as pytorch_model.bin, are not loaded "
            "because they can run code. Convert them with https://huggingface.co/spaces/safetensors/convert."
        )
    try:
        # Adapters train in float32 whatever precision the checkpoint was stored in; autocast is
        # what makes the arithmetic faster.
        return CLIPModel.from_pretrained(path, **where, use_safetensors=True, dtype=torch.float32)
    except Exception as error:  # a broken file raises the format's own type, which is no OSError
        raise _unavailable(name, error) from error


def _refuse_code(name: str, settings: dict, file: str) -> None:
    """Raises `UserError` where a repository names code of its own; none was run so far."""
    if "auto_map" in settings:
        raise UserError(
            f"--model {name} wants code of its own to be run (auto_map in its {file}), which is refused: code from a "
            "repository can do whatever you can. Name a plain checkpoint of the CLIPModel class."
        )


def _has_safetensors(path: str, **where: str | None) -> bool:
    """Whether a folder or repository has such weights; an error where there is nobody to ask."""
    unsure = None
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
        if Path(path).is_dir():
            if Path(path, file).is_file():
                return True
            continue
        try:
            hf_hub_download(path, file, **where)
            return True
        except RemoteEntryNotFoundError:
            pass
        except LocalEntryNotFoundError as error:
            unsure = error
    if unsure is not None:
        raise unsure
    return False


def load_processor(name: str, revision: str | None = None, token: str | None = None) -> CLIPProcessor:
    """Loads the `CLIPProcessor` (tokenizer and image processor) that belongs to a model."""
    path, where = resolve_model(name), {"revision": revision, "token": token}
    try:
        processor = CLIPProcessor.from_pretrained(path, **where, trust_remote_code=False)
        settings, _ = CLIPProcessor.get_processor_dict(path, **where)
    except Exception as error:
        if trouble := hub_trouble(error):
            raise UserError(f"--model {name}: {trouble}") from error
        raise UserError(
            f"--model {name} has no usable tokenizer and image processor ({error}). "
            "Save them beside the weights with `processor.save_pretrained(folder)`."
        ) from error
    _refuse_code(name, settings, "processor's configuration")
    _refuse_code(name, processor.tokenizer.init_kwargs, "tokenizer_config.json")
    # A CLIP has no use for them, and each would be saved under the name that the repository gave it.
    processor.chat_template = processor.tokenizer.chat_template = None
    return processor


def _unavailable(name: str, error: Exception) -> UserError:
    if trouble := hub_trouble(error):
        return UserError(f"--model {name}: {trouble}")
    page = f"https://huggingface.co/{name}"
    causes = (error, error.__cause__)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return UserError(f"--model {name} is gated: accept its terms at {page}, then log in with `hf auth login`.")
    missing = isinstance(error, OSError) and not Path(name).exists()
    if missing or any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return UserError(
            f"--model {name} was found neither as a folder nor at {page}. Check the spelling and the "
            f"connection; if it is private, log in with `hf auth login`. ({first_line(error)})"
        )
    return UserError(f"--model {name} cannot be opened: {first_line(error)}")


def check_processor(model: CLIPModel, processor: CLIPProcessor) -> None:
    """Raises `UserError` where the processor's pictures or tokens do not fit the model."""
    expected = model.config.vision_config.image_size
    image_processor = processor.image_processor
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    made = (size["height"], size["width"]) if "height" in size else (size.get("shortest_edge"),) * 2
    if not image_processor.do_center_crop and "height" not in size:
        raise UserError(
            "the image processor neither crops nor fixes both sides, so that pictures keep their shape, but the model "
            f"takes {expected}x{expected} pixels. Use the processor that belongs to the model, or set `do_center_crop`."
        )
    if made != (expected, expected):
        raise UserError(
            f"the image processor makes pictures of {made[0]}x{made[1]} pixels, but the model takes "
            f"{expected}x{expected}. Use the processor that belongs to the model, or set its `size` and `crop_size`."
        )
    tokens, vocabulary = len(processor.tokenizer), model.config.text_config.vocab_size
    if tokens > vocabulary:
        raise UserError(
            f"the tokenizer has {tokens} tokens, but the model's vocabulary only {vocabulary}. "
            "Use the processor that belongs to the model."
        )


def lora_config(r: int = 16, lora_alpha: float = 32, lora_dropout: float = 0.0) -> LoraConfig:
    """LoRA on the modules of both encoders that the paper's script adapts (with rank 16, alpha 1, dropout 0.1).

    Args:
        r: rank.
        lora_alpha: the update is scaled by `lora_alpha / r`.
        lora_dropout: share of adapter inputs dropped in training.
    """
    return LoraConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=list(TARGET_MODULES))


def accept_one_modality(model: CLIPModel) -> None:
    """Lets a model's `forward` take captions alone, or pictures alone, of which it then gives the embeddings.

    The other tower is not run. With both, `forward` is what it was; nothing of this is saved.
    """
    model.forward = MethodType(_forward, model)


def _forward(
    self: CLIPModel,
    input_ids: Tensor | None = None,
    pixel_values: Tensor | None = None,
    attention_mask: Tensor | None = None,
    **kwargs,
) -> CLIPOutput:
    if pixel_values is None:
        features = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        _keep_last(features)
        return CLIPOutput(text_embeds=normalize(features.pooler_output, dim=-1), text_model_output=features)
    if input_ids is None:
        features = self.get_image_features(pixel_values=pixel_values, **kwargs)
        _keep_last(features)
        return CLIPOutput(image_embeds=normalize(features.pooler_output, dim=-1), vision_model_output=features)
    output = CLIPModel.forward(self, input_ids, pixel_values, attention_mask, **kwargs)
    for part in (output.text_model_output, output.vision_model_output):
        _keep_last(part)
    return output


def _keep_last(output: BaseModelOutputWithPooling) -> None:
    """Lets go of the states of all layers but the last two, of which others would make copies in float32."""
    if output.hidden_states is not None:
        output.hidden_states = output.hidden_states[-2:]


def train_towers(model: nn.Module, text: bool, image: bool) -> None:
    """Holds the weights of a tower still that has nothing to be trained on.

    Args:
        model: a `CLIPModel`, or a `PeftModel` of one.
        text, image: whether there are captions, and pictures.
    """
    for name, parameter in model.named_parameters():
        held = (not text and "text_" in name) or (not image and ("vision_model" in name or "visual_projection" in name))
        if held:
            parameter.requires_grad_(False)


def accept_sharding(model: CLIPModel) -> None:
    """Makes a model one that FSDP2 and DeepSpeed can cut into shards.

    They take no weight that is a single number, so the logit scale, which is not trained, becomes a buffer of the same
    name; and accelerate asks for input embeddings, of which a CLIP has none that are its own.
    """
    if "logit_scale" in model._parameters:
        scale = model.logit_scale.detach()
        del model.logit_scale
        model.register_buffer("logit_scale", scale)
    model.get_input_embeddings = _no_embeddings


def _no_embeddings() -> None:
    return None
