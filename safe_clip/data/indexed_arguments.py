"""What an index is made of: the settings that say it."""

from dataclasses import dataclass, field

from ..errors import UserError
from .arguments import DataArguments

ITEMS = ("images", "captions")


@dataclass
class IndexedArguments(DataArguments):
    """What is indexed, and which columns hold it."""

    dataset: str = field(
        default="demo",
        metadata={
            "help": "A folder of images, a table or data set with a column of images, quadruplets, or 'demo' for the "
            "bundled demo. NAME:train is one split of it."
        },
    )
    splits: list[str] | None = field(default=None, metadata={"help": "The splits that are embedded. By default all."})
    items: list[str] = field(
        default_factory=lambda: ["images"], metadata={"help": "What is embedded: images, captions, or both."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "The column of images, of a table that is no quadruplets. Found by default."}
    )
    caption_column: str | None = field(
        default=None, metadata={"help": "The column of captions, of a table that is no quadruplets. Found by default."}
    )
    unsafe_column: str | None = field(
        default=None,
        metadata={"help": "The column that says whether a row is unsafe. By default 'unsafe', where there is one."},
    )

    def __post_init__(self):
        super().__post_init__()
        for kind in self.items or [""]:
            if kind not in ITEMS:
                raise UserError(f"--items {kind}: it must be among {', '.join(ITEMS)}.")
        self.items = [kind for kind in ITEMS if kind in self.items]
        if self.streaming:
            raise UserError(
                "--streaming: an index tells rows by their numbers, which a stream has none of; leave it out."
            )
