"""How near captions come to those that people wrote: BLEU, ROUGE-L, CIDEr and METEOR."""

import re
import shutil
from collections.abc import Sequence

import datasets
import evaluate
import torch

from safe_clip.errors import UserError, first_line
from safe_clip.metrics.array_metric import ArrayMetric

_DESCRIPTION = """
The figures of merit by which captions of COCO are compared, by the scorer that the field uses, pycocoevalcap: BLEU-1 to
BLEU-4, ROUGE-L, CIDEr and, where Java is found, METEOR. Captions are put into lower case, cut into words and rid of
punctuation as Stanford's PTBTokenizer does it there, but in Python, so that no figure but METEOR depends on Java; the
two differ on addresses of the web, smileys and rare abbreviations. Nothing is downloaded.
"""

_INPUTS = """
Args:
    predictions: N captions.
    references: for each of them one caption or more, as a list, or as text where it is one.
    meteor: whether to compute METEOR, which runs a Java program of 2 GB; by default where `java` is found.
    per_item: give each item's values too.
Returns:
    `bleu_1` to `bleu_4`, `rouge_l` and `meteor` (not there without Java) in [0, 1] and `cider` in [0, 10], each of all
    items together. CIDEr weighs words by how few items have them in their references, so that it depends on which items
    are given, and is 0 for a single one. With `per_item`, also `per_item`, a dictionary of a tensor (N,) under each of
    these names; the mean of its values is the figure for all but BLEU and METEOR, which count over all items.
Example:
    >>> quality = evaluate.load("safe_clip/metrics/caption_quality")
    >>> captions = ["a red dog sits here", "two big buses on roads"]
    >>> quality.compute(predictions=captions, references=captions, meteor=False)
    {'bleu_1': 1.0, 'bleu_2': 1.0, 'bleu_3': 1.0, 'bleu_4': 1.0, 'rouge_l': 1.0, 'cider': 10.0}
"""

_CITATION = """
@article{chen2015microsoft,
  title={{Microsoft COCO Captions: Data Collection and Evaluation Server}},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and
    Doll{\\'a}r, Piotr and Zitnick, C. Lawrence},
  journal={arXiv preprint arXiv:1504.00325},
  year={2015}
}
"""

PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--"})
# Which PTBTokenizer takes for two words.
CLITICS = re.compile(
    r"(?<=\w)(?=(?:n't|'(?:s|m|d|ll|re|ve))\b)"
    r"|(?<=\bcan)(?=not\b)|(?<=\b[gw][oa]n)(?=na\b)|(?<=\bgot)(?=ta\b)"
)
WORDS = re.compile(
    r"n't|'(?:s|m|d|ll|re|ve)\b"
    r"|(?:[^\W\d_]\.){2,}|(?:mrs?|dr|st|jr|vs|etc)\."  # u.s.
    r"|\d+(?:[.,:/]\d+)+\w*"  # 1,000
    r"|[#@]?\w+(?:['./&-]\w+)*"  # well-known
    r"|\.{2,}|-{2,}|[!?]+|\S"
)
# Brackets stay, as they do in the field's figures: they are in pycocoevalcap's list of what to drop, but in capitals.
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
DROPPED = {"'", '"', "`", "``", "''", ".", "?", "!", ",", ":", "-", "--", "...", ";"}


def words(caption: str) -> str:
    """A caption's words as the scorers require them: in lower case, with one space between them."""
    found = WORDS.findall(CLITICS.sub(" ", caption.lower().translate(PLAIN)))
    return " ".join(BRACKETS.get(word, word) for word in found if word not in DROPPED)


class CaptionQuality(ArrayMetric, evaluate.Metric):
    """BLEU, ROUGE-L, CIDEr and METEOR of captions."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[str | Sequence[str]],
        meteor: bool | None = None,
        per_item: bool = False,
    ) -> dict[str, float | dict[str, torch.Tensor]]:
        written = {item: [words(caption)] for item, caption in enumerate(predictions)}
        wanted = {item: _references(item, captions) for item, captions in enumerate(references)}
        if not written:
            raise UserError("there are no captions to score: give at least one prediction with its references.")
        scores = _score(wanted, written)
        if meteor or (meteor is None and shutil.which("java")):
            scores["meteor"] = _meteor(wanted, written)
        figures = {name: float(figure) for name, (figure, _) in scores.items()}
        if per_item:
            figures["per_item"] = {name: torch.as_tensor(values).float() for name, (_, values) in scores.items()}
        return figures


def _references(item: int, captions: str | Sequence[str]) -> list[str]:
    made = [words(caption) for caption in ([captions] if isinstance(captions, str) else captions)]
    if not any(made):
        raise UserError(f"item {item} has no reference with a word in it: give each at least one, or leave it out.")
    return made


def _score(wanted: dict[int, list[str]], written: dict[int, list[str]]) -> dict[str, tuple[float, Sequence[float]]]:
    """The figure of all items, and the figure of each, by name."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise UserError("the scores of captions require pycocoevalcap: pip install 'safe-clip[generation]'.") from error
    bleu = zip(*Bleu(4).compute_score(wanted, written, verbose=0), strict=True)
    scores = {f"bleu_{length}": pair for length, pair in enumerate(bleu, 1)}
    return {
        **scores,
        "rouge_l": Rouge().compute_score(wanted, written),
        "cider": Cider().compute_score(wanted, written),
    }


def _meteor(wanted: dict[int, list[str]], written: dict[int, list[str]]) -> tuple[float, Sequence[float]]:
    from pycocoevalcap.meteor.meteor import Meteor

    if not shutil.which("java"):
        raise UserError("METEOR requires Java, and no `java` is found: install it, or pass meteor=False.")
    scorer, failure = Meteor(), None
    try:
        scores = scorer.compute_score(wanted, written)
    except (OSError, ValueError) as error:
        failure = error
    finally:
        scorer.meteor_p.kill()
        _, said = scorer.meteor_p.communicate()
        if scorer.lock.locked():  # its `__del__` would wait for it for ever
            scorer.lock.release()
    if failure is not None:
        raise UserError(
            f"METEOR's Java program failed: {said.decode(errors='replace') or first_line(failure)} See that `java "
            "-version` works and that 2 GB of memory are free, or pass meteor=False."
        ) from failure
    return scores
