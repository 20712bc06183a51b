"""Where quadruplets come from: the settings that training and evaluation share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import changed, json_object
from ..errors import UserError
from ..ranges import SHARE, check_ranges

if TYPE_CHECKING:
    from datasets import DatasetDict

LIST_FILE = "bad_rows.txt"  # in the output directory: what was left out, and why
MISSING_IMAGES = ("error", "skip", "keep")
CAPTION_LISTS = ("spread", "first", "error")
SOURCES = (
    "streaming",
    "on_bad_row",
    "max_bad_fraction",
    "dataset_config",
    "column_mapping",
    "safe_images",
    "unsafe_images",
    "missing_images",
    "caption_lists",
    "sides_are_right",
)


@dataclass
class DataArguments:
    """The quadruplets, and where their images are."""

    dataset: str = field(
        default="demo",
        metadata={
            "help": "A Hub id, a folder, a file, or 'demo' for the bundled demo. NAME:train is one split of it, "
            "NAME:train[:50%%] half of one."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "The configuration of a Hub dataset that has several."}
    )
    column_mapping: dict | str | None = field(
        default=None, metadata={"help": 'Renames columns, as JSON: \'{"caption": "safe_caption"}\'.'}
    )
    safe_images: str | None = field(
        default=None, metadata={"help": "A folder or zip of the safe images, named by coco_id, such as COCO's."}
    )
    unsafe_images: str | None = field(
        default=None, metadata={"help": "A folder or zip of the unsafe images, named by prompt_id."}
    )
    missing_images: str = field(
        default="error",
        metadata={
            "help": "What happens to rows whose image is not there: 'error' stops, 'skip' leaves the rows out, "
            "'keep' uses what else they have."
        },
    )

    caption_lists: str = field(
        default="spread",
        metadata={
            "help": "What happens to several captions in one cell: 'spread' makes a row of each, 'first' takes the "
            "first, 'error' stops."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read rows as they are needed instead of all at once. Of splits that are measured, the first 1,000 "
            "rows are read."
        },
    )
    on_bad_row: str = field(
        default="error",
        metadata={"help": "What happens to a row that cannot be used: 'error' stops, 'skip' leaves it out."},
    )
    max_bad_fraction: float = field(
        default=0.05, metadata={"help": "The share of bad rows above which --on_bad_row skip stops too."}
    )
    sides_are_right: bool = field(
        default=False,
        metadata={
            "help": "Go on although the names of columns, the words of captions or the original model say that the "
            "safe and the unsafe side are swapped."
        },
    )

    def __post_init__(self):
        self.column_mapping = json_object("--column_mapping", self.column_mapping)
        for old, new in (self.column_mapping or {}).items():
            if not isinstance(new, str | None):
                raise UserError(f"--column_mapping renames '{old}' to {new!r}; it must be a name, or null.")
        for name, known in (("missing_images", MISSING_IMAGES), ("caption_lists", CAPTION_LISTS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)}: it must be among {', '.join(known)}.")

        if self.on_bad_row not in ("error", "skip"):
            raise UserError(f"--on_bad_row {self.on_bad_row}: it must be error or skip.")
        check_ranges(self, {"max_bad_fraction": SHARE})

    @property
    def skippable(self) -> float | None:
        """The share of rows that may be left out because they cannot be used; `None` where the first one stops."""
        return self.max_bad_fraction if self.on_bad_row == "skip" else None

    @property
    def sources(self) -> dict[str, Any]:
        """The settings besides the name that are set."""
        return {name: value for name, value in changed(self).items() if name in SOURCES}

    def load(
        self, hold_out: bool = True, choose: "Callable[[DatasetDict], Sequence[str]] | None" = None
    ) -> "DatasetDict":
        """The splits, as `load_quadruplets` gives them."""
        from .quadruplets import load_quadruplets  # slow, and a script's first words should come before it

        return load_quadruplets(
            self.dataset,
            self.dataset_config,
            self.column_mapping,
            hold_out=hold_out,
            safe_images=self.safe_images,
            unsafe_images=self.unsafe_images,
            missing_images=self.missing_images,
            choose=choose,
            streaming=self.streaming,
            caption_lists=self.caption_lists,
            sides_are_right=self.sides_are_right,
            skip_damaged=self.on_bad_row == "skip",
        )
