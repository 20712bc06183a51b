"""Puts a safe CLIP into a model that was made with the original: one that draws from text, or writes about images.

Both kinds read a CLIP's hidden states, on which they were trained while the CLIP stood still. A fine-tuned CLIP whose
states are still where they were can therefore take its place, and nothing else has to be trained.
"""

import copy
import logging
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import UserError, first_line, hub_trouble
from ..models.families import FAMILIES, MODEL_NAMES, family_of
from ..models.family import Tower
from ..models.load import DEMO, _has_safetensors, load_clip, load_processor, public_name
from ..models.merge import SAME_BASE, table_cosine

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

logger = logging.getLogger(__name__)


def safe_text_to_image(
    pipeline: "str | PathLike | DiffusionPipeline",
    model: str | PathLike | PreTrainedModel,
    revision: str | None = None,
    pipeline_revision: str | None = None,
    **options: Any,
) -> "DiffusionPipeline":
    """A diffusers pipeline that reads its prompts with a safe CLIP, and is otherwise what it was.

    The new `text_encoder` has the class, configuration, dtype and device of the one it replaces, so that the pipeline
    reads the same of its layers. Where the pipeline's was cut off after some layer, as Stable Diffusion 2's was, the
    safe one is too. Further encoders (SDXL's `text_encoder_2`) stay as they are, and read prompts as before.

    Args:
        pipeline: a Hub id or folder; `"demo"` for the bundled one; or a loaded pipeline, which is changed in place.
            Its offloading is to be turned on afterwards, and its adapters and textual inversions are to be loaded then.
        model: a Hub id or folder of the safe `CLIPModel`; `"demo"` for the bundled original; or a loaded one.
        revision, pipeline_revision: of the model and of the pipeline, a branch, tag or commit on the Hub.
        options: for `DiffusionPipeline.from_pretrained`, such as `torch_dtype`, `variant` or `safety_checker`.

    Raises:
        UserError: diffusers is not installed, there is no such pipeline or model, the pipeline has no CLIP for its
            `text_encoder`, or the model was not fine-tuned from the CLIP that the pipeline was made with.
    """
    clip = _open_clip(model, revision)
    painter = open_pipeline(pipeline, **options | _pinned(pipeline_revision))
    what = f"the text encoder of {_label(pipeline)}"
    _check_painter(painter, clip, what, _label(pipeline))
    if isinstance(model, str | PathLike):
        _check_tokenizer(painter, _label(pipeline), str(model), revision)
    painter.register_modules(text_encoder=_remade(painter.text_encoder, family_of(clip).text, clip))
    others = [name for name in ("text_encoder_2", "text_encoder_3") if getattr(painter, name, None) is not None]
    if others:
        logger.warning("%s is safe now; %s reads prompts as before.", what, " and ".join(others))
    return painter


def check_text_to_image(
    pipeline: "DiffusionPipeline", model: str | PathLike | PreTrainedModel, revision: str | None = None
) -> None:
    """Raises what `safe_text_to_image` would raise of a loaded pipeline, and changes nothing."""
    label = _label(pipeline)
    _check_painter(pipeline, _open_clip(model, revision), f"the text encoder of {label}", label)
    if isinstance(model, str | PathLike):
        _check_tokenizer(pipeline, label, str(model), revision)


def _check_painter(painter: "DiffusionPipeline", clip: PreTrainedModel, what: str, label: str) -> None:
    encoder = cast(PreTrainedModel, getattr(painter, "text_encoder", None))  # or none, as `_check_kind` says
    tower = family_of(clip).text
    _check_kind(what, encoder, clip, tower, "pipeline", "text_encoder")
    _check_place(what, encoder)
    base = tower.base(encoder.config)
    _check_shape(what, encoder.config, tower.config_of(clip.config), tower.shape, base)
    _check_depth(what, encoder, tower.config_of(clip.config), base)
    _check_projection(what, encoder, clip, base)
    _check_base(what, tower.embedding_tables(tower.of(encoder)), tower.embedding_tables(tower.of(clip)), base)


def safe_image_to_text(
    generator: str | PathLike | PreTrainedModel,
    model: str | PathLike | PreTrainedModel,
    revision: str | None = None,
    generator_revision: str | None = None,
    **options: Any,
) -> PreTrainedModel:
    """A model of the LLaVA family that looks at images with a safe CLIP, and is otherwise what it was.

    The new vision tower has the configuration, dtype, device and attention implementation of the one it replaces; which
    of its layers is read (`vision_feature_layer`) stays the generator's affair.

    Args:
        generator: a Hub id or folder; `"demo"` for the bundled one; or a loaded model, which is changed in place.
        model: a Hub id or folder of the safe `CLIPModel`; `"demo"` for the bundled original; or a loaded one.
        revision, generator_revision: of the model and of the generator, a branch, tag or commit on the Hub.
        options: for `AutoModelForImageTextToText.from_pretrained`, such as `dtype` or `device_map`.

    Returns:
        The model, such as a `LlavaForConditionalGeneration`.

    Raises:
        UserError: there is no such generator or model, the generator's vision tower is no CLIP's, or the model was not
            fine-tuned from the CLIP that the generator was made with.
    """
    clip = _open_clip(model, revision)
    writer = open_generator(generator, **options | _pinned(generator_revision))
    _check_writer(writer, clip, f"the vision tower of {_label(generator)}")
    owner = _owner(writer)
    owner.vision_tower = _remade(cast(PreTrainedModel, owner.vision_tower), family_of(clip).image_tower, clip)
    return writer


