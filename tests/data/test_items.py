import numpy as np
import pytest
from datasets import Dataset

from safe_clip import QuadrupletRows, UserError
from safe_clip.data.items import NOWHERE, SAFE, UNKNOWN, UNSAFE, items_there, layout_by_labels, layout_of

from ..helpers import FEATURES, make_rows

HERE, GONE = True, False
N = NOWHERE


def filed(there, labels):
    made = layout_by_labels(np.array([there]), np.array([labels]))
    return [tuple(source) for source in made.source.tolist()], made.relabelled.tolist(), made.half_unsafe.tolist()


@pytest.mark.parametrize(
    ("labels", "sources", "mixed"),
    [
        ([UNKNOWN] * 4, [(0, 1, 2, 3)], [False]),
        ([SAFE, UNSAFE, SAFE, UNSAFE], [(0, 1, 2, 3)], [False]),
        # The unsafe caption came out harmless: it is preserved by itself, the image is redirected.
        ([UNKNOWN, SAFE, UNKNOWN, UNKNOWN], [(0, N, 2, 3), (1, N, N, N)], [True, False]),
        ([UNKNOWN, UNKNOWN, UNKNOWN, SAFE], [(0, 1, 2, N), (N, N, 3, N)], [True, False]),
        # Both did: a safe pair of their own.
        ([UNKNOWN, SAFE, UNKNOWN, SAFE], [(0, N, 2, N), (1, N, 3, N)], [False, False]),
        # The safe caption is unsafe, and no target.
        ([UNSAFE, UNKNOWN, UNKNOWN, UNKNOWN], [(N, 1, 2, 3)], [False]),
        # The two captions were swapped; then the images too.
        ([UNSAFE, SAFE, UNKNOWN, UNKNOWN], [(1, 0, 2, 3)], [False]),
        ([UNSAFE, SAFE, UNSAFE, SAFE], [(1, 0, 3, 2)], [False]),
    ],
)
def test_each_item_stands_where_its_label_says(labels, sources, mixed):
    assert filed([HERE] * 4, labels) == (sources, [False] + [True] * (len(sources) - 1), mixed)


@pytest.mark.parametrize(
    ("there", "labels", "sources"),
    [
        ([HERE, HERE, GONE, GONE], [UNKNOWN] * 4, [(0, 1, N, N)]),
        ([GONE, HERE, GONE, GONE], [UNKNOWN] * 4, [(N, 1, N, N)]),
        ([GONE, HERE, HERE, HERE], [UNKNOWN, SAFE, UNKNOWN, UNKNOWN], [(N, N, 2, 3), (1, N, N, N)]),
        ([HERE, GONE, HERE, HERE], [UNSAFE, UNKNOWN, UNKNOWN, UNKNOWN], [(N, 0, 2, 3)]),
        # Only an unsafe safe-side caption and a harmless counterpart, which change places.
        ([HERE, HERE, GONE, GONE], [UNSAFE, SAFE, UNKNOWN, UNKNOWN], [(1, 0, N, N)]),
        ([GONE] * 4, [UNKNOWN] * 4, []),
    ],
)
def test_what_is_missing_stands_nowhere(there, labels, sources):
    assert filed(there, labels)[0] == sources


def test_quadruplets_keep_the_order_of_rows():
    labels = np.full((5, 4), UNKNOWN)
    labels[[1, 3], 1] = SAFE
    there = np.ones((5, 4), dtype=bool)
    there[2] = False
    made = layout_by_labels(there, labels)
    assert made.row.tolist() == [0, 1, 1, 3, 3, 4]
    assert made.relabelled.tolist() == [False, False, True, False, True, False]


def gappy(**gaps):
    table = Dataset.from_dict(make_rows(12), features=FEATURES).with_format("arrow")[:].to_pylist()
    for column, rows in gaps.items():
        for row in rows:
            table[row][column] = None
    return Dataset.from_list(table, features=FEATURES)


def test_empty_cells_are_seen_without_reading_images_also_of_rows_that_were_picked_out():
    rows = gappy(safe_image=[1, 2], unsafe_caption=[2])
    assert (~items_there(rows, "safe_image")).nonzero()[0].tolist() == [1, 2]
    picked = rows.select([11, 2, 0, 1])
    assert items_there(picked, "safe_image").tolist() == [True, False, True, False]
    assert items_there(picked, "unsafe_caption").tolist() == [True, False, True, True]
    assert not items_there(rows.remove_columns("safe_image"), "safe_image").any()


def test_rows_give_what_they_have_and_labels_move_it():
    rows = gappy(safe_image=[1], unsafe_image=[1, 4]).add_column("unsafe_caption_is_safe", [None] * 3 + [True] * 9)
    data = QuadrupletRows(rows)
    assert len(data) == 12 + 9
    assert data[1]["safe_image"] is None and data[1]["safe_caption"] == rows[1]["safe_caption"]
    base, freed = data[3], data[4]
    assert base["unsafe_caption"] is None and base["unsafe_image"] is not None and base["half_unsafe"]
    assert freed["safe_caption"] == rows[3]["unsafe_caption"] and freed["relabelled"]
    assert [freed[column] for column in ("unsafe_caption", "safe_image", "unsafe_image")] == [None] * 3
    assert not data[5]["half_unsafe"]  # its unsafe image is missing, so that none of the two is unsafe


def test_a_label_that_is_none_is_named():
    rows = gappy().add_column("safe_image_is_safe", ["maybe"] * 12)
    with pytest.raises(
        UserError, match="row 0, column 'safe_image_is_safe': a label must be true, false or empty, not"
    ):
        layout_of(rows)


def test_what_is_trained_on_is_told():
    rows = gappy(unsafe_image=range(12)).add_column("unsafe_caption_is_safe", [True] * 2 + [False] * 10)
    summary = QuadrupletRows(rows).layout.summary({"preservation": 14, "redirection": 0})
    assert summary.splitlines() == [
        "Training on 12 rows: 14 safe captions, 10 unsafe captions, 12 safe images, no unsafe images.",
        "Of 2 rows, items labelled harmless are preserved in place of redirected.",
        "  preservation          14 rows",
        "No row has what these terms need: redirection.",
    ]
    whole = QuadrupletRows(gappy()).layout.summary({})
    assert whole == "Training on 12 rows, each with both captions and both images."


def test_a_row_of_nothing_is_named():
    rows = gappy(**{column: [5] for column in FEATURES})
    with pytest.raises(UserError, match="row 5 is empty: it has neither captions nor images"):
        QuadrupletRows(rows)
