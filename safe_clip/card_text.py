"""The text of a card: what is written anew, each part between two marks, and what is a person's."""

import html
import re

from huggingface_hub import EvalResult, ModelCard
from yaml import YAMLError

from .names import TITLES

# No mark may stand inside: one that a person removed must not take the text up to the next one along.
BLOCK = re.compile(r"<!-- safe-clip: (\w+) -->((?:(?!<!-- /?safe-clip: ).)*?)<!-- /safe-clip: \1 -->", re.DOTALL)
UNMARKED = re.compile(r"\\([_*\[\]])")  # what a code span shows as it is
OF_WEIGHTS = ("about", "results", "worst", "training")  # parts that other weights make wrong
NOT_KNOWN = "Not known yet of the weights that are here now."


def read_blocks(card: str) -> dict[str, str]:
    """What stands between the marks, by name."""
    return {name: text.strip("\r\n") for name, text in BLOCK.findall(card)}


def replace_blocks(card: str, blocks: dict[str, str]) -> str:
    """Puts texts in place of what stands between their marks; those without marks are appended."""
    found = read_blocks(card)
    marked = {name: f"<!-- safe-clip: {name} -->\n{text}\n<!-- /safe-clip: {name} -->" for name, text in blocks.items()}
    card = BLOCK.sub(lambda match: marked.get(match[1], match[0]), card)
    return "".join([card, *(f"\n{text}\n" for name, text in marked.items() if name not in found)])


def plain(text: object) -> str:
    """A name from elsewhere, so that it is text in a Markdown table and nothing else."""
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", str(text))
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))


def code(text: object) -> str:
    """As `plain`, in a code span, where a backslash before these marks would be shown."""
    return "`" + UNMARKED.sub(r"\1", plain(text)) + "`"


def is_ours(result: EvalResult) -> bool:
    """Whether a figure of a card's metadata is of this package."""
    return (result.metric_name or "").startswith(tuple(TITLES.values()))


def others(card: ModelCard) -> list[EvalResult] | None:
    """Figures in a card's metadata that are not this package's."""
    return [result for result in card.data.get("eval_results") or [] if not is_ours(result)] or None


def forget_facts(text: str) -> str:
    """A card without what it says of weights that are replaced; a person's text and metadata stay."""
    try:
        card = ModelCard(text)
        if card.data.get("eval_results"):
            card.data.eval_results = others(card)
            text = str(card)
    except (ValueError, YAMLError):  # metadata that cannot be read stay as they are
        pass
    return replace_blocks(text, {name: NOT_KNOWN for name in read_blocks(text) if name in OF_WEIGHTS})