def check_image_to_text(
    generator: PreTrainedModel, model: str | PathLike | PreTrainedModel, revision: str | None = None
) -> None:
    """Raises what `safe_image_to_text` would raise of a loaded generator, and changes nothing."""
    _check_writer(generator, _open_clip(model, revision), f"the vision tower of {_label(generator)}")


def _check_writer(writer: PreTrainedModel, clip: PreTrainedModel, what: str) -> None:
    encoder = cast(PreTrainedModel, getattr(_owner(writer), "vision_tower", None))  # or none, as `_check_kind` says
    tower = family_of(clip).image_tower
    _check_kind(what, encoder, clip, tower, "model", "vision_tower")
    _check_place(what, encoder)
    base = tower.base(encoder.config)
    _check_shape(what, encoder.config, tower.config_of(clip.config), tower.shape, base)
    _check_base(what, tower.embedding_tables(tower.of(encoder)), tower.embedding_tables(tower.of(clip)), base)


def _pinned(revision: str | None) -> dict[str, str]:
    return {} if revision is None else {"revision": revision}


def open_pipeline(source: "str | PathLike | DiffusionPipeline", **options: Any) -> "DiffusionPipeline":
    """A diffusers pipeline with its own encoders; arguments and errors as for `safe_text_to_image`."""
    return _open(source, "pipeline", _load_painter, _load_pipeline, options)


def open_generator(source: str | PathLike | PreTrainedModel, **options: Any) -> PreTrainedModel:
    """A model of the LLaVA family with its own vision tower; arguments and errors as for `safe_image_to_text`."""
    return _open(source, "generator", _load_captioner, _load_generator, options)


def _open_clip(model: str | PathLike | PreTrainedModel, revision: str | None) -> PreTrainedModel:
    if isinstance(model, str | PathLike):
        return load_clip(str(model), revision)
    if not isinstance(model, tuple(kind for family in FAMILIES.values() for kind in family.models)):
        raise UserError(
            f"the safe model is {_kind(model)}, not a {MODEL_NAMES}: of adapters, call `merge_and_unload()`."
        )
    return model


def _open(source: Any, kind: str, demo: Callable[[], Any], load: Callable[..., Any], options: dict[str, Any]) -> Any:
    """A pipeline or generator by its name, `"demo"`, or as it was given."""
    if isinstance(source, str | PathLike) and source != DEMO:
        try:
            return load(str(source), use_safetensors=True, trust_remote_code=False, **options)
        except UserError:
            raise
        except Exception as error:
            trouble = hub_trouble(error) or (
                f"it cannot be opened ({first_line(error)}). Check the spelling, the connection and that it has "
                "safetensors weights; if it is gated, accept its terms on its page and log in with `hf auth login`."
            )
            raise UserError(f"the {kind} {source}: {trouble}") from error
    if options:
        raise UserError(f"{', '.join(options)}: only a {kind} that is opened by its name or folder takes such options.")
    return demo() if isinstance(source, str) else source


def _load_pipeline(name: str, **options: Any) -> "DiffusionPipeline":
    _need_diffusers()
    from diffusers import DiffusionPipeline

    # Named, since by default diffusers takes float32 and transformers what the weights are stored in.
    # pyrefly: ignore [bad-return]: as diffusers declares it, this may give None, which it never does
    return DiffusionPipeline.from_pretrained(name, **({"torch_dtype": torch.float32} | options))


def _load_painter() -> "DiffusionPipeline":
    _need_diffusers()
    from ..demo.painter import load_painter

    # pyrefly: ignore [bad-return]: diffusers has stand-ins for its classes, for where torch is missing
    return load_painter()


def _load_generator(name: str, **options: Any) -> PreTrainedModel:
    # Asked for such weights where there are none, transformers would have them made by a bot on the Hub.
    where = {key: options[key] for key in ("revision", "token") if key in options}
    if "variant" not in options and not _has_safetensors(name, **where):
        raise UserError(f"the generator {name} offers no safetensors weights; others can run code, and are not loaded.")
    return AutoModelForImageTextToText.from_pretrained(name, **options)


