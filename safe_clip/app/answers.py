"""What the page answers, as HTML: everything that it does but how it is laid out."""

from dataclasses import dataclass

from PIL.Image import Image

from ..data.thumbnails import data_url
from ..errors import UserError
from . import markup
from .classes import TEMPLATE, Classes, labels_of
from .drawing import HIGHEST_SEED, Drawing
from .gallery import MODALITIES, Gallery
from .ladder import Tell
from .uploads import query_of

SHOWN = 12  # results of each model
TITLES = {0.0: "Original", 1.0: "Safe"}
AMONG_IMAGES = (
    "Training moves captions and images towards what is safe of the other kind. A search of images by an image is not "
    "made safe by that."
)


@dataclass(frozen=True)
class Answers:
    """Answers of one gallery and its models.

    Attributes:
        gallery: what is searched.
        classes: names what an image shows.
        drawing: draws; `None` where nothing can.
        show_unsafe: cover nothing that is unsafe.
    """

    gallery: Gallery
    classes: Classes
    drawing: Drawing | None = None
    show_unsafe: bool = False

    def search(self, words: str | None, kept: str | None, find: str) -> str:
        """What both models find.

        Args:
            words: the query; or
            kept: an image, as the browser keeps it.
            find: of `MODALITIES`.

        Raises:
            UserError: there is no query, or it cannot be read.
        """
        query = query_of(words, kept)
        columns = [self._column(query, find, strength) for strength in TITLES]
        return self._note(query, find) + markup.results(columns, self.show_unsafe, _shown(query))

    def at(self, words: str | None, kept: str | None, find: str, strength: float, tell: Tell | None = None) -> str:
        """What a step between the models finds.

        Args:
            words, kept, find: as for `search`.
            strength: the step.
            tell: is told how far the embedding of the gallery is, where that is not done yet.
        """
        query = query_of(words, kept)
        self.gallery.items(strength, tell)
        columns = [self._column(query, find, strength)]
        return self._note(query, find) + markup.results(columns, self.show_unsafe, _shown(query))

    def curve(self, strength: float, tell: Tell | None = None) -> str:
        """Safety over utility, of all steps that are embedded, this one among them."""
        self.gallery.items(strength, tell)
        return markup.curve(self.gallery.points(), strength)

    def classify(self, kept: str | None, labels: str | None, template: str = TEMPLATE) -> str:
        """What both models see in an image."""
        if not kept:
            raise UserError("choose an image.")
        names, image = labels_of(labels), query_of(None, kept)
        found = self.classes.probabilities(image, names, template)
        by = {TITLES[strength]: values for strength, values in found.items()}
        return markup.probabilities(names, by, _shown(image) or "", self.classes.independent)

    def draw(self, prompt: str | None, seed: float | None) -> str:
        """What both encoders draw."""
        if self.drawing is None:
            raise UserError("there is nothing to draw with.")
        words = query_of(prompt, None)
        if seed is None or not 0 <= seed <= HIGHEST_SEED or seed != int(seed):
            raise UserError(f"the number of the noise must be a whole number from 0 to {HIGHEST_SEED}.")
        drawn = self.drawing.draw(words, int(seed))
        nudity = self.drawing.sees_nudity_alone
        shown = ((data_url(each.image, hidden=False, longest=512), each) for each in drawn.values())
        said = markup.drawings(TITLES.values(), shown, nudity, self.show_unsafe)
        if nudity:
            said += markup.note(
                "Judged for nudity alone: whatever else is unsafe is not flagged, so that the original's image is "
                "covered in any case. --image_classifier names other judges."
            )
        return said

    def _column(self, query: str | Image, find: str, strength: float) -> markup.Column:
        if find not in MODALITIES:
            raise UserError(f"what is found must be among {', '.join(MODALITIES)}.")
        modality, gallery = MODALITIES[find], self.gallery
        embeds = gallery.ladder.embed(query, strength)
        hits = gallery.search(embeds, strength, modality, SHOWN)
        found = [(hit, gallery.thing(hit.side, modality, hit.index)) for hit in hits]
        name = gallery.ladder.original.name if strength == 0 else gallery.ladder.safe.name
        title = TITLES.get(strength, f"Strength {strength:g}")
        return markup.Column(title, name if strength in TITLES else "", found)

    def _note(self, query: str | Image, find: str) -> str:
        if not self.gallery.size(MODALITIES.get(find, "image")):
            return markup.note(f"The gallery has no {find}.")
        return markup.note(AMONG_IMAGES) if find == "images" and not isinstance(query, str) else ""


def _shown(query: str | Image) -> str | None:
    """A small copy of a query that is an image."""
    return None if isinstance(query, str) else data_url(query, hidden=False)
