"""Opening a CLIP and its processor."""

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin, SentencePieceBackend, TokenizersBackend
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..errors import UserError, first_line, hub_trouble, missing_tokenizer
from ..names import redact_paths
from .families import CLIP, FAMILIES, MODEL_NAMES, SIGLIP, family_named, family_of
from .family import Family
from .open_clip_format import WEIGHTS_FILE as OPEN_CLIP_WEIGHTS
from .open_clip_inputs import CONFIG_FILE as OPEN_CLIP_CONFIG
from .pipelines import fetch, split_name, text_encoders, tokenizer_folder, trainable
from .pixel_range import check_pixels
from .soundness import check_config, check_embeddings
from .tokens import CURE
from .weights import Damaged, Misfit, broken_weights, find_file, fit, read, stored_tensors, weight_files

DEMO = "demo"
DEMO_DIR = Path(__file__).parents[1] / "demo" / "base"
BUNDLED = {DEMO: DEMO_DIR, "demo-siglip": DEMO_DIR.with_name("siglip")}


def resolve_model(name: str) -> str:
    """The path behind `"demo"` or `"demo-siglip"`, which are bundled, and behind a part of a pipeline in a folder; any
    other name as it is."""
    if (part := split_name(name)) and Path(part[0]).is_dir():
        return str(Path(*part))
    return str(BUNDLED.get(name, name))


def public_name(name: str | None) -> str:
    """What others may know a model by: of a path on this machine, its last part."""
    if known := bundled_name(name):
        return known
    return redact_paths(name) if name else "a model of no stated name"


def bundled_name(path: str | None) -> str | None:
    """By which of the names of bundled models a path was found; `None` for any other."""
    return next((name for name, folder in BUNDLED.items() if path == str(folder)), None)


def load_clip(name: str, revision: str | None = None, token: str | None = None) -> PreTrainedModel:
    """Loads a whole model, such as a `CLIPModel`, in float32 from safetensors weights, all of them and no others.

    The text encoder of a diffusers pipeline is loaded on its own, as the `CLIPTextModel` or
    `CLIPTextModelWithProjection` that it is there.

    Args:
        name: `"demo"` for the bundled demo model, `"demo-siglip"` for the SigLIP of its size, a Hub id, or a folder;
            also one in open_clip's format. Of a pipeline with `:text_encoder` or `:text_encoder_2` after it.
        revision: a branch, tag or commit of a Hub repository.
        token: a Hub token; the one stored by `hf auth login` by default.

    Raises:
        UserError: there is no such model, it is gated, it is not a CLIP, its weights are not safetensors, or not those
            of its configuration, or not numbers, it requires its own code, or the Hub cannot serve it just now.
    """
    path, where = _place(name, revision, token)
    if Path(path).is_file():
        raise UserError(f"--model {name} is a file: name the folder that has config.json and model.safetensors in it.")
    settings, foreign = {}, None
    try:
        adapter = _find_adapter(path, **where)
        if find_file(path, CONFIG_NAME, **where):
            settings = _settings(path, **where)
        if not settings.get("model_type"):
            foreign = find_file(path, OPEN_CLIP_CONFIG, **where)
        # Asked for such weights where there are none, transformers would have them made by a bot on the Hub.
        files = weight_files(path, [OPEN_CLIP_WEIGHTS if foreign else SAFE_WEIGHTS_NAME], **where)
    except Damaged as error:
        raise UserError(f"--model {name} {error}") from error
    except Exception as error:
        raise _unavailable(name, error, found=bool(settings or foreign)) from error
    if adapter:
        raise _adapter(name, path, adapter, whole=bool(settings and files))
    family = _family_in_open_clip(foreign) if foreign else _check_settings(name, path, settings, **where)
    if not files:
        if others := sorted(Path(path).glob("*.safetensors")):
            raise UserError(f"--model {name}: its weights are expected in {SAFE_WEIGHTS_NAME}, not {others[0].name}.")
        raise UserError(
            f"--model {name} offers no safetensors weights, and others, such as pytorch_model.bin, are not loaded "
            "because they can run code. Convert them with https://huggingface.co/spaces/safetensors/convert."
        )
    try:
        if foreign and family.open_clip:
            config = family.open_clip.read_config(json.loads(Path(foreign).read_text(encoding="utf-8")))
        else:
            config = family.config.from_pretrained(path, **where)
        family = family_of(config)
        check_config(config)
        model = _assemble(config, files, family.open_clip if foreign else None)
    except Misfit as error:
        raise UserError(
            f"--model {name}: its weights are not those of the {family.model.__name__} that its configuration "
            f"describes: {error}. Download it anew, or save it anew with `model.save_pretrained(folder)` where it was "
            "made."
        ) from error
    except Damaged as error:
        raise UserError(f"--model {name} {error}") from error
    except UserError as error:
        raise UserError(f"--model {name}: {error}") from error
    except Exception as error:  # a broken file raises the format's own type, which is no OSError
        raise _unavailable(name, error, found=True) from error
    part = split_name(name)
    model.name_or_path = model.config._name_or_path = name if part else path
    if part and not Path(part[0]).is_dir():
        model.config._commit_hash = Path(path).parent.name  # of the repository that it was downloaded from
    if broken := broken_weights(model):
        raise UserError(f"--model {name}: {broken}. Whatever made it went wrong; take a checkpoint from before.")
    family.fix_projection_dim(model)
    return model