def _load_captioner() -> PreTrainedModel:
    from ..demo.captioner import load_captioner

    return load_captioner()[0]


def _need_diffusers() -> None:
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise UserError("text-to-image pipelines require diffusers: pip install 'safe-clip[generation]'.") from error


def _label(source: Any) -> str:
    """What messages call a pipeline or generator."""
    return public_name(str(source)) if isinstance(source, str | PathLike) else f"the {type(source).__name__}"


def _kind(module: Any) -> str:
    return "missing" if module is None else f"a {type(module).__name__}"


def _owner(writer: nn.Module) -> nn.Module:
    """What holds a generator's vision tower."""
    return cast(nn.Module, getattr(writer, "model", writer))


def _check_kind(what: str, encoder: Any, clip: PreTrainedModel, tower: Tower, owner: str, name: str) -> None:
    if not isinstance(encoder, tower.encoders):
        family = family_of(clip).name
        example = f", such as {tower.example}" if tower.example else ""
        raise UserError(
            f"{what} is {_kind(encoder)}, not a {family}'s, which a safe {family} could replace. Name a {owner} whose "
            f"`{name}` is a {tower.encoders[0].__name__}{example}."
        )


def _check_place(what: str, encoder: PreTrainedModel) -> None:
    if any(hasattr(module, "_hf_hook") for module in encoder.modules()):
        raise UserError(
            f"{what} is moved between devices by hooks, which a new one would lack. Load it onto one device, and turn "
            "offloading on afterwards."
        )


def _cure(base: str | None) -> str:
    likely = f"which most likely is {base}" if base else "which its card should name"
    return f"Take a safe model that was fine-tuned from the CLIP it was made with, {likely}."


def _check_shape(
    what: str, theirs: PreTrainedConfig, ours: PreTrainedConfig, names: tuple[str, ...], base: str | None
) -> None:
    for name in names:
        wanted, found = getattr(theirs, name), getattr(ours, name)
        if wanted != found:
            raise UserError(f"{what} has {name} {wanted}, but the safe model {found}. {_cure(base)}")


def _check_depth(what: str, encoder: PreTrainedModel, ours: PreTrainedConfig, base: str | None) -> None:
    wanted, found = encoder.config.num_hidden_layers, ours.num_hidden_layers
    if found < wanted:
        raise UserError(f"{what} has num_hidden_layers {wanted}, but the safe model only {found}. {_cure(base)}")


def _check_projection(what: str, encoder: PreTrainedModel, clip: PreTrainedModel, base: str | None) -> None:
    family = family_of(clip)
    if family.text.projection_of(encoder) is None:
        return
    if family.text.projection_of(clip) is None:
        raise UserError(f"{what} has a projection, but the safe model, a text encoder alone, none. {_cure(base)}")
    wanted, found = encoder.config.projection_dim, family.dimension(clip.config)
    if wanted != found:
        raise UserError(f"{what} has projection_dim {wanted}, but the safe model {found}. {_cure(base)}")


def _check_tokenizer(painter: "DiffusionPipeline", label: str, name: str, revision: str | None) -> None:
    tokenizer = getattr(painter, "tokenizer", None)
    try:
        ours = load_processor(name, revision).tokenizer
    except UserError:  # weights alone are enough to draw with
        return
    if tokenizer is not None and tokenizer.get_vocab() != ours.get_vocab():
        raise UserError(
            f"the tokenizer of {label} numbers words otherwise than that of {public_name(name)}: the safe model would "
            "read other words. Take a safe model that was fine-tuned from the CLIP the pipeline was made with."
        )


def _check_base(what: str, theirs: list[Tensor], ours: list[Tensor], base: str | None) -> None:
    cosine = table_cosine(theirs, ours)
    if not cosine >= SAME_BASE:
        raise UserError(
            f"{what} has the safe model's shape but comes from another CLIP: the mean cosine of their embedding tables "
            f"is {cosine:.2f}, where {SAME_BASE} and more is to be expected. {_cure(base)}"
        )


def _remade(old: PreTrainedModel, tower: Tower, clip: PreTrainedModel) -> PreTrainedModel:
    """An encoder like the old one, with the weights of the safe model's, as many layers of them as it has."""
    # Of a copy, as a module's configuration is its own to change.
    new = type(old)(copy.deepcopy(old.config))
    weights = tower.of(clip).state_dict()
    tower.of(new).load_state_dict({name: weights[name] for name in tower.of(new).state_dict()})
    if (projection := tower.projection_of(new)) is not None:
        projection.load_state_dict(cast(nn.Module, tower.projection_of(clip)).state_dict())
    # pyrefly: ignore [bad-argument-type]: transformers wraps `to` so that its device is taken for `self`
    return new.to(old.device, old.dtype).eval()
