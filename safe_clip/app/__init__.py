"""The page on which people try a safe CLIP beside its original: `safe-clip app`.

`open_page` makes it ready and `serve` serves it; all that they import is slow, and lies inside.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.arguments import DataArguments
from ..errors import UserError
from ..names import redact_paths
from ..terminal import command_line, say

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..generation.arguments import GenerationArguments
    from .answers import Answers
    from .ladder import Opened


@dataclass(frozen=True)
class Settings:
    """How the page is served.

    Attributes:
        split: what of the data is searched; by default the first that `safe-clip eval` measures.
        max_images: at most so many.
        show_unsafe: cover nothing.
        evaluation: what `safe-clip eval` wrote.
        host, port: where it is served.
        max_upload_mb: of an image.
        queue_size: requests that may wait.
        cache_dir: where embeddings of the gallery are kept; by default beside the Hub's cache.
        embedding: options of `Embedder`.
    """

    split: str | None = None
    max_images: int = 2000
    show_unsafe: bool = False
    evaluation: str = "evaluation"
    host: str = "127.0.0.1"
    port: int = 7860
    max_upload_mb: int = 10
    queue_size: int = 64
    cache_dir: str | None = None
    embedding: dict[str, Any] = field(default_factory=dict)


def import_gradio() -> None:
    """Imports gradio, which then tells nobody of it.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UserError("the page requires gradio: pip install 'safe-clip[app]'.") from error


def open_page(
    safe: "str | Opened",
    original: "str | Opened" = "demo",
    data: DataArguments | None = None,
    settings: Settings | None = None,
    generation: "GenerationArguments | None" = None,
    frozen: bool = False,
) -> "tuple[FastAPI, Answers]":
    """The page, ready to be served, and what it answers.

    Args:
        safe, original: the models, or their names.
        data: quadruplets, of which a split is searched; the bundled demo by default.
        settings: how it is served.
        generation: the pipeline that draws; by default the bundled one, beside the bundled original.
        frozen: the safe model was trained with `--frozen_gallery`.

    Raises:
        UserError: something cannot be opened, or does not belong together.
    """
    import_gradio()
    from accelerate import PartialState

    from ..store.folders import folder_of
    from .answers import Answers
    from .classes import Classes
    from .figures import figures_of
    from .gallery import Gallery, load_gallery
    from .ladder import Ladder, Opened
    from .page import build
    from .server import application

    data, settings = data or DataArguments(), settings or Settings()
    opened = [Opened.of(each) if isinstance(each, str) else each for each in (original, safe)]
    cache = Path(settings.cache_dir) if settings.cache_dir else folder_of("embeddings")
    ladder = Ladder(*opened, PartialState().device, cache, **settings.embedding)
    drawing, why = _drawing(ladder, generation)
    loaded = load_gallery(data, settings.split, settings.max_images)
    gallery = Gallery(ladder, loaded, data.skippable, frozen)
    answers = Answers(gallery, Classes(ladder), drawing, settings.show_unsafe)
    figures = figures_of(Path(settings.evaluation), ladder.weights)
    names = [redact_paths(each) if isinstance(each, str) else each.name for each in (safe, original)]
    words = ["--model", names[0], "--baseline", names[1], "--dataset", redact_paths(data.dataset)]
    words += ["--output_dir", redact_paths(settings.evaluation)]
    command = command_line("eval", *words)
    most_bytes = settings.max_upload_mb * 2**20
    page = build(answers, figures, command, why, f"{redact_paths(data.dataset)} ({gallery.split})", most_bytes)
    return application(page, most_bytes, settings.queue_size, figures.page), answers


def _drawing(ladder: Any, generation: "GenerationArguments | None") -> tuple[Any, str]:
    """What draws; or `None`, and why."""
    from ..generation.arguments import DEMO, GenerationArguments
    from .drawing import Drawing

    generation = generation or GenerationArguments()
    if generation.generator is None and ladder.original.name != DEMO:
        return None, "A text-to-image pipeline that was made with this original draws here: name it with --generator."
    name = generation.generator or DEMO
    generation.guidance_scale = generation.guidance_for(name)
    try:
        drawing = Drawing(ladder, generation)
        if generation.generator:  # whatever is wrong with it is said now
            _ = drawing.pipelines, drawing.judges
    except UserError as error:
        if generation.generator:
            raise
        return None, f"There is nothing to draw with: {error}"
    return drawing, ""


def serve(*models: Any, settings: Settings | None = None, **options: Any) -> None:
    """Serves the page until it is stopped; arguments and errors as for `open_page`."""
    from .server import bound, run

    settings = settings or Settings()
    import_gradio()
    with bound(settings.host, settings.port) as at:
        app, _ = open_page(*models, settings=settings, **options)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        at.listen()  # so that whoever reads the next line is let in
        say(f"The page is at http://{host}:{at.getsockname()[1]} (Ctrl-C ends it).")
        if settings.host not in ("127.0.0.1", "localhost", "::1"):
            say("Whoever reaches this machine can use it.")
        run(app, at)
