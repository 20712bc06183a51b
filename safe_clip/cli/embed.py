"""Embeds images, captions or both into an index: Parquet with an `id`, an `embedding` of length 1 and what it is of.

  safe-clip embed --model safe-clip --dataset photos --output_dir index       a folder of images
  safe-clip embed --model safe-clip --dataset rows.csv --output_dir index     a table with a column of images
  safe-clip search --index index "a dog on a sofa"

What was embedded is kept: an interrupted run goes on where it was and ends with the same file. Every setting is a flag;
a YAML file given first sets any of them, and flags after it win.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ..config import parse_arguments, split_config
from ..data.indexed_arguments import IndexedArguments
from ..errors import UserError
from ..outputs import OutputFolder
from ..ranges import COUNT, Range, check_ranges
from ..terminal import command_line, quiet_libraries
from .compared import DEFAULT_MODEL, PRECISIONS, for_frozen_galleries, sharing
from .help import Help, settings_of
from .launch import GROUP, LAUNCH, launch

FORMATS = ["parquet", "faiss"]
GROUPS = {
    "Model": "model model_revision",
    "What is embedded": "dataset dataset_config splits items image_column caption_column unsafe_column on_bad_row "
    "max_bad_fraction",
    "Quadruplets": "column_mapping safe_images unsafe_images missing_images caption_lists streaming sides_are_right",
    "Speed": "batch_size precision num_workers cache_dir",
    GROUP: " ".join(LAUNCH),
    "What is written": "format output_dir overwrite_output_dir",
}
LISTED = 3  # items left out that are named


@dataclass
class EmbedArguments(IndexedArguments):
    """What is embedded, by which model, and where the index goes."""

    model: str = field(default=str(DEFAULT_MODEL), metadata={"help": "The model: a Hub id, a folder, or 'demo'."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the Hub."})
    batch_size: int = field(default=128, metadata={"help": "Items that each process embeds at a time, at most 256."})
    precision: str = field(
        default="auto", metadata={"help": "What is computed in: auto, float32, bfloat16 or float16."}
    )
    num_workers: int | None = field(
        default=None, metadata={"help": "Processes that read images. By default as many as suit the machine."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "The folder that embeddings are kept in. By default one beside the Hub's cache."},
    )
    format: str = field(
        default="parquet",
        metadata={"help": "parquet, or faiss for an exact index of inner products (index.faiss) beside the Parquet."},
    )
    output_dir: str = field(default="index", metadata={"help": "The folder that gets index.parquet and index.json."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Write even if files of other programs are in the way; these are moved into replaced/."},
    )

    RANGES: ClassVar[dict[str, Range]] = {"batch_size": COUNT, "num_workers": Range(0, 4096, whole=True)}

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, self.RANGES)
        for name, known in (("precision", PRECISIONS), ("format", FORMATS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)}: it must be among {', '.join(known)}.")


def helper() -> Help:
    """What `--help` says."""
    return Help("embed", __doc__, GROUPS, settings_of(EmbedArguments) | LAUNCH)


def main(argv: list[str]) -> None:
    config, flags = split_config(argv)
    helper().answer(flags)
    launch("embed", argv)
    (args,) = parse_arguments([EmbedArguments], flags, config)
    quiet_libraries()

    from accelerate.utils import broadcast_object_list

    from ..data.indexed import DEMO, load_parts
    from ..embedding.embedder import Embedder
    from ..embedding.index import FACTS, TABLE
    from ..embedding.indexing import FAISS, LEFT_OUT, import_faiss, index_facts, write_faiss, write_index
    from ..models.load import check_processor, load_clip, load_processor, resolve_model
    from ..store.folders import folder_of

    if args.format == "faiss":
        import_faiss()
    folder = OutputFolder(args.output_dir)
    reads = [resolve_model(args.model), None if args.dataset == DEMO else args.dataset]
    files = [TABLE, FACTS, LEFT_OUT] + [FAISS] * (args.format == "faiss")
    folder.check(args.overwrite_output_dir, reads, files)
    accelerator = sharing()
    model, processor = load_clip(args.model, args.model_revision), load_processor(args.model, args.model_revision)
    if for_frozen_galleries(args.model, args.model_revision):
        raise UserError(
            f"--model {args.model} was trained with --frozen_gallery, for queries alone: embed with the model that it "
            f"was trained from, and search with safe-clip search --model {args.model}."
        )
    check_processor(model, processor)
    parts = load_parts(args) if accelerator.is_main_process else None
    (parts,) = broadcast_object_list([parts])  # not loaded by each: what one could fetch, another might not
    embedder = Embedder(
        model.to(accelerator.device),
        processor,
        args.model,
        args.batch_size,
        args.precision,
        Path(args.cache_dir) if args.cache_dir else folder_of("embeddings"),
        accelerator,
        args.num_workers,
    )
    facts = index_facts(embedder, parts, model=args.model, model_revision=args.model_revision, dataset=args.dataset)
    made = write_index(folder, embedder, parts, facts, args.skippable)
    if not accelerator.is_main_process:
        return
    if args.format == "faiss":
        write_faiss(folder)
    if made["left_out"]:
        print(
            f"Left out {made['left_out']:,}, which {folder.path / LEFT_OUT} lists:",
            *made["faults"][:LISTED],
            sep="\n  ",
        )
    marked = f", {made['unsafe']:,} of them labelled unsafe" if made["unsafe"] else ""
    kinds = " and ".join({"image": "images", "text": "captions"}[kind] for kind in made["items"])
    kinds = kinds.removesuffix("s") if made["count"] == 1 else kinds
    print(
        f"{folder.path / TABLE} holds embeddings of {made['count']:,} {kinds}{marked}, of dimension "
        f"{made['dimension']}. Search it:\n\n  {command_line('search', '--index', args.output_dir, 'a dog on a sofa')}"
    )
