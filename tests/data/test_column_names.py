"""What names of columns say, and what is proposed of them."""

import json
import re

import pytest
from datasets import Dataset, Features, Image, Value

from safe_clip import UserError, load_quadruplets
from safe_clip.data.column_names import guess_columns, modality, says_unsafe
from safe_clip.data.presets import known_columns

from ..helpers import make_rows

SAY_UNSAFE = """
unsafe nsfw imageNSFW NSFWimage NSFW_Image unsafeCaption unsafecaption bad_prompt badprompt text_neg negText
not_safe notSafe isNotSafe isnt_safe not_safe_for_work unsuitableImage malicious-prompt harmful.text usafe_caption
unsfe_image toxic_comment punsafe uncensored sexual_image explicit violence weapons
"""
SAY_SAFE = """
safe SAFE_CAPTION safe-caption safetext sfw harmless nontoxic non_toxic not_harmful nsfw_free detoxified_text
safe_for_work neutral_comment clean caption_without_nsfw
"""
SAY_NEITHER = """
caption image prompt badge texture context safety safe_or_unsafe unsafe_to_safe negotiation Bilder 5 negative_prompt
negativePrompt neg_prompts positive_prompt nsfw_removed_caption nsfwRemoved removed_nsfw filtered_unsafe_text de_nsfw
nsfw_cleaned unsafe_rewritten
"""


@pytest.mark.parametrize(("names", "says"), [(SAY_UNSAFE, True), (SAY_SAFE, False), (SAY_NEITHER, None)])
def test_what_names_say(names, says):
    assert {name: says_unsafe(name) for name in names.split()} == dict.fromkeys(names.split(), says)


@pytest.mark.parametrize(
    ("name", "feature", "kind"),
    [
        ("nsfw_image", None, "image"),
        ("image_caption", None, "text"),
        ("image_id", None, None),
        ("caption_length", Value("int64"), None),
        ("photo", Value("large_string"), "image"),  # a path
        ("photo_caption", Image(), None),  # its name and its kind say different things
        ("anything", Image(), "image"),
        ("anything", Value("string"), None),
        ("prompt", Value("string_view"), "text"),
        ("prompt", Value("float64"), None),
        ("prompt_url", Value("string"), None),
    ],
)
def test_captions_and_images_are_told_apart(name, feature, kind):
    assert modality(name, feature) == kind


GUESSES = {
    "caption image nsfw_caption nsfw_image": "caption:sc nsfw_caption:uc image:si nsfw_image:ui",
    "image imageNSFW text textNSFW": "text:sc textNSFW:uc image:si imageNSFW:ui",
    "img bad_img": "img:si bad_img:ui",
    "en_toxic_comment en_neutral_comment": "en_neutral_comment:sc en_toxic_comment:uc",
    "not_safe_image safe_for_work_image": "safe_for_work_image:si not_safe_image:ui",
    "safe_captoin usafe_captoin": "safe_captoin:sc usafe_captoin:uc",
    "safe_caption unsafe_caption photo safe_image": "",
    "caption alt_text nsfw_caption": "nsfw_caption:uc",
    "safe_prompt prompt": "safe_prompt:sc",
    "image text": "",
    "image": "",
    "nsfw_image1 nsfw_image2 image": "image:si",
    "image_id nsfw_score harmful_count": "",
    "prompt negative_prompt": "",
    "caption nsfw_removed_caption": "",
    "caption safe nsfw": "",
    "caption_without_nsfw nsfw_caption": "caption_without_nsfw:sc nsfw_caption:uc",
}
SHORT = {"sc": "safe_caption", "uc": "unsafe_caption", "si": "safe_image", "ui": "unsafe_image"}


@pytest.mark.parametrize(("columns", "expected"), GUESSES.items())
def test_what_is_proposed(columns, expected):
    pairs = (pair.split(":") for pair in expected.split())
    sure, doubtful = guess_columns(columns.split())
    assert sure == {name: SHORT[short] for name, short in pairs}
    assert not set(sure) & set(doubtful)


def proposed(error) -> dict:
    return json.loads(re.search(r"--column_mapping '(\{.*?\})'", str(error.value))[1])


