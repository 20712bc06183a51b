"""An audit from the data set to its facts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Value
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ... import __version__
from ...errors import UserError, first_line, missing_tokenizer
from ...names import redact_paths
from ..columns import with_column
from ..items import CAPTION_COLUMNS, IMAGE_COLUMNS
from ..quadruplets import DEMO
from .classifiers import check_labels, open_classifiers
from .doubts import doubts, warnings
from .findings import Judged, find, labelled, leave_out_minors
from .reading import read_items
from .scores import score_items

DEMO_DIR = Path(__file__).parents[2] / "demo" / "base"
MAX_LENGTH = 77  # tokens that CLIP's text encoders take, where a tokenizer does not tell


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        facts: what `audit.json` holds.
        splits: the rows, without those that were left out.
        judged: the items of each column, with their scores.
        doubted: what speaks against the labels that the classifiers give, a sentence each.
    """

    facts: dict[str, Any]
    splits: DatasetDict
    judged: list[Judged]
    doubted: list[str]


def audit(args: Any) -> Audit:
    """Reads, scores and looks for what is wrong.

    Args:
        args: the settings of `safe-clip audit`.

    Raises:
        UserError: the data or a classifier cannot be had.
    """
    classifiers = {
        modality: open_classifiers(names, modality, args.unsafe_labels)
        for modality, names in (("text", args.text_classifier), ("image", args.image_classifier))
    }
    check_labels([each for known in classifiers.values() for each in known], args.unsafe_labels)
    tokenizer = _tokenizer(args.model)
    splits = args.load(hold_out=False)
    read = read_items(splits, tokenizer, args.num_workers)
    scores = [np.full((len(each.digest), 2), np.nan, dtype=np.float32) for each in read]
    for modality, names in (("text", CAPTION_COLUMNS), ("image", IMAGE_COLUMNS)):
        which = [number for number, each in enumerate(read) if each.column in names]
        for classifier in classifiers[modality] if which else ():
            found = score_items([read[number] for number in which], classifier, args.batch_size, args.num_workers)
            for number, each in zip(which, found, strict=True):
                scores[number] = np.fmax(scores[number], each)  # either flags
    judged = [Judged(items, each, args.threshold) for items, each in zip(read, scores, strict=True)]
    splits, judged, left_out = leave_out_minors(splits, judged)
    doubted = doubts(splits, judged)
    facts = {
        "safe_clip": __version__,
        "dataset": redact_paths(args.dataset),
        "classifiers": {
            modality: [redact_paths(each.name) for each in known] for modality, known in classifiers.items()
        },
        "threshold": args.threshold,
        "left_out": left_out,
        "doubts": doubted or warnings(judged),
        **find(splits, judged, min(tokenizer.model_max_length, MAX_LENGTH)),
    }
    return Audit(facts, splits, judged, doubted)


def write_labelled(found: Audit, folder: str) -> None:
    """Saves the data set with a column of labels for each column of items that was scored."""
    columns = {split: [each for each in found.judged if each.items.split == split] for split in found.splits}
    written = DatasetDict(
        {split: _with_whole_paths(labelled(rows, columns[split])) for split, rows in found.splits.items()}
    )
    written.save_to_disk(folder)


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(DEMO_DIR if name == DEMO else name, trust_remote_code=False)
    except ImportError as error:
        raise missing_tokenizer(name, error) from error
    except Exception as error:  # no such folder or id, no connection, a broken file: each its own type
        raise UserError(f"--model {name} has no tokenizer of a CLIP to count with ({first_line(error)}).") from error


def _with_whole_paths(rows: Dataset) -> Dataset:
    """Rows whose paths of images are meant from anywhere."""
    for column in IMAGE_COLUMNS:
        if column in rows.column_names and isinstance(rows.features[column], Value):
            whole = [str(Path(cell).absolute()) if cell and "://" not in cell else cell for cell in rows[column]]
            rows = with_column(rows, column, whole)
    return rows
