import pytest
from datasets import Dataset

from safe_clip.cli.train import tell_seen_rows
from safe_clip.evaluation.unseen import seen_rows

ROWS = {"safe_caption": ["a dog", "a cat", "a bus", None], "unsafe_caption": ["a gun", "a knife", None, None]}


@pytest.mark.parametrize(
    ("train", "count"),
    [
        ({"safe_caption": ["a dog", "a bus", None], "unsafe_caption": ["a gun", None, None]}, 2),
        ({"safe_caption": ["a dog", "a cat"], "unsafe_caption": ["a knife", "a gun"]}, 0),  # each caption, no row
        ({"safe_caption": ["a cat"] * 3, "unsafe_caption": ["a knife"] * 3}, 1),
        ({"safe_caption": ["a dog", "a fox"]}, 1),  # one column is all that both have
        ({"safe_caption": [None], "unsafe_caption": [None]}, 0),  # images alone, of which nothing is known
    ],
)
def test_rows_with_the_captions_of_a_training_row_are_counted(train, count):
    assert seen_rows(Dataset.from_dict(ROWS), Dataset.from_dict(train)) == count


def test_each_of_several_such_rows_counts():
    rows = Dataset.from_dict({name: values * 2 for name, values in ROWS.items()})
    assert seen_rows(rows, Dataset.from_dict(ROWS)) == 6


def test_images_alone_are_not_read():
    images = Dataset.from_dict({"unsafe_image": ["absent.png"]})
    assert seen_rows(images, images) == 0


def test_a_training_tells_of_them(capsys):
    train = Dataset.from_dict(ROWS)
    splits = {"train": train, "validation": train.select([1]), "test": Dataset.from_dict({"safe_caption": ["a fox"]})}
    tell_seen_rows(splits, ["train", "validation", "test"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 1 of the 1 rows of 'validation' have the captions of a row of 'train'.")
