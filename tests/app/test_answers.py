"""What the page answers, beside stock transformers and the figures of an evaluation."""

import re
from html.parser import HTMLParser

import pytest
import torch
from datasets import Dataset
from PIL import Image as PILImage
from torch.nn.functional import normalize
from transformers import pipeline

from safe_clip import UserError, merge
from safe_clip.app.classes import Classes, labels_of
from safe_clip.app.gallery import Gallery, Point, load_gallery
from safe_clip.app.ladder import STEPS, Ladder, Opened
from safe_clip.app.markup import curve
from safe_clip.app.uploads import small, to_url
from safe_clip.data.arguments import DataArguments
from safe_clip.embedding.embedder import Embedder
from safe_clip.evaluation.suite import embed_everything, measure

from ..checkpoints import SAVE
from ..helpers import build_model

WORDS = "a red square beside a blue one with a mark"


class Hits(HTMLParser):
    """The results in a page, a list for each model: side, score, whether it is covered, what its image is called."""

    def __init__(self, text):
        super().__init__()
        self.columns = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        classes = (attrs.get("class") or "").split()
        if tag == "ol":
            self.columns.append([])
        elif tag == "li":
            self.columns[-1].append({"side": classes[1], "covered": False})
        elif "lift" in classes:
            self.columns[-1][-1] |= {"covered": True, "label": attrs["aria-label"], "type": attrs["type"]}
        elif tag == "img" and self.columns:
            self.columns[-1][-1]["alt"] = attrs["alt"]

    def handle_data(self, data):
        if self.columns and self.columns[-1] and re.fullmatch(r"-?\d\.\d{3}", data):
            self.columns[-1][-1]["score"] = float(data)


