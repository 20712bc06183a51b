"""Whether a tokenizer is the one that a text encoder was trained with, as far as that can be told."""

import logging
from collections.abc import Iterator
from itertools import chain

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..errors import UserError
from ..store.fingerprints import backend_of

logger = logging.getLogger(__name__)
LARGEST = 2  # as eos_token_id: a caption is read at its largest token, which is how old configurations say it
CURE = "Use the tokenizer that belongs to the model"


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, text: PreTrainedConfig, literal: bool = False) -> None:
    """Sets what a tokenizer leaves open, and checks that the text encoder reads captions where they end.

    A text encoder takes the embedding of a caption from the place of its end token. Looked for in vain it is taken from
    the first place, which is the same for all captions.

    Args:
        tokenizer: it is changed: padding and cuts are on the right, it pads with its end token if it has nothing else
            to pad with, and its `model_max_length` is what the encoder takes.
        text: the text encoder's configuration. One that says that captions are read at their largest token is changed
            to say their end token where there are larger ones, which in a caption would be read in its place.
        literal: take 2 as the end token itself; in old configurations of a CLIP it means the largest token.

    Raises:
        UserError: its tokens are not those of the model.
    """
    by_largest = text.eos_token_id == LARGEST and not literal
    largest = fit_vocabulary(tokenizer, text)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    around = tokenizer("")["input_ids"]
    if len(around) != 2:
        raise UserError(
            f"the tokenizer puts {len(around)} special tokens around a caption, where a CLIP has 2. {CURE}."
        )
    begin, end = around
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
    # Of old configurations 0, and a number beyond the vocabulary, were never the model's.
    if text.bos_token_id not in (None, 0, begin) and text.bos_token_id < text.vocab_size:
        raise UserError(
            f"the model's captions begin with token {text.bos_token_id} (bos_token_id of text_config in config.json), "
            f"but the tokenizer begins them with {_shown(tokenizer, begin)}. {CURE}, or set bos_token_id to {begin}."
        )
    words, longest = two_captions(tokenizer), text.max_position_embeddings
    batch = tokenizer(
        ["", *words, " ".join(words * longest)], padding=True, truncation=True, max_length=longest, return_tensors="pt"
    )
    unset_padding(tokenizer)
    ids, last = batch["input_ids"], batch["attention_mask"].sum(dim=1) - 1
    read = _place_read(ids, text.eos_token_id, by_largest)
    if read is None or not (read == last).all():
        where = "its largest token" if by_largest else "its first end token"
        raise UserError(
            f"the model reads a caption at {where} (eos_token_id {text.eos_token_id} of text_config in config.json), "
            f"but the tokenizer ends captions with {_shown(tokenizer, end)} and pads them with "
            f"{_shown(tokenizer, tokenizer.pad_token_id)}: captions would be read at another place, and perhaps all "
            f"alike. {CURE}, or set eos_token_id to {end}."
        )
    if by_largest and largest > end:
        logger.warning(
            "Captions would be read at their largest token (eos_token_id 2 of text_config), and the tokenizer has some "
            "beyond its end token, such as %s: eos_token_id is set to %d, which reads all other captions as before.",
            _shown(tokenizer, largest),
            end,
        )
        text.eos_token_id = end


def fit_vocabulary(tokenizer: PreTrainedTokenizerBase, text: PreTrainedConfig) -> int:
    """Sets the length at which captions are cut, and checks the numbers of tokens.

    Args:
        tokenizer: it is changed.
        text: the text encoder's configuration.

    Returns:
        The largest number of a token.

    Raises:
        UserError: the encoder has not these numbers, or far more.
    """
    tokens, vocabulary, largest = len(tokenizer), text.vocab_size, max(tokenizer.get_vocab().values())
    if tokens > vocabulary:
        raise UserError(f"the tokenizer has {tokens} tokens, but the model's vocabulary only {vocabulary}. {CURE}.")
    if largest >= vocabulary:
        raise UserError(
            f"the tokenizer has a token with the number {largest}, but the model's vocabulary ends at "
            f"{vocabulary - 1}. {CURE}."
        )
    if tokens * 2 < vocabulary:  # a vocabulary may be filled up to a round number, not to twice its size
        raise UserError(f"the tokenizer has {tokens} tokens, but the model's vocabulary {vocabulary}. {CURE}.")
    tokenizer.model_max_length = text.max_position_embeddings
    return largest


def unset_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    """Takes back how the last call padded and cut, which is no part of a tokenizer but would be saved with it."""
    if (backend := backend_of(tokenizer)) is not None:
        backend.no_padding()
        backend.no_truncation()


def two_captions(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Two different captions of words that the tokenizer knows.

    Raises:
        UserError: there are none.
    """
    special = {*tokenizer.all_special_ids, *tokenizer("")["input_ids"]}
    found: dict[tuple[int, ...], str] = {}
    for word in chain(("a dog", "a gun"), _vocabulary(tokenizer)):
        body = tuple(tokenizer(word, add_special_tokens=False)["input_ids"])
        if body and special.isdisjoint(body):  # one of which may stand for what is unknown
            found.setdefault(body, word)
        if len(found) == 2:
            return list(found.values())
    raise UserError(f"the tokenizer cannot tell captions from each other: it knows no two words. {CURE}.")


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Tokens that can be read as words."""
    for token in sorted(tokenizer.get_vocab(), key=len, reverse=True):
        word = token.removesuffix("</w>").lstrip("▁Ġ")  # how tokenizers write the space after or before
        if word.isascii() and word.isalnum():
            yield word


def _place_read(ids: Tensor, eos: int | list[int] | None, by_largest: bool) -> Tensor | None:
    """Where a `CLIPTextModel` reads each caption; `None` where its configuration does not say."""
    if not isinstance(eos, int):
        return None
    return (ids if by_largest else (ids == eos).int()).argmax(dim=1)


def _shown(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return f"'{tokenizer.convert_ids_to_tokens(token)}' ({token})"
