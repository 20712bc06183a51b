"""Writes a CLIP in the formats of other tools, or at a point between the original and the safe model.

  safe-clip export --model you/safe-clip --format open_clip --output_dir safe-clip-open_clip
  safe-clip export --model safe-clip --format onnx
  safe-clip export --model safe-clip --baseline demo --strength 0.8 --format transformers

`transformers`: a plain model of its class with its processor. `open_clip`: a folder for
`open_clip.create_model_and_transforms("local-dir:FOLDER")`; its files may also be uploaded beside a Hub repository's
others, for `"hf-hub:you/safe-clip"`. `onnx`: graphs for onnxruntime and transformers.js, of both encoders and of each.
"""

import json
from pathlib import Path

from ..config import OneLineParser
from ..errors import UserError
from ..outputs import REPLACED, OutputFolder
from .compared import TRAINING_ARGUMENTS, training_arguments
from .help import usage

FORMATS = ("transformers", "open_clip", "onnx")  # of `models.export`, which is slow to import


def parser() -> OneLineParser:
    """What reads the flags."""
    made = OneLineParser(usage=usage("export", "--format FORMAT [--flag value ...]"), description=__doc__.strip())
    what = made.add_argument_group("What is exported")
    what.add_argument("--model", metavar="TEXT", default="safe-clip", help="A folder, a Hub id, or 'demo'.")
    what.add_argument("--revision", metavar="TEXT", help="Branch, tag or commit of a Hub model.")
    what.add_argument("--baseline", metavar="TEXT", help="The original model, for --strength.")
    what.add_argument("--baseline_revision", metavar="TEXT", help="Branch, tag or commit of a baseline on the Hub.")
    what.add_argument(
        "--strength",
        metavar="FLOAT",
        type=float,
        help="Export weights between the baseline (0) and the model (1), such as 0.8.",
    )
    where = made.add_argument_group("What is written")
    where.add_argument(
        "--format", metavar="FORMAT", choices=FORMATS, required=True, help=f"One of {', '.join(FORMATS)}."
    )
    where.add_argument(
        "--output_dir", metavar="TEXT", type=Path, help="By default the model's name with the format's after it."
    )
    where.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help=f"Move files of other programs that are in the way into {REPLACED}/.",
    )
    return made


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    if (args.strength is None) != (args.baseline is None):
        raise UserError("--strength and --baseline go together: the original, and how far from it the model shall be.")
    from ..models.export import FORMATS as WRITERS
    from ..models.families import family_of
    from ..models.load import check_processor, load_clip, load_processor, resolve_model
    from ..models.merge import check_strength, merge

    if args.strength is not None:
        check_strength(args.strength)
    output_dir = args.output_dir or Path(f"{Path(args.model).name}-{args.format}")
    for flag, name in (("--model", args.model), ("--baseline", args.baseline)):
        if name and output_dir.resolve() == Path(resolve_model(name)).resolve():
            raise UserError(
                f"--output_dir {output_dir} is the folder of {flag}, which is never written; choose another."
            )
    output = OutputFolder(output_dir)
    output.check(args.overwrite_output_dir, [resolve_model(name) for name in (args.model, args.baseline) if name])
    model, processor = load_clip(args.model, args.revision), load_processor(args.model, args.revision)
    if args.format not in (known := family_of(model).exports):
        raise UserError(f"--format {args.format} has no models of this family; take {', '.join(known)}.")
    if args.strength is not None:
        model = merge(args.baseline, model, args.strength, args.baseline_revision)
    check_processor(model, processor)
    trained_by = training_arguments(args.model, args.revision)
    with output.staged() as stage:
        WRITERS[args.format](model, processor, stage)
        if queries_alone := trained_by.get("frozen_gallery") is True:  # by which `safe-clip embed` refuses the copy too
            (stage / TRAINING_ARGUMENTS).write_text(json.dumps(trained_by, indent=2) + "\n", encoding="utf-8")
    print(f"{args.model} is in {output_dir}/ for {args.format}.")
    if queries_alone:
        print("It was trained with --frozen_gallery: it is for queries alone, and nothing is to be indexed with it.")