def test_a_proposed_mapping_is_complete_and_puts_everything_where_it_belongs(tmp_path):
    own = make_rows(4)
    table = {name: own[column] for name, column in zip(PROPOSED, PROPOSED.values(), strict=True)}
    kinds = {name: Image() if "image" in name else Value("large_string") for name in table}
    Dataset.from_dict(table, features=Features(kinds)).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="lacks the columns 'safe_image', 'unsafe_image'; it has 'caption', ") as error:
        load_quadruplets(str(tmp_path))
    assert proposed(error) == PROPOSED
    rows = load_quadruplets(str(tmp_path), column_mapping=proposed(error), hold_out=False)["train"]
    for column in SHORT.values():
        found = rows[column]
        assert [cell if isinstance(cell, str) else cell.tobytes() for cell in found] == [
            cell if isinstance(cell, str) else cell.tobytes() for cell in own[column]
        ]


PROPOSED = {
    "caption": "safe_caption",
    "image": "safe_image",
    "nsfw_caption": "unsafe_caption",
    "nsfw_image": "unsafe_image",
}


def test_where_nothing_is_sure_the_form_is_shown_and_no_side_is_chosen(tmp_path):
    own = make_rows(4)
    table = {"image": own["unsafe_image"], "unsafe_caption": own["unsafe_caption"]}
    Dataset.from_dict(table, features=Features({"image": Image(), "unsafe_caption": Value("string")})).to_parquet(
        tmp_path / "train.parquet"
    )
    with pytest.raises(
        UserError, match=r"'\{\"image\": \"safe_image or unsafe_image\"\}'.*'\{\"image\": null\}'"
    ) as error:
        load_quadruplets(str(tmp_path))
    with pytest.raises(UserError, match="calls 'image' 'safe_image or unsafe_image', which is no column of the schema"):
        load_quadruplets(str(tmp_path), column_mapping=proposed(error))
    assert len(load_quadruplets(str(tmp_path), column_mapping={"image": None}, hold_out=False)["train"]) == 4


@pytest.mark.parametrize("partner", ["nsfw_prompt", "unsafe_prompt", "promptNSFW"])
def test_beside_a_partner_that_says_unsafe_a_prompt_is_the_safe_one(partner, tmp_path, caplog):
    Dataset.from_dict({"prompt": ["a dog"] * 4, partner: ["a gun"] * 4}).to_parquet(tmp_path / "train.parquet")
    rows = load_quadruplets(str(tmp_path), hold_out=False)["train"]
    assert set(rows["safe_caption"]) == {"a dog"} and set(rows["unsafe_caption"]) == {"a gun"}
    assert f"taking prompt as safe_caption, {partner} as unsafe_caption" in caplog.text


@pytest.mark.parametrize("partner", ["negative_prompt", "bad_prompt", "safe_prompt", "toxic_text", "harmful_caption"])
def test_no_preset_is_taken_where_another_column_says_its_side(partner):
    assert known_columns(["prompt", partner, "categories"]) is None


def test_a_list_of_prompts_is_known_beside_scores_of_what_is_unsafe():
    columns = ["prompt", "categories", "nudity_percentage", "prompt_toxicity", "hard"]
    kinds = dict.fromkeys(columns, Value("string")) | dict.fromkeys(columns[2:], Value("float64"))
    assert known_columns(columns, kinds)[1] == {"prompt": "unsafe_caption", "categories": "category"}
    assert known_columns(["safe", "nsfw"], {"safe": Value("bool"), "nsfw": Value("float32")}) is None
    assert known_columns(["safe", "nsfw"], {"safe": Value("string"), "nsfw": Value("large_string")})


I2P = ["prompt", "categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage", "lexica_url"]
I2P += ["sd_safety_percentage", "prompt_toxicity", "sd_seed", "sd_guidance_scale", "sd_image_width", "sd_model"]