def _place(name: str, revision: str | None, token: str | None) -> tuple[str, dict[str, Any]]:
    """A folder or Hub id, and the revision and token that it requires; parts of pipelines are downloaded.

    Raises:
        UserError: there is no such part, or it is no text encoder of a CLIP's.
    """
    where: dict[str, Any] = {"revision": revision, "token": token}
    part = split_name(name)
    if part is None:
        return resolve_model(name), where
    try:
        return str(fetch(*part, **where)), {"revision": None, "token": None}
    except UserError as error:
        raise UserError(f"--model {name}: {error}") from error
    except Exception as error:
        raise _unavailable(part[0], error) from error


def _assemble(config: PreTrainedConfig, files: list[str], form: ModuleType | None) -> PreTrainedModel:
    """A model from files, in their own names for weights or in those of another form; raises `Misfit`."""
    kind = family_of(config).class_of(config)
    with torch.device("meta"):
        empty = kind(config)
    expected = own = empty.state_dict()
    if form is not None:
        expected = form.to_open_clip(empty)
    stored = stored_tensors(files)
    weights = read(stored, fit(stored, expected, {name for name, _ in empty.named_buffers()} - own.keys()), expected)
    if form is not None:
        weights = form.from_open_clip(weights, config)
    # Adapters train in float32 whatever precision the checkpoint was stored in; autocast is
    # what makes the arithmetic faster.
    # pyrefly: ignore [not-iterable]: transformers does not say that it gives a pair where it is asked for both
    model, loading = kind.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
    )
    if wrong := {kind: names for kind, names in loading.items() if names}:
        raise Misfit(str(wrong))
    return model


def _settings(path: str, **where: str | None) -> dict:
    """What `config.json` says; raises `Damaged` where that is no set of settings."""
    file = find_file(path, CONFIG_NAME, **where)
    try:
        # pyrefly: ignore [bad-argument-type]: of no file, this is an error of its own, which `_family_at` catches
        settings = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise Damaged(CONFIG_NAME, f"is not JSON ({error})") from error
    if not isinstance(settings, dict):
        raise Damaged(CONFIG_NAME, f"holds {str(settings)[:20]!r} in place of settings")
    return PreTrainedConfig.get_config_dict(path, **where)[0]


