"""What is in a Hub repository before a model is pushed to it."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RevisionNotFoundError

from ..card_text import forget_facts
from ..errors import UserError
from ..outputs import OutputFolder
from ..store.known_files import CARD, FIGURES, LOADED, MARKS, WRITTEN, fits

# Of a model that was there before, what a new one may leave over.
MODEL = ("adapter/adapter_*", "model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")


@dataclass
class HubFolder:
    """What was there.

    Attributes:
        card: the text of a card of ours, or of one that has metadata alone.
        figures: the text of `evaluation.json`, if it is there.
        weights: the digest of those that the figures there are of.
        foreign: files at the root that others wrote, and that would change what is loaded.
    """

    card: str | None = None
    figures: str | None = None
    weights: str | None = None
    foreign: list[str] = field(default_factory=list)

    def to_delete(self, weights: str | None) -> list[str]:
        """Patterns of what goes in the commit that brings weights with a digest, unless it brings another such file."""
        figures = () if weights is not None and weights == self.weights else FIGURES
        return [*MODEL, *figures, *self.foreign]

    def bring_card(self, output: OutputFolder) -> None:
        """Writes the card that was there beside a model that has none, with its figures where they are of it."""
        if self.card is None or (output.path / CARD).exists():
            return
        if self.weights is not None and self.weights == output.manifest["weights"]:
            output.write(CARD, self.card, editable=True)
            output.write("evaluation.json", self.figures)
        else:
            output.write(CARD, forget_facts(self.card), editable=True)


def look(api: HfApi, repo: str, revision: str | None, overwrite: bool) -> HubFolder:
    """Looks at a repository that will be pushed to; a branch that is not there yet is made.

    Args:
        api: logged in.
        repo: its id.
        revision: the branch; by default the main one.
        overwrite: what others wrote may be deleted.

    Raises:
        UserError: it holds what others wrote.
    """
    try:
        info = api.model_info(repo, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo, branch=revision)
        info = api.model_info(repo, revision=revision)
    names = {each.rfilename for each in info.siblings or []}

    def text(name: str) -> str:
        if name not in names:
            return ""
        path = Path(api.hf_hub_download(repo, name, revision=info.sha))
        return path.read_text(encoding="utf-8", errors="replace")

    card, arguments = text(CARD), "training_args.json"
    marked = any(mark in card for mark in MARKS[CARD])
    ours = marked or any(mark in text(arguments) for mark in MARKS[arguments])
    foreign = sorted(
        name for name in names if "/" not in name and fits(name, LOADED) and not (ours and fits(name, WRITTEN))
    )
    if not marked and re.sub(r"\A---\s.*?\n---\s*", "", card, flags=re.DOTALL).strip():
        foreign.append(CARD)
        card = ""
    if foreign and not overwrite:
        raise UserError(
            f"the repository {repo} holds what this package did not write: {', '.join(foreign)}. Name another with "
            "--hub_model_id, or add --overwrite_output_dir: it is then deleted in the commit that brings the model."
        )
    figures = text("evaluation.json")
    try:
        weights = json.loads(figures or "{}")["weights"]["model"]
    except (ValueError, KeyError, TypeError):
        weights = None
    return HubFolder(card or None, figures or None, weights, foreign)
