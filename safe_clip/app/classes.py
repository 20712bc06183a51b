"""Which of some labels an image shows, as the pipeline of transformers gives it."""

from PIL.Image import Image
from transformers import pipeline

from ..errors import UserError
from .ladder import Ladder

TEMPLATE = "This is a photo of {}."  # the pipeline's own
MOST_LABELS, LONGEST_LABEL = 50, 100  # labels, and characters of one


def labels_of(text: str | None) -> list[str]:
    """The labels in a text, between commas or on lines of their own, each once.

    Raises:
        UserError: there are none, or too many or too long ones.
    """
    parts = (" ".join(part.split()) for part in (text or "").replace("\n", ",").split(","))
    labels = list(dict.fromkeys(filter(None, parts)))
    if not labels:
        raise UserError("type some labels, with commas between them.")
    if len(labels) > MOST_LABELS:
        raise UserError(f"these are {len(labels)} labels; at most {MOST_LABELS} are compared.")
    if max(map(len, labels)) > LONGEST_LABEL:
        raise UserError(f"a label has more than {LONGEST_LABEL} characters.")
    return labels


class Classes:
    """Zero-shot classification by both models."""

    def __init__(self, ladder: Ladder):
        self.ladder = ladder
        self._pipelines = {
            strength: pipeline(
                "zero-shot-image-classification",
                model=opened.model,
                tokenizer=opened.processor.tokenizer,
                image_processor=opened.processor.image_processor,
                device=ladder.device,
            )
            for strength, opened in ((0.0, ladder.original), (1.0, ladder.safe))
        }

    @property
    def independent(self) -> bool:
        """Whether each probability is one of its own (a sigmoid), not a share of 1 (a softmax)."""
        return self.ladder.embedder(1.0).model.logit_bias is not None

    def probabilities(self, image: Image, labels: list[str], template: str = TEMPLATE) -> dict[float, list[float]]:
        """For the original (0) and the safe model (1) the probability of each label, in [0, 1].

        Raises:
            UserError: the template has no place for a label.
        """
        if "{}" not in template or len(template) > LONGEST_LABEL:
            raise UserError("the sentence must have {} where the label goes, and at most 100 characters.")
        made = {}
        for strength, classify in self._pipelines.items():
            with self.ladder.alone(strength):
                # Not `str.format`, which the pipeline uses, and which takes more than this.
                prompts = [template.replace("{}", label) for label in labels]
                found = classify(image, candidate_labels=prompts, hypothesis_template="{}")
            scores = {each["label"]: each["score"] for each in found}
            made[strength] = [scores[prompt] for prompt in prompts]
        return made