def _check_settings(name: str, path: str, settings: dict, **where: str | None) -> Family:
    """The family that a `config.json` names.

    Raises:
        UserError: it is not that of a whole model of a known family, with weights as they are.
    """
    kind = settings.get("model_type")
    if not kind:
        if encoders := _text_encoders(path, **where):
            raise UserError(f"--model {name} is a pipeline of diffusers, not a CLIP. {trainable(name, encoders)}")
        parts = [file.parent.name for file in sorted(Path(path).glob(f"*/{CONFIG_NAME}"))]
        hint = f"; its folders {', '.join(parts)} have one: name the one that is a CLIP" if parts else ""
        if any(Path(path).glob(f"{PREFIX_CHECKPOINT_DIR}-*/{ADAPTER_CONFIG}")):
            hint = "; it holds checkpoints of a training that did not end: go on with --resume_from_checkpoint last"
        raise _unavailable(name, OSError(f"it has no config.json that names a model_type{hint}"))
    _refuse_code(name, settings, CONFIG_NAME)
    try:
        family = family_named(kind)
    except UserError as error:
        raise UserError(f"--model {name} {error}") from None
    parts = (settings, *(settings.get(tower.sub_config or "") for tower in family.towers.values()))
    if any(isinstance(part, dict) and part.get("quantization_config") for part in parts):
        raise UserError(
            f"--model {name} is quantised (quantization_config in its {CONFIG_NAME}), and rounded weights cannot be "
            "trained nor compared. Name the checkpoint that it was made of."
        )
    return family


def _text_encoders(path: str, **where: str | None) -> dict[str, str | None]:
    """Those of a pipeline; none where it cannot be told."""
    try:
        return text_encoders(path, **where)
    except Exception:  # what is wrong is said of the config.json that is missing
        return {}


def _find_adapter(path: str, **where: str | None) -> str | None:
    try:
        return find_file(path, ADAPTER_CONFIG, **where)
    except LocalEntryNotFoundError:  # offline, where nothing else could find it either
        return None


def _adapter(name: str, path: str, file: str, whole: bool) -> UserError:
    """What to say of a model in whose place, or beside which, an adapter lies."""
    if whole:
        return UserError(
            f"--model {name} holds an adapter ({ADAPTER_CONFIG}) beside a whole model, and transformers would put the "
            "one into the other without a word. Move the adapter's files into a folder of their own."
        )
    if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", Path(path).name) or Path(path, TRAINER_STATE_NAME).is_file():
        return UserError(
            f"--model {name} is a checkpoint of a training, which holds its adapter alone: go on with it by "
            f"--resume_from_checkpoint {name}, or name the folder that save_model() wrote (that training's "
            "--output_dir)."
        )
    if Path(path).parent.joinpath(CONFIG_NAME).is_file():
        return UserError(f"--model {name} is an adapter alone: name {Path(path).parent}, the whole model around it.")
    base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    return UserError(
        f"--model {name} is an adapter of {base}, not a whole model. Merge the two: PeftModel.from_pretrained("
        f"load_clip({base!r}), {name!r}).merge_and_unload().save_pretrained(folder), and save the processor there too."
    )


def _refuse_code(name: str, settings: dict, file: str) -> None:
    """Raises `UserError` where a repository names code of its own; none was run so far."""
    if "auto_map" in settings:
        raise UserError(
            f"--model {name} requires code of its own to be run (auto_map in its {file}), which is refused: code "
            f"from a repository can do whatever you can. Name a plain checkpoint of the {MODEL_NAMES} class."
        )


def _has_safetensors(path: str, **where: Any) -> bool:
    """Whether a folder or repository has such weights; an error where there is nobody to ask."""
    return bool(weight_files(path, **where))


def load_processor(name: str, revision: str | None = None, token: str | None = None) -> ProcessorMixin:
    """Loads the processor (tokenizer and image processor) that belongs to a model, of a CLIP its `CLIPProcessor`.

    That of a text encoder alone has a tokenizer, and `None` for its image processor.
    """
    path, where = _place(name, revision, token)
    family = _family_at(path, **where)
    kind, path = family.processor, path if family.image else tokenizer_folder(path)
    try:
        processor = kind.from_pretrained(path, **where, trust_remote_code=False)
        settings, _ = kind.get_processor_dict(path, **where)
    except ImportError as error:
        raise missing_tokenizer(name, error) from error
    except Exception as error:
        if trouble := hub_trouble(error):
            raise UserError(f"--model {name}: {trouble}") from error
        raise UserError(
            f"--model {name} has no usable tokenizer{' and image processor' if family.image else ''} ({error}). "
            "Save them beside the weights with `processor.save_pretrained(folder)`."
        ) from error
    _refuse_code(name, settings, "processor's configuration")
    _refuse_code(name, processor.tokenizer.init_kwargs, "tokenizer_config.json")
    # A CLIP has no use for them, and each would be saved under the name that the repository gave it.
    processor.chat_template = processor.tokenizer.chat_template = None
    return processor


