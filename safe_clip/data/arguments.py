"""Where quadruplets come from: the settings that training and evaluation share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import changed, json_object
from ..errors import UserError

if TYPE_CHECKING:
    from datasets import DatasetDict

MISSING_PICTURES = ("error", "skip", "keep")
SOURCES = ("streaming", "dataset_config", "column_mapping", "safe_images", "unsafe_images", "missing_pictures")


@dataclass
class DataArguments:
    """The quadruplets, and where their pictures are."""

    dataset: str = field(
        default="demo", metadata={"help": "A Hub id, a folder, a file, or 'demo' for the embedded world."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    column_mapping: dict | str | None = field(
        default=None, metadata={"help": 'Renames columns, as JSON: \'{"caption": "safe_caption"}\'.'}
    )
    safe_images: str | None = field(
        default=None, metadata={"help": "A folder or zip of safe pictures by coco_id, such as COCO's."}
    )
    unsafe_images: str | None = field(
        default=None, metadata={"help": "A folder or zip of unsafe pictures by prompt_id."}
    )
    missing_pictures: str = field(
        default="error",
        metadata={
            "help": "Of rows whose picture is not there: 'error' stops, 'skip' leaves them out, 'keep' keeps the rest."
        },
    )

    streaming: bool = field(
        default=False,
        metadata={"help": "Read training rows as they are needed, and of other splits the first 1,000 alone."},
    )

    def __post_init__(self):
        self.column_mapping = json_object("--column_mapping", self.column_mapping)
        if self.missing_pictures not in MISSING_PICTURES:
            raise UserError(
                f"--missing_pictures {self.missing_pictures}: it must be among {', '.join(MISSING_PICTURES)}."
            )

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
            missing_pictures=self.missing_pictures,
            choose=choose,
            streaming=self.streaming,
        )
