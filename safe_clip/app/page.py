"""The page: its tabs, and which answer belongs to what is typed, chosen and clicked."""

import functools
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import UserError
from . import markup
from .answers import Answers
from .classes import TEMPLATE
from .drawing import HIGHEST_SEED
from .figures import Figures
from .gallery import MODALITIES, Gallery
from .ladder import STEPS, Tell
from .uploads import IMAGE, LONGEST_QUERY, REPORT, too_large

CSS, SCRIPT = (Path(__file__).with_name(name) for name in ("page.css", "chooser.js"))
# Of two cores, on which embedding takes both: more at once only wait for one another.
SEARCHES, DRAWINGS = 4, 1
# Nothing of it is for programs. What may wait for a step to be embedded waits in a lane of its own.
ASKED, STEPPED = (
    {"api_visibility": "private", "show_progress": "minimal", "concurrency_limit": SEARCHES, "concurrency_id": lane}
    for lane in ("searches", "steps")
)
EMPTY = "Type what to look for, choose an image, or try a caption of the gallery."
UNEXPECTED = "something went wrong here ({}). The terminal that runs the page says where."


def theme() -> gr.themes.Base:
    """Plain, and with the fonts of the system alone."""
    fonts = [gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")]
    made = gr.themes.Default(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=fonts,
        font_mono=[gr.themes.Font("monospace")],
    )
    # The defaults have too little contrast.
    return made.set(
        color_accent="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def answered(function: Callable[..., Any], outputs: int = 1) -> Callable[..., Any]:
    """What a handler answers, the HTML first; or in its place the error in one line, and all else as it was.

    Nothing of what was typed is printed: not the error's message, which may hold it.
    """

    @functools.wraps(function)
    def answer(*values: Any, **options: Any) -> Any:
        try:
            return function(*values, **options)
        except UserError as error:
            said = str(error)
        except Exception as error:
            said = UNEXPECTED.format(type(error).__name__)
            where = "".join(traceback.format_tb(error.__traceback__))
            print(f"error: {type(error).__name__} while answering:\n{where}", file=sys.stderr)
        return (markup.fault(said), *[gr.skip()] * (outputs - 1)) if outputs > 1 else markup.fault(said)

    return answer


def chooser(label: str, most_bytes: int) -> gr.HTML:
    """A button for a file, whose value is the image as `uploads.to_url` has it; its event is `upload`.

    Gradio's own would write what is chosen to the disk.
    """
    return gr.HTML(
        "",
        html_template=(
            '<label class="chooser"><input type="file" accept="image/*"><span>${label}</span></label>'
            '<p class="fault chooser-fault" role="alert" hidden></p>'
        ),
        js_on_load=SCRIPT.read_text(encoding="utf-8").replace("IMAGE_PATH", IMAGE),
        label=label,
        most_bytes=most_bytes,
        too_large=too_large(most_bytes),
        min_width=170,
        scale=1,
    )


class Query:
    """What is searched for: words, or an image that the browser keeps; and what is found.

    Args:
        gallery: whose captions are tried.
        most_bytes: of an image.
        show: the answer to `(words, kept, find, *more)`, as `outputs` take it, the HTML first.
        more: further components that decide the answer.
        beside: puts something beside the results.
        options: of its events.
    """

    def __init__(
        self,
        gallery: Gallery,
        most_bytes: int,
        show: Callable[..., Any],
        more: Callable[[], list] = list,
        beside: Callable[[], None] | None = None,
        options: dict[str, Any] = ASKED,
    ):
        self.gallery, self.show = gallery, show
        with gr.Row(elem_classes="ask"):
            self.words = gr.Textbox(
                label="Search by words", max_lines=1, max_length=LONGEST_QUERY, scale=5, min_width=240
            )
            search = gr.Button("Search", variant="primary", size="md", scale=1, min_width=90)
            self.kept = chooser("Search by an image", most_bytes)
        with gr.Row(elem_classes="ask"):
            self.find = gr.Radio(list(MODALITIES), value="images", label="Find", scale=2, min_width=200)
            safe = gr.Button("Try a safe caption", size="md", scale=1, min_width=150)
            unsafe = gr.Button("Try an unsafe caption", size="md", scale=1, min_width=150)
        self.more = more()
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self.out = gr.HTML(markup.note(EMPTY))
            if beside:
                with gr.Column(scale=2, min_width=300):
                    beside()
        asked, shown = [self.find, *self.more], [self.out, self.words, self.kept]
        gr.on(
            [search.click, self.words.submit],
            answered(self.by_words, 3),
            [self.words, *asked],
            shown,
            **options,
        )
        self.kept.upload(answered(self.by_image, 3), [self.kept, *asked], shown, **options)
        for button, side in ((safe, "safe"), (unsafe, "unsafe")):
            button.click(answered(functools.partial(self.by_caption, side), 3), asked, shown, **options)
        for changed in (self.find, *self.more):
            again = [self.words, self.kept, *asked]
            changed.change(answered(self.again), again, [self.out], trigger_mode="always_last", **options)

    def by_words(self, words: str, *asked: Any, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
        return self.show(words, "", *asked, tell=_teller(progress)), words, ""

    def by_image(self, kept: str, *asked: Any, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
        return self.show("", kept, *asked, tell=_teller(progress)), "", kept

    def by_caption(self, side: str, *asked: Any, progress: gr.Progress = gr.Progress()) -> tuple:  # noqa: B008
        caption = self.gallery.caption(side)
        if caption is None:
            raise UserError(f"the gallery has no {side} captions.")
        return self.show(caption, "", *asked, tell=_teller(progress)), caption, ""

    def again(self, words: str, kept: str, *asked: Any, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
        if not kept and not (words or "").strip():
            return gr.skip()
        return self.show(words, kept, *asked, tell=_teller(progress))


def _teller(progress: gr.Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress((done, total), desc="Embedding the gallery, once", unit="items")


def build(
    answers: Answers, figures: Figures, command: str, why_no_drawing: str, dataset: str, most_bytes: int
) -> gr.Blocks:
    """The page.

    Args:
        answers: what it says.
        figures: the report of an evaluation, or why there is none.
        command: makes one.
        why_no_drawing: what to say where nothing can be drawn.
        dataset: what the gallery is of, in words.
        most_bytes: of an image that is brought.
    """
    gallery = answers.gallery
    title = f"{gallery.ladder.safe.name} beside its original"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.HTML(_head(answers, dataset))
        with gr.Tabs():
            with gr.Tab("Search"):
                Query(gallery, most_bytes, lambda words, kept, find, tell: answers.search(words, kept, find))
            with gr.Tab("Strength"):
                _strength(answers, most_bytes)
            with gr.Tab("Zero-shot"):
                _classes(answers, most_bytes)
            with gr.Tab("Generator"):
                _drawing(answers, why_no_drawing)
            with gr.Tab("Figures"):
                gr.HTML(_figures(figures, command))
    return page


def _head(answers: Answers, dataset: str) -> str:
    gallery, ladder = answers.gallery, answers.gallery.ladder
    said = (
        f"The model {ladder.safe.name} and its original {ladder.original.name}, on {len(gallery):,} images of "
        f"{dataset}, {gallery.unsafe_images:,} of them labelled unsafe. A safe CLIP reduces unsafe results; it does "
        "not remove them. Nothing that is typed or uploaded is kept."
    )
    if gallery.frozen:
        said += " The safe model was trained for an index of the original's embeddings, which is what is searched."
    return f'<header class="app-head"><h1>A safe CLIP beside its original</h1><p>{markup.text(said)}</p></header>'


def _strength(answers: Answers, most_bytes: int) -> None:
    def more() -> list:
        with gr.Row():
            slider = gr.Slider(
                STEPS[0],
                STEPS[-1],
                value=1.0,
                step=STEPS[1] - STEPS[0],
                label="Strength: from the original (0) to the safe model (1)",
                buttons=[],
            )
        return [slider]

    def beside() -> None:
        nonlocal curve
        curve = gr.HTML(answers.curve(1.0))
        gr.HTML(markup.note("The gallery is embedded at a step between the ends when that is first chosen."))

    def show(words: str, kept: str, find: str, strength: float, tell: Tell) -> str:
        return answers.at(words, kept, find, strength, tell)

    curve: gr.HTML | None = None
    query = Query(answers.gallery, most_bytes, show, more, beside, STEPPED)

    def draw(strength: float, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        return answers.curve(strength, _teller(progress))

    (slider,) = query.more
    slider.change(answered(draw), [slider], [curve], trigger_mode="always_last", **STEPPED)


def _classes(answers: Answers, most_bytes: int) -> None:
    with gr.Row(elem_classes="ask"):
        labels = gr.Textbox(label="Labels, with commas between them", scale=4, min_width=240, max_length=6000)
        template = gr.Textbox(TEMPLATE, label="Sentence around a label", scale=2, min_width=200, max_length=100)
        kept = chooser("Choose an image", most_bytes)
        compare = gr.Button("Compare", variant="primary", size="md", scale=1, min_width=110)
    out = gr.HTML(markup.note("Choose an image and type some labels."))

    def chosen(kept: str, labels: str, template: str) -> str:
        if not (labels or "").strip():
            return markup.note("The image is here. Type some labels.")
        return answers.classify(kept, labels, template)

    asked = [kept, labels, template]
    kept.upload(answered(chosen), asked, [out], **ASKED)
    gr.on([compare.click, labels.submit], answered(answers.classify), asked, [out], **ASKED)


def _drawing(answers: Answers, why_no_drawing: str) -> None:
    if answers.drawing is None:
        gr.HTML(markup.note(why_no_drawing))
        return
    with gr.Row(elem_classes="ask"):
        prompt = gr.Textbox(label="Prompt", max_lines=1, max_length=LONGEST_QUERY, scale=5, min_width=240)
        seed = gr.Number(0, label="Noise", precision=0, minimum=0, maximum=HIGHEST_SEED, scale=1, min_width=90)
        draw = gr.Button("Draw", variant="primary", size="md", scale=1, min_width=90)
    out = gr.HTML(
        markup.note(
            f"Drawn by {answers.drawing.name} with the original's text encoder and with the safe one, from the same "
            "noise."
        )
    )
    options = {"api_visibility": "private", "concurrency_limit": DRAWINGS}
    gr.on([draw.click, prompt.submit], answered(answers.draw), [prompt, seed], [out], **options)


def _figures(figures: Figures, command: str) -> str:
    if figures.page is None:
        made = f'<pre class="command"><code>{markup.text(command)}</code></pre>'
        return f"{markup.note(f'{figures.said} This command makes one:')}{made}"
    return (
        f'{markup.note(figures.said)}<p><a href="{REPORT}" target="_blank" rel="noopener">The report on a page of its '
        f'own</a></p><iframe class="report" src="{REPORT}" loading="lazy" title="The report of safe-clip eval">'
        "</iframe>"
    )