def test_prompts_are_unsafe_ones_only_where_something_marks_such_a_list():
    assert known_columns(I2P)[1] == {"prompt": "unsafe_caption", "categories": "category"}
    for others in ("", "response", "categories response", "categories is_safe", "categories caption"):
        assert known_columns(["prompt", *others.split()]) is None, others
    for item in ("safe_image", "unsafe_image", "image"):
        assert known_columns([*I2P, item]) is None and known_columns(["prompt", item]) is None
    assert known_columns(["prompt", "safe_image"], sure=False)[1] == {"prompt": "unsafe_caption"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("table", [{}, {"caption": ["a dog", "a cat"]}, {"text": ["a dog", "a cat"]}])
def test_flags_are_no_captions(table, streaming, tmp_path):
    assert known_columns(["safe", "nsfw", "tag"]) and not known_columns(["safe", "nsfw", "caption"])
    rows = Dataset.from_dict(table | {"safe": ["yes", "No"], "nsfw": ["no", None]})
    rows.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match="lacks the columns 'safe_caption', 'unsafe_caption', ") as error:
        load_quadruplets(str(tmp_path), streaming=streaming)
    assert not {"safe", "nsfw"} & set(proposed(error))
    captions = Dataset.from_dict({"safe": ["yes", "a dog"], "nsfw": ["no", "a gun"]})
    captions.to_parquet(tmp_path / "train.parquet")
    rows = load_quadruplets(str(tmp_path), streaming=streaming, hold_out=False)["train"]
    assert [row["safe_caption"] for row in rows] == ["yes", "a dog"]


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"nsfw_text": "safe_caption"}, "makes 'nsfw_text' of .* safe_caption, but its name says unsafe, not safe"),
        ({"clean_text": "unsafe_caption"}, "makes 'clean_text' of .* unsafe_caption, but its name says safe"),
        ({"nsfw_text": "safe_image"}, "its name says unsafe"),
    ],
)
def test_a_mapping_against_what_names_say_is_refused_unless_it_is_meant(mapping, says, tmp_path, caplog):
    rows = Dataset.from_dict({"clean_text": ["a dog"] * 2, "nsfw_text": ["a gun"] * 2})
    rows.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(UserError, match=f"{says}.* --sides_are_right"):
        load_quadruplets(str(tmp_path), column_mapping=mapping)
    other = {"clean_text", "nsfw_text"} - set(mapping)
    mapping |= dict.fromkeys(other)
    loaded = load_quadruplets(str(tmp_path), column_mapping=mapping, hold_out=False, sides_are_right=True)["train"]
    assert len(loaded) == 2 and "but its name says" in caplog.text


@pytest.mark.parametrize(
    ("own", "column"),
    [
        ("Safe_Caption", "safe_caption"),
        (" safe_caption ", "safe_caption"),
        ("SAFE CAPTION", "safe_caption"),
        ("safeCaption", "safe_caption"),
        ("unsafe-caption", "unsafe_caption"),
        ("Category", "category"),
        ("Unsafe_Caption_Is_Safe", "unsafe_caption_is_safe"),
    ],
)
def test_the_schema_s_own_names_however_they_are_written(own, column, tmp_path, caplog):
    table = {"safe_caption": ["a dog"], "unsafe_caption": ["a gun"], "category": ["weapons"]}
    table |= {"unsafe_caption_is_safe": [False]}
    Dataset.from_dict({own if name == column else name: cells for name, cells in table.items()}).to_parquet(
        tmp_path / "train.parquet"
    )
    loaded = load_quadruplets(str(tmp_path), hold_out=False)["train"]
    assert loaded[0] == table | {name: cells[0] for name, cells in table.items()}
    assert f"taking '{own}' as {column}" in caplog.text


def test_a_table_with_a_byte_order_mark_an_index_and_a_column_twice(tmp_path, caplog):
    text = ",safe_caption,unsafe_caption,safe_caption\n0,a dog,a gun,a cat\n1,nan,NA,x\n2,,a dagger,x\n"
    (tmp_path / "train.csv").write_text(text, encoding="utf-8-sig")
    rows = load_quadruplets(str(tmp_path / "train.csv"), hold_out=False)["train"]
    assert list(rows["safe_caption"]) == ["a dog", "nan", None] and rows["unsafe_caption"][1] == "NA"
    assert "has 'safe_caption' twice; the first of them is taken" in caplog.text
    (tmp_path / "other.csv").write_text("safe_caption,unsafe_caption\na dog,a gun\n", encoding="utf-8-sig")
    assert load_quadruplets(str(tmp_path / "other.csv"))["train"]["safe_caption"] == ["a dog"]


def test_a_name_that_is_misspelled_in_a_mapping():
    from safe_clip.data.quadruplets import check_mapping

    with pytest.raises(UserError, match="calls 'text' 'safe_captoin', which is no column of the schema; those are"):
        check_mapping({"text": "safe_captoin"}, ["text"], "rows")
    assert check_mapping({"kind": "category", "old": "other"}, ["kind", "old"], "rows") == {
        "kind": "category",
        "old": "other",
    }


@pytest.mark.parametrize("new", [5, "", ["safe_caption"], True])
def test_a_mapping_to_what_is_no_name(new):
    from safe_clip.data.quadruplets import check_mapping

    with pytest.raises(UserError, match="--column_mapping calls 'text' .*, which is no name; those of the schema are"):
        check_mapping({"text": new}, ["text"], "rows")