def stock(opened: Opened, *, words=None, images=None) -> torch.Tensor:
    """Embeddings by transformers alone."""
    inputs = opened.processor(text=words, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        if words:
            return normalize(opened.model.get_text_features(**inputs).pooler_output, dim=1)
        return normalize(opened.model.get_image_features(**inputs).pooler_output, dim=1)


@pytest.mark.parametrize("find", ["images", "captions"])
@pytest.mark.parametrize("by_image", [False, True])
def test_results_are_in_the_order_that_transformers_gives(answers, ladder, rows, find, by_image):
    query = rows[5]["safe_image"].resize((40, 40)) if by_image else None
    words, kept = ("", to_url(query)) if by_image else (WORDS, "")
    found = Hits(answers.search(words, kept, find)).columns
    for opened, column in zip((ladder.original, ladder.safe), found, strict=True):
        asked = stock(opened, images=[query]) if by_image else stock(opened, words=[WORDS])
        pool = [*rows["safe_caption"], *rows["unsafe_caption"]]
        if find == "images":
            pool = [*rows["safe_image"], *rows["unsafe_image"]]
            pool = list({image.tobytes(): image for image in pool}.values())
        everything = stock(opened, images=pool) if find == "images" else stock(opened, words=list(dict.fromkeys(pool)))
        best = (asked @ everything.T)[0].sort(descending=True).values[:12].tolist()
        assert [hit["score"] for hit in column] == pytest.approx(best, abs=6e-4)
        assert len({hit["score"] for hit in column}) > 6  # or any order would do


def test_what_the_data_call_unsafe_is_covered_and_named_and_nothing_else_is(answers, gallery, rows):
    for find, modality in (("images", "image"), ("captions", "text")):
        for strength, column in enumerate(Hits(answers.search(WORDS, "", find)).columns):
            embeds = gallery.ladder.embed(WORDS, float(strength))
            for shown, hit in zip(column, gallery.search(embeds, float(strength), modality, 12), strict=True):
                row = int(gallery.items(1.0).of(hit.side, modality).row[hit.index])
                assert shown["side"] == hit.side and shown["covered"] == (hit.side == "unsafe"), (find, row)
                if shown["covered"]:
                    assert "labelled unsafe" in shown["label"] and shown["type"] == "checkbox"
                if find == "images":
                    alone = gallery.viewer.rows[row]["unsafe_image_is_safe"] and hit.index == 4  # without a caption
                    assert shown["alt"] and ("square" in shown["alt"]) == (hit.side == "safe" and not alone)
    sides = {hit["side"] for column in Hits(answers.search(WORDS, "", "images")).columns for hit in column}
    assert sides == {"safe", "unsafe"}
    # The one on the unsafe side that is labelled safe: found first by itself, not covered.
    found = Hits(answers.search("", to_url(rows[3]["unsafe_image"]), "images")).columns
    assert [(column[0]["side"], column[0]["covered"], column[0]["score"]) for column in found] == [
        ("safe", False, 1)
    ] * 2
    found = Hits(answers.search("", to_url(rows[4]["unsafe_image"]), "images")).columns
    assert [(column[0]["side"], column[0]["covered"], column[0]["score"]) for column in found] == [
        ("unsafe", True, 1)
    ] * 2


def test_nothing_is_covered_where_that_is_asked_for(gallery, answers):
    from dataclasses import replace

    text = replace(answers, show_unsafe=True).search(WORDS, "", "images")
    hits = [hit for column in Hits(text).columns for hit in column]
    assert not any(hit["covered"] for hit in hits) and any(hit["side"] == "unsafe" for hit in hits)


def test_the_words_beside_results_count_them(answers):
    text = answers.search(WORDS, "", "images")
    for column, said in zip(Hits(text).columns, re.findall(r'class="count">(.*?)</p>', text), strict=True):
        unsafe = sum(hit["side"] == "unsafe" for hit in column)
        assert said.startswith(f"{unsafe} of the first 12 ")
        assert said.endswith(f"The first is {column[0]['side']}.")


def test_the_ends_of_the_slider_are_the_two_models_and_its_middle_the_merged_one(answers, ladder):
    both = Hits(answers.search(WORDS, "", "images")).columns
    ends = [Hits(answers.at(WORDS, "", "images", strength)).columns[0] for strength in (0.0, 1.0)]
    assert ends == both and both[0] != both[1]
    middle = Opened(merge(ladder.original.model, ladder.safe.model, 0.5), ladder.safe.processor, "middle")
    assert torch.allclose(ladder.embed(WORDS, 0.5), stock(middle, words=[WORDS]), atol=1e-6)
    told = []
    Hits(answers.at(WORDS, "", "images", 0.25, lambda *so_far: told.append(so_far)))
    assert told[-1] == (95, 96) or told[-1] == (96, 96)  # of one image the label says that it is another's
    assert told == sorted(told)
    with pytest.raises(UserError, match="must be among 0, 0.25, 0.5, 0.75, 1"):
        answers.at(WORDS, "", "images", 0.3)


def test_the_curve_has_the_figures_of_an_evaluation(gallery, data, ladder):
    for strength in (0.0, 0.5, 1.0):
        model = merge(ladder.original.model, ladder.safe.model, strength)
        made = embed_everything(
            Embedder(model, ladder.safe.processor, progress=False), data, ("retrieval", "redirection")
        )
        figures = measure({"model": made}, data, ("retrieval", "redirection"))["model"]["splits"]["test"]
        gallery.items(strength)
        point = gallery.point(strength)
        assert point.safety == pytest.approx(figures["redirection"]["unsafe_text_safe_rate_at_1"]["value"], abs=1e-4)
        assert point.utility == pytest.approx(figures["retrieval"]["safe_t2i_recall_at_1"]["value"], abs=1e-4)
    assert {point.strength for point in gallery.points()} >= {0.0, 0.5, 1.0}


def test_the_curve_says_in_words_what_it_shows_and_rings_one_point():
    points = [Point(0.0, 0.048, 0.695), Point(1.0, 0.931, 0.674)]
    text = curve(points, 1.0)
    assert text.count('class="here"') == 1 and text.count('class="point"') == 2
    assert "strength 0: 4.8 % safe first, recall 69.5 %; strength 1: 93.1 % safe first, recall 67.4 %" in text
    assert "At strength 1, 93.1 % of unsafe captions find a safe image first, and 67.4 %" in text
    assert 'class="here"' not in curve(points, 0.5) and "no curve" in curve([], 1.0)


def test_a_gallery_of_the_original_is_searched_by_queries_of_both(ladder, data):
    frozen = Gallery(ladder, data, frozen=True)
    query = ladder.embed(WORDS, 1.0)
    pool = frozen.items(0.0)
    both = torch.cat([pool.safe_image.different, pool.unsafe_image.different])
    assert frozen.search(query, 1.0, "image", 1)[0].score == pytest.approx((both @ query[0]).max().item(), abs=1e-6)
    assert frozen.point(1.0) != Gallery(ladder, data).point(1.0)


@pytest.mark.parametrize("family", ["clip", "siglip_2"])
def test_probabilities_are_those_of_the_pipeline(family, tmp_path, rows):
    SAVE[family](tmp_path / "model")
    opened = [Opened.of(str(tmp_path / "model")) for _ in range(2)]
    classes = Classes(Ladder(*opened, progress=False))
    image, labels = rows[0]["safe_image"], ["red square", "blue one", "green mark"]
    stock = pipeline("zero-shot-image-classification", str(tmp_path / "model"))
    expected = {each["label"]: each["score"] for each in stock(image, candidate_labels=labels)}
    for values in classes.probabilities(image, labels).values():
        assert values == pytest.approx([expected[label] for label in labels], abs=1e-5)
        assert (abs(sum(values) - 1) < 1e-4) == (family == "clip")
    assert classes.independent == (family == "siglip_2")
    other = stock(image, candidate_labels=labels, hypothesis_template="a {}")
    found = classes.probabilities(image, labels, "a {}")[0.0]
    assert found == pytest.approx(
        [{each["label"]: each["score"] for each in other}[label] for label in labels], abs=1e-5
    )
    with pytest.raises(UserError, match="where the label goes"):
        classes.probabilities(image, labels, "a photo")


def test_labels_are_read_and_limited():
    assert labels_of(" a dog ,a cat,\na  bus, a dog,,") == ["a dog", "a cat", "a bus"]
    for text, fault in (
        (" , ", "type some labels"),
        (",".join(map(str, range(51))), "51 labels"),
        ("a" * 101, "more than 100"),
    ):
        with pytest.raises(UserError, match=fault):
            labels_of(text)


def test_a_search_leaves_nothing_on_the_disk(ladder, data, tmp_path, rows):
    ends = ladder.original, ladder.safe
    gallery = Gallery(Ladder(*ends, cache_dir=tmp_path, progress=False), data)
    kept = sorted(tmp_path.rglob("*"))
    assert kept
    for query in (WORDS, rows[0]["safe_image"]):
        gallery.search(gallery.ladder.embed(query, 1.0), 1.0, "image", 3)
    assert sorted(tmp_path.rglob("*")) == kept
    gallery.items(0.5)
    assert len(sorted(tmp_path.rglob("*"))) > len(kept)  # what is embedded of the gallery is kept


def test_models_that_do_not_belong_together_are_refused(processor, ladder):
    for other, fault in (
        (build_model(processor, seed=1), "neither was trained"),
        (build_model(processor, layers=1), "shape"),
    ):
        with pytest.raises(UserError, match=f"other and before do not belong together: .*{fault}"):
            Ladder(ladder.original, Opened(other, processor, "other"))
    assert STEPS[0] == 0 and STEPS[-1] == 1


def test_a_gallery_has_at_most_so_many_images(dataset_dir, tmp_path, rows):
    loaded = load_gallery(DataArguments(dataset_dir), max_images=6).splits
    assert list(loaded) == ["test"] and len(loaded["test"].rows) == 3 and loaded["test"].of == 8
    assert len(load_gallery(DataArguments(dataset_dir), "validation").splits["validation"].rows) == 8
    texts = Dataset.from_dict({"safe_caption": ["a"], "unsafe_caption": ["b"]})
    texts.to_json(tmp_path / "texts.jsonl")
    with pytest.raises(UserError, match="has no images"):
        load_gallery(DataArguments(str(tmp_path / "texts.jsonl")), "train")


def test_queries_are_read_or_refused_in_a_line(answers):
    image = PILImage.effect_noise((50, 30), 90).convert("RGB")
    assert small(to_bytes(image)).tobytes() == image.tobytes()
    assert small(to_bytes(image.resize((2000, 100)))).size == (640, 32)
    for words, kept, fault in (
        ("  ", "", "type what to look for"),
        ("a" * 1001, "", "1,001 characters"),
        ("", "data:image/png;base64,???", "did not arrive whole"),
        ("", "data:image/png;base64,aGVsbG8=", "cannot be read"),
    ):
        with pytest.raises(UserError, match=fault):
            answers.search(words, kept, "images")
    with pytest.raises(UserError, match="must be among images, captions"):
        answers.search("a", "", "files")


def to_bytes(image, kind="PNG"):
    import io

    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_an_image_that_would_fill_the_memory_is_refused_unread():
    bomb = to_bytes(PILImage.new("1", (9000, 9000)))
    assert len(bomb) < 20_000
    with pytest.raises(UserError, match="9,000 x 9,000 pixels, more than 50 million"):
        small(bomb)
    with pytest.raises(UserError, match="this image cannot be read: .*it is a web page"):
        small(b"<html></html>")
