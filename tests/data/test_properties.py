"""Tables of any shape either load as they were written or say in one line what is wrong with them."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset

from safe_clip import QuadrupletRows, UserError, load_quadruplets
from safe_clip.data.column_names import guess_columns, modality, says_unsafe, words
from safe_clip.data.items import CAPTION_COLUMNS
from safe_clip.data.presets import known_columns

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# The same examples in every run, few enough for the whole of them to take seconds.
QUICK = settings(derandomize=True, deadline=None, database=None)

TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
LIST_TYPES = [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.list_(pa.string()))]
OTHER_TYPES = [pa.int64(), pa.float64(), pa.bool_(), pa.binary(), pa.struct([("en", pa.string())]), pa.null()]
OTHERS = ("category", "source_row", "Unnamed: 0")  # columns beside those of captions
FORMATS = [None, "numpy", "pandas", "arrow", "torch"]
WORDS = st.sampled_from(["a dog", "a gun", "nan", "NA", "None", "0", "['a dog']", "ein Hund, ü", "犬", " a b\n", '"'])
CELLS = {
    pa.int64(): st.integers(-5, 5),
    pa.float64(): st.sampled_from([0.5, float("nan")]),
    pa.bool_(): st.booleans(),
    pa.binary(): st.just(b"a dog"),
    pa.struct([("en", pa.string())]): st.fixed_dictionaries({"en": WORDS}),
    pa.null(): st.none(),
}


def cells_of(kind: pa.DataType) -> st.SearchStrategy:
    if kind in TEXT_TYPES:
        cell = st.one_of(*[WORDS] * 9, st.sampled_from(["", " "]))
    elif kind in LIST_TYPES:
        cell = st.lists(st.none() | WORDS, max_size=3)
        cell = cell.map(lambda texts: [texts]) if kind == LIST_TYPES[2] else cell
    else:
        cell = CELLS[kind]
    return st.one_of(*[cell] * 5, st.none())


@st.composite
def tables(draw, in_memory: bool) -> dict[str, tuple[pa.DataType, list]]:
    """Columns of captions under names as people write them, and others beside them; by name, their kinds and cells."""
    count = draw(st.sampled_from([1, 2, 3, 0]))
    names = CAPTION_COLUMNS
    if not in_memory:  # where the schema's own names alone are known
        names = draw(st.sampled_from([CAPTION_COLUMNS, ("Safe_Caption", " unsafe caption "), ("safe", "nsfw")]))
    if names[0] != "safe":  # one of this pair alone says too little
        names = draw(st.permutations(names))[: draw(st.integers(1, 2))]
    names = draw(st.permutations([*names, *draw(st.lists(st.sampled_from(OTHERS), unique=True))]))
    texts = TEXT_TYPES
    if not in_memory and int(pa.__version__.split(".")[0]) < 26:  # which crash where views are written
        texts = [kind for kind in texts if kind != pa.string_view()]
    kinds = st.sampled_from(texts * 6 + LIST_TYPES * 5 + OTHER_TYPES)
    made = {}
    for name in names:
        kind = draw(kinds)
        made[name] = kind, draw(st.lists(cells_of(kind), min_size=count, max_size=count))
    return made


def listed(cell) -> list:
    """The captions that were written into a cell."""
    if isinstance(cell, list):
        return [text for part in cell for text in listed(part)]
    return [] if cell is None or cell != cell else [cell]


def spread(table: dict) -> list[tuple]:
    """What a table's rows should read as: both captions of each."""
    columns = []
    for side in ("safe", "unsafe"):
        own = {f"{side}caption", {"safe": "safe", "unsafe": "nsfw"}[side]}
        name = next((name for name in table if name.lower().replace("_", "").replace(" ", "") in own), None)
        columns.append(table[name][1] if name else None)
    count = len(next(iter(table.values()))[1])
    rows = []
    for row in range(count):
        safe, unsafe = ([] if cells is None else listed(cells[row]) for cells in columns)
        for place in range(max(1, len(safe), len(unsafe))):
            rows.append(tuple(cell[place % len(cell)] if cell else None for cell in (safe, unsafe)))
    return rows