def _family_at(path: str, **where: str | None) -> Family:
    """The family of a model by its `config.json`, or by open_clip's; a CLIP's where these do not say."""
    try:
        settings = _settings(path, **where) if find_file(path, CONFIG_NAME, **where) else {}
        if kind := settings.get("model_type"):
            return FAMILIES.get(kind, CLIP)
        foreign = find_file(path, OPEN_CLIP_CONFIG, **where)
        return _family_in_open_clip(foreign) if foreign else CLIP
    except Exception:  # what is wrong with it is said where the processor is opened
        return CLIP


def _family_in_open_clip(file: str) -> Family:
    """The family that an `open_clip_config.json` describes: a CLIP, where it does not say that it is a SigLIP."""
    try:
        return SIGLIP if "init_logit_bias" in json.loads(Path(file).read_text(encoding="utf-8"))["model_cfg"] else CLIP
    except Exception:  # what is wrong with it is said where it is read
        return CLIP


def _unavailable(name: str, error: Exception, found: bool = False) -> UserError:
    """What to say of an error; `found` where a part of the model was found, so that there is one."""
    if trouble := hub_trouble(error):
        return UserError(f"--model {name}: {trouble}")
    page = f"https://huggingface.co/{name}"
    causes = (error, error.__cause__)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return UserError(f"--model {name} is gated: accept its terms at {page}, then log in with `hf auth login`.")
    missing = isinstance(error, OSError) and not found and not Path(name).exists()
    if missing or any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return UserError(
            f"--model {name} was found neither as a folder nor at {page}. Check the spelling and the "
            f"connection; if it is private, log in with `hf auth login`. ({first_line(error)})"
        )
    return UserError(f"--model {name} cannot be opened: {first_line(error)}")


def check_processor(model: PreTrainedModel, processor: ProcessorMixin, embed: bool = True) -> None:
    """Makes a processor fit a model, in what `fit_tokenizer` sets of its tokenizer.

    Raises:
        UserError: its pixels or tokens are not those that the model takes, or the model embeds all alike.
    """
    try:
        _check_processor(model, processor)
        if embed:
            check_embeddings(model, processor)
    except UserError as error:
        raise UserError(f"{public_name(model.config._name_or_path)}: {error}") from error


def _check_processor(model: PreTrainedModel, processor: ProcessorMixin) -> None:
    family = family_of(model)
    if family.image is None:
        if not isinstance(processor, family.processor):
            raise UserError(
                f"processing_class is a {type(processor).__name__}, and the model a {family.name} alone, which takes "
                "captions: pass what load_processor() gives for it."
            )
    elif any(getattr(processor, part, None) is None for part in ("tokenizer", "image_processor")):
        raise UserError(
            f"processing_class is a {type(processor).__name__}, not a {family.processor.__name__}: pass tokenizer "
            f"and image processor together, as load_processor() or {family.processor.__name__}(image_processor, "
            "tokenizer) gives them."
        )
    if not isinstance(processor.tokenizer, TokenizersBackend | SentencePieceBackend):
        raise UserError(
            f"the tokenizer is a {type(processor.tokenizer).__name__}, which is none of the tokenizers library nor of "
            f"SentencePiece's. {CURE}."
        )
    if family.image is not None:
        check_pixels(processor.image_processor, family.image_size(model.config))
    family.fit_tokenizer(processor.tokenizer, family.text.config_of(model.config))
    family.sync_eos_token(model)
