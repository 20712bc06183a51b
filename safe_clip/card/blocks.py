"""The parts of a card that are written anew, each between two marks; all other text is a person's."""

import html
import re

# No mark may stand inside: one that a person removed must not take the text up to the next one along.
BLOCK = re.compile(r"<!-- safe-clip: (\w+) -->((?:(?!<!-- /?safe-clip: ).)*?)<!-- /safe-clip: \1 -->", re.DOTALL)


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
