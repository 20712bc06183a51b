"""The beginnings of texts that are far too long, so that the rest is not tokenised only to be cut off."""

import re
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

MOST_COUNTED = 1000  # tokens beyond which a text's are not counted
COMPOSED = 4  # characters that normalisation (NFC) may make one
# What Unicode calls white space, which CLIP's tokenizer takes for one space however much of it there is.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
STRANGE = (".", "\U0001f642", "\u7ea2", "\ue000")  # punctuation, an emoji, Chinese, and one that means nothing
WORD = re.compile(f"[^{SPACE}]+")


@lru_cache(maxsize=8)
def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The most characters of a text that one token can stand for."""
    return COMPOSED * max(map(len, tokenizer.get_vocab()))


def token_counts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of texts before any is cut, at most `MOST_COUNTED`."""
    if not texts:
        return []
    # Lengths before truncation are what is asked for, so the tokenizer's warning about them is noise.
    ids = tokenizer(beginnings(texts, tokenizer, MOST_COUNTED), truncation=False, verbose=False)["input_ids"]
    return [min(len(each), MOST_COUNTED) for each in ids]


@lru_cache(maxsize=8)
def _one_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a run of white space counts as one space."""
    one, run = tokenizer(["a a", "a \n  a"])["input_ids"]
    return one == run


@lru_cache(maxsize=8)
def _bounded(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether no token stands for more characters than `longest_token`: not where punctuation is removed, or where
    unknown characters that follow one another are one token, as in tokenizers of SentencePiece's."""
    around, longest = len(tokenizer("")["input_ids"]), longest_token(tokenizer)
    runs = (character * 4 * longest for character in STRANGE)
    return all(len(ids) - around >= 4 for ids in tokenizer(list(runs), verbose=False)["input_ids"])


def beginnings(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[str]:
    """Texts that have the same first tokens.

    Args:
        texts: of any length; those that may need no cut come back as they are.
        tokenizer: of one whose runs of white space count as one space, such as a CLIP's, no token may reach across.
        tokens: how many must be the same.

    Returns:
        Of a text that is longer than so many of the longest tokens, its first words up to there; within a word that is
        longer than all of that, the cut may change the tokens just before it. Where a token, or none, may stand for any
        number of characters, the texts as they are.
    """
    if not _bounded(tokenizer):
        return list(texts)
    most = tokens * (longest_token(tokenizer) + 1)
    return [text if len(text) <= most else _beginning(text, most, tokenizer) for text in texts]


def _beginning(text: str, most: int, tokenizer: PreTrainedTokenizerBase) -> str:
    if not _one_space(tokenizer):
        return text[:most]
    words, length = [], 0
    for found in WORD.finditer(text):
        start = found.start()
        end = min(found.end(), start + most - length)
        words.append(text[start:end])
        length += end - start + 1
        if length >= most:
            break
    return " ".join(words)