@settings(QUICK, max_examples=120)
@given(data=st.data(), kind=st.sampled_from(FORMATS), stored=st.sampled_from(["memory", "memory", "saved", "parquet"]))
def test_any_table_gives_the_captions_that_were_written_or_one_line(data, kind, stored):
    table = data.draw(tables(stored == "memory"))
    arrays = {
        name: pa.array(cells, pa.string()).cast(each) if each in TEXT_TYPES else pa.array(cells, each)
        for name, (each, cells) in table.items()
    }
    rows = Dataset(pa.table(arrays)).with_format(kind)
    try:
        if stored == "memory":
            loaded = rows
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "train.parquet") if stored == "parquet" else Path(folder, "rows")
                rows.to_parquet(path) if stored == "parquet" else rows.save_to_disk(path)
                loaded = load_quadruplets(str(path), hold_out=False)["train"]
        items = QuadrupletRows(loaded)
        found = [(row["safe_caption"], row["unsafe_caption"]) for row in (items[place] for place in range(len(items)))]
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        assert why(table), f"{error}: {table}"
        return
    assert found == spread(table)


def why(table: dict) -> bool:
    """Whether something is wrong with a table: no rows, a row without captions, or a cell that is no caption."""
    kinds = {kind for name, (kind, _) in table.items() if name not in OTHERS}
    captions = spread(table)
    return (
        not captions
        or not kinds <= {*TEXT_TYPES, *LIST_TYPES, pa.null()}
        or any(pair == (None, None) for pair in captions)
        or any(text is not None and not text.strip() for pair in captions for text in pair)
    )


PARTS = ["safe", "unsafe", "nsfw", "sfw", "not", "bad", "toxic", "neg", "image", "img", "photo", "caption", "text"]
PARTS += ["prompt", "id", "the", "x", "1", "harmful", "explicit", "clean"]


@st.composite
def names(draw) -> tuple[str, list[str]]:
    """A name as people make them, and the words that it is made of."""
    parts = draw(st.lists(st.sampled_from(PARTS), min_size=1, max_size=3))
    how = draw(st.sampled_from(["_", "-", " ", ".", "camel", "capitals"]))
    if how == "camel":
        return "".join([parts[0], *(part.capitalize() for part in parts[1:])]), parts
    if how == "capitals":
        return "_".join(parts).upper(), parts
    return how.join(parts), parts


@settings(QUICK, max_examples=300)
@given(made=st.lists(names(), min_size=1, max_size=6, unique_by=lambda name: name[0]))
def test_no_column_is_ever_proposed_for_the_other_side_or_the_other_kind(made):
    columns = [name for name, _ in made]
    sure, doubtful = guess_columns(columns)
    known = known_columns(columns)
    proposals = [*sure.items(), *((name, place) for name, places in doubtful.items() for place in places)]
    parts = dict(made)
    bad = {"unsafe", "nsfw", "bad", "toxic", "neg", "harmful", "explicit"}
    for name, place in [*proposals, *(known[1].items() if known else ())]:
        if place == "category":
            continue
        if bad & set(parts[name]) and "not" not in parts[name]:
            assert place.startswith("unsafe"), (name, place)
        if {"safe", "sfw", "clean"} & set(parts[name]) and not {"not", *bad} & set(parts[name]):
            assert place.startswith("safe"), (name, place)
        nouns = {"image", "img", "photo"} & set(parts[name]), {"caption", "text", "prompt"} & set(parts[name])
        if bool(nouns[0]) != bool(nouns[1]):
            assert place.endswith("image" if nouns[0] else "caption"), (name, place)
        assert "id" not in parts[name]
    assert len(set(sure.values())) == len(sure)


@settings(QUICK, max_examples=200)
@given(name=st.text(max_size=12))
def test_any_name_can_be_read(name):
    assert says_unsafe(name) in (True, False, None) and modality(name) in ("text", "image", None)
    assert all(words(name))
