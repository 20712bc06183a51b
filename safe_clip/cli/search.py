"""Searches an index that safe-clip embed wrote, by a text or by an image.

  safe-clip search --index index "a dog on a sofa"
  safe-clip search --index index --image query.png --k 20
  safe-clip search --index index "a dog on a sofa" --model queries

Prints the best first: cosine, id, and where the item comes from; what the data label unsafe is marked. No image is
shown. The query is embedded by the model that the index names. --model takes another one of the same dimension: meant
for a model trained with --frozen_gallery beside an index of its original, and, protecting less, for any other safe
model that was trained from the one that made the index.
"""

import sys

from ..config import OneLineParser
from ..errors import UserError
from ..ranges import COUNT, check_ranges
from .help import usage

HIDDEN = "(caption hidden)"
LONGEST = 80  # characters of a caption


def parser() -> OneLineParser:
    """What reads the flags."""
    made = OneLineParser(usage=usage("search", '--index FOLDER "TEXT" [--flag value ...]'), description=__doc__.strip())
    what = made.add_argument_group("What is searched")
    what.add_argument("text", metavar="TEXT", nargs="?", help="The query; or --image.")
    what.add_argument("--image", metavar="TEXT", help="A file to search by, in place of a text.")
    what.add_argument("--index", metavar="TEXT", default="index", help="The folder that safe-clip embed wrote.")
    what.add_argument("--k", metavar="INT", type=int, default=10, help="How many items are found.")
    how = made.add_argument_group("Model")
    how.add_argument("--model", metavar="TEXT", help="A Hub id, a folder, or 'demo'. By default the index's own.")
    how.add_argument("--model_revision", metavar="TEXT", help="Branch, tag or commit of a model on the Hub.")
    how.add_argument("--show_unsafe", action="store_true", help="Show captions of items that are labelled unsafe.")
    return made


def main(argv: list[str]) -> None:
    args = parser().parse_args(argv)
    check_ranges(args, {"k": COUNT})
    if (args.text is None) == (args.image is None):
        raise UserError('a search requires one query: a text, such as safe-clip search "a dog", or --image FILE.')

    from accelerate import PartialState

    from ..data.rows import check_caption
    from ..embedding.embedder import Embedder
    from ..embedding.index import Index
    from ..models.load import load_clip, load_processor
    from ..terminal import quiet_libraries

    quiet_libraries()
    if args.text is not None:
        check_caption(args.text, "of the command", "TEXT")
    index = Index(args.index)
    name = args.model or index.facts["model"]
    revision = args.model_revision if args.model else args.model_revision or index.facts["model_revision"]
    try:
        model, processor = load_clip(name, revision), load_processor(name, revision)
    except UserError as error:
        if args.model:
            raise
        raise UserError(
            f"--index {args.index} names the model that made it, which cannot be opened: {error}"
        ) from error
    embedder = Embedder(model.to(PartialState().device), processor, name, progress=False)
    _check(embedder, index, name)
    note = _note(embedder, index, name, own=args.model is None, revision=revision)
    query = embedder.texts([args.text]).embeds if args.image is None else _embedded(embedder, args.image)
    (found,) = index.search(query, args.k)
    if note:
        print(note, file=sys.stderr)
    print(f"The first {len(found):,} of {len(index):,} in {args.index}/, by {name}:")
    for number, item in enumerate(found, 1):
        print(_line(number, item, args.show_unsafe))
    if marked := sum(item.get("unsafe") is True for item in found):
        print(f"{marked} of these {'is' if marked == 1 else 'are'} labelled unsafe.")


def _embedded(embedder, file: str):
    """The embedding of an image in a file: 1 x dimension."""
    from datasets import Dataset

    items = embedder.images(Dataset.from_dict({"image": [file]}), "image")
    if items.unreadable:
        raise UserError(f"--image {file}: {items.unreadable[0]}")
    return items.embeds


def _check(embedder, index, name: str) -> None:
    """Raises `UserError` for a model whose embeddings cannot be compared with those of the index."""
    made_by, kind = index.facts["model"], type(embedder.model.model).__name__
    if embedder.model.dimension != index.dimension:
        why = f"gives embeddings of dimension {embedder.model.dimension}, and those of the index have {index.dimension}"
    elif kind != index.facts["model_class"]:
        why = f"is a {kind}, and the index was made by a {index.facts['model_class']}"
    else:
        return
    raise UserError(f"--model {name} {why}: search with {made_by}, or with a model that was trained from it.")


def _note(embedder, index, name: str, own: bool, revision: str | None) -> str | None:
    """What to know of a query's model that is not the one that made the index."""
    from ..embedding.index import index_settings
    from .compared import for_frozen_galleries

    made_by, same = index.facts["model"], embedder.model.weights == index.facts["weights"]
    if same and index_settings(embedder) == index.facts["settings"]:
        return None
    if own or same:
        what = "configuration or processor" if same else "weights"
        return (
            f"warning: the {what} of {name} are not those that made the index, so that cosines may mean little: name "
            "the model as it was with --model or --model_revision, or embed anew into another folder."
        )
    meant = (
        "which is what training with --frozen_gallery is for."
        if for_frozen_galleries(name, revision)
        else "meant for a model that was trained from it; without --frozen_gallery it protects less than in an index "
        "of its own, and with an unrelated model results mean nothing."
    )
    return f"note: the index is of another model, {made_by}: queries by {name} search it, {meant}"


def _line(number: int, item: dict, show_unsafe: bool) -> str:
    """A found item in a line."""
    unsafe = item.get("unsafe") is True
    known = [f"{name} {item[name]}" for name in ("split", "row", "column") if item.get(name) is not None]
    where = item.get("path") or ", ".join(known)
    caption = " ".join((item.get("caption") or "").split())
    caption = HIDDEN if caption and unsafe and not show_unsafe else caption[:LONGEST]
    parts = [f"{number:3}  {item['cosine']:7.4f}  id {item['id']:<8}", "UNSAFE" if unsafe else "", where, caption]
    return "  ".join(filter(None, parts))
