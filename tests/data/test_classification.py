from collections import Counter

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PILImage

from safe_clip import UserError
from safe_clip.data import classification
from safe_clip.data.classification import ClassificationData, load_classification, presets

NAMES = ["aquarium_fish", "/a/airplane_cabin", "/b/bow_window/indoor"]
READABLE = ["aquarium fish", "airplane cabin", "bow window indoor"]


def labelled(labels, names=NAMES, **columns):
    """Images of 4 pixels whose level is their number in the data set."""
    features = {"picture": Image(), "kind": ClassLabel(names=list(names))}
    cells = {"picture": [PILImage.new("RGB", (2, 2), (row,) * 3) for row in range(len(labels))], "kind": labels}
    features |= {name: feature for name, (feature, _) in columns.items()}
    cells |= {name: values for name, (_, values) in columns.items()}
    return Dataset.from_dict(cells, features=Features(features))


def saved(folder, **splits):
    DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def refused(message, *args, **options):
    with pytest.raises(UserError, match=message):
        load_classification(*args, **options)


def test_every_preset_is_whole():
    assert list(presets()) == ["cifar10", "cifar100", "food101", "sun397", "caltech101", "imagenette", "imagenet"]
    for name, preset in presets().items():
        assert {"dataset", "split", "image_column", "label_column"} <= set(preset), name
        assert all(template.count("{}") == 1 for template in preset["templates"]), name
        assert len(set(preset["templates"])) == len(preset["templates"]), name
    counts = {name: len(preset["templates"]) for name, preset in presets().items()}
    clip = {"cifar10": 18, "cifar100": 18, "food101": 1, "sun397": 2, "caltech101": 34}
    assert counts == {**clip, "imagenette": 80, "imagenet": 80}


def test_the_names_of_imagenet_are_those_of_clip():
    names = presets()["imagenet"]["class_names"]
    assert len(names) == 1000 and all(isinstance(name, str) and name == name.strip() for name in names)
    assert (names[0], names[134], names[517], names[999]) == (
        "tench",
        "crane bird",
        "construction crane",
        "toilet paper",
    )
    # CLIP's own list has these two twice.
    assert {name for name, count in Counter(names).items() if count > 1} == {"missile", "sunglasses"}


def test_imagenette_is_ten_of_them():
    names, ten = presets()["imagenet"]["class_names"], presets()["imagenette"]["class_names"]
    numbers = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]  # of the folders, in their order
    assert ten == [names[number].replace("Springer Spaniel", "springer") for number in numbers]


def test_a_folder_with_one_folder_a_class(tmp_path):
    for row, (name, file) in enumerate([("aquarium_fish", "x.png"), ("zebra", "y.png"), ("zebra", "z.png")]):
        (tmp_path / name).mkdir(exist_ok=True)
        PILImage.new("RGB", (2, 2), (row,) * 3).save(tmp_path / name / file)
    data = load_classification(str(tmp_path))
    assert data.class_names == ["aquarium fish", "zebra"] and data.labels == [0, 1, 1]
    assert data.templates == ["a photo of a {}."]
    assert (data.name, data.image_column) == (str(tmp_path), "image")
    assert [item.getpixel((0, 0))[0] for item in data.rows["image"]] == [0, 1, 2]


def test_a_class_that_sounds_like_a_split_hides_no_other(tmp_path):
    for name in ("apple", "train", "wolf"):  # all three of CIFAR-100
        (tmp_path / name).mkdir()
        PILImage.new("RGB", (2, 2)).save(tmp_path / name / "0.png")
    data = load_classification(str(tmp_path))
    assert data.class_names == ["apple", "train", "wolf"] and data.labels == [0, 1, 2]


def test_a_folder_of_splits_with_one_folder_a_class(tmp_path):
    for split, name in [("train", "cat"), ("train", "dog"), ("test", "dog")]:
        (tmp_path / split / name).mkdir(parents=True)
        PILImage.new("RGB", (2, 2)).save(tmp_path / split / name / "0.png")
    data = load_classification(str(tmp_path))
    assert data.class_names == ["cat", "dog"] and data.labels == [1]
    assert load_classification(f"{tmp_path}:train").labels == [0, 1]


def test_names_are_read_as_captions_have_them(tmp_path):
    data = load_classification(saved(tmp_path, train=labelled([2, 0, 1])))
    assert data.class_names == READABLE
    assert data.labels == [2, 0, 1] and data.image_column == "picture"


@pytest.mark.parametrize(
    ("splits", "chosen"),
    [
        (["train", "validation", "test"], "test"),
        (["train", "validation"], "validation"),
        (["odd", "train"], "train"),
        (["odd", "even"], "odd"),
    ],
)
def test_the_split_that_training_saw_least_of_is_taken(splits, chosen, tmp_path):
    folder = saved(tmp_path, **{split: labelled([number] * 2) for number, split in enumerate(splits)})
    assert load_classification(folder).labels == [splits.index(chosen)] * 2
    for number, split in enumerate(splits):
        data = load_classification(f"{folder}:{split}")
        assert data.labels == [number] * 2 and data.class_names == READABLE


def test_a_preset_lends_its_prompts_to_another_copy(tmp_path):
    folder = saved(tmp_path, train=labelled([0]), test=labelled([1, 2]))
    data = load_classification(f"food101={folder}")
    assert data.name == "food101" and data.labels == [1, 2]
    assert data.templates == ["a photo of {}, a type of food."] and data.class_names == READABLE
    data = load_classification(f"cifar100={folder}:train")
    assert len(data.templates) == 18 and data.labels == [0]


def test_a_preset_lends_its_names_where_it_has_any(tmp_path):
    ids = [f"n{number:08}" for number in range(10)]
    data = load_classification(f"imagenette={saved(tmp_path, test=labelled([0, 9], ids))}")
    assert data.class_names == presets()["imagenette"]["class_names"]
    assert data.templates == presets()["imagenet"]["templates"]


def test_own_prompts_and_names_win(tmp_path):
    folder = saved(tmp_path, test=labelled([0, 2]))
    data = load_classification(f"imagenette={folder}", ["{}!"], ["red_fish", "/a/b", "c"])
    assert data.templates == ["{}!"]
    assert data.class_names == ["red_fish", "/a/b", "c"]  # word for word
    assert load_classification(folder, class_names=["x", "y", "z"]).templates == ["a photo of a {}."]


def test_a_folder_with_an_equals_sign_in_its_name(tmp_path):
    data = load_classification(saved(tmp_path / "size=64", test=labelled([1])))
    assert data.labels == [1] and data.templates == ["a photo of a {}."]


@pytest.fixture
def hub(monkeypatch):
    """Answers for the Hub, with whatever splits are put into it; what it is asked for stands in `asked`."""
    splits, asked = {}, []

    def answer(name, config=None, option="--dataset", **others):
        asked.append((name, config, option))
        return DatasetDict(splits)

    monkeypatch.setattr(classification, "load_splits", answer)
    return splits, asked


def test_a_preset_knows_its_place_and_its_columns(hub):
    splits, asked = hub
    columns = {"fine_label": "kind", "img": "picture"}
    rows = labelled([1, 2], img=(Image(), [None] * 2), fine_label=(ClassLabel(names=["sea_lion", "ray"]), [1, 0]))
    splits.update(train=rows.select([0]), test=rows)
    data = load_classification("cifar100")
    assert data.image_column == "img" and data.labels == [1, 0] and data.class_names == ["sea lion", "ray"]
    assert load_classification("cifar100:train").labels == [1]
    # A repository that was rearranged is looked at as any other.
    splits.update(test=rows.remove_columns(list(columns.values())).rename_columns(columns))
    assert load_classification("cifar100").image_column == "picture"
    splits.update(validation=labelled([9], map(str, range(10))).rename_columns({"picture": "image", "kind": "label"}))
    assert load_classification("imagenette").class_names[9] == "parachute"
    uoft, fast = "uoft-cs/cifar100", "frgfm/imagenette"
    assert asked == [(uoft, None, "--zero_shot")] * 3 + [(fast, "full_size", "--zero_shot")]
    del splits["validation"]
    refused("--zero_shot imagenette: there is no split 'validation', only train, test.", "imagenette")


def test_a_preset_whose_labels_are_bare_numbers_needs_names(hub):
    splits, _ = hub
    rows = labelled([0, 1], img=(Image(), [None] * 2), label=(Value("int64"), [1, 0]))
    splits.update(test=rows)
    refused("--zero_shot cifar10: column 'label' does not name its classes; give --class_names", "cifar10")
    data = load_classification("cifar10", class_names=["ship", "frog"])
    assert data.labels == [1, 0] and data.class_names == ["ship", "frog"]


def test_a_preset_that_does_not_exist(tmp_path):
    refused(r"--zero_shot cifar=data: 'cifar' is none of the presets, cifar10, cifar100,", "cifar=data")
    refused(r"--zero_shot .*nowhere could not be loaded", str(tmp_path / "nowhere"))


def test_a_preset_with_another_number_of_classes(tmp_path):
    spec = f"imagenette={saved(tmp_path, test=labelled([0]))}"
    refused(f"--zero_shot {spec} has 3 classes, but preset 'imagenette' names 10.", spec)


def test_a_split_that_does_not_exist(tmp_path):
    folder = saved(tmp_path, train=labelled([0]), test=labelled([0]))
    refused(f"--zero_shot {folder}:tset: there is no split 'tset', only train, test.", f"{folder}:tset")


def test_a_data_set_without_splits(tmp_path):
    refused(f"{tmp_path}", saved(tmp_path))


def test_columns_that_are_missing_or_ambiguous(tmp_path):
    rows = labelled([0, 1], depth=(Image(), [None] * 2), shade=(ClassLabel(names=["x", "y"]), [0, 0]))
    cases = {
        "no-label": (["picture"], r"one column of labels \(ClassLabel\), but there are 0. Its columns are 'picture'"),
        "no-image": (["kind"], r"one column of images \(Image\), but there are 0. Its columns are 'kind'"),
        "two-labels": (["picture", "kind", "shade"], "of labels .* are 2. .*'kind' .*'shade' .*; cast or drop some"),
        "two-images": (["picture", "depth", "kind"], "of images .* are 2. .*'picture' .*'depth'"),
    }
    for name, (columns, message) in cases.items():
        refused(message, saved(tmp_path / name, test=rows.select_columns(columns)))


def test_more_labels_than_names(tmp_path):
    folder = saved(tmp_path, test=labelled([0, 1, 2]))
    message = (
        f"zero-shot data set {folder}, row 2: label 2, but there are names for 2 classes only, 0 to 1. Give --class"
    )
    refused(message, folder, class_names=["a", "b"])


@pytest.mark.parametrize("label", [-1, None])
def test_an_image_without_label(label, tmp_path):
    folder = saved(tmp_path, test=labelled([0, label]))
    refused(f"zero-shot data set {folder}, row 1: .*remove the unlabelled rows", folder)


def test_templates_have_one_place_for_the_name(tmp_path):
    folder = saved(tmp_path, test=labelled([0]))
    for template in ("a photo", "a {} and a {}", "a {name}"):
        refused("every prompt template needs one {} for the class name;", folder, ["a {}", template])
    with pytest.raises(UserError, match="there is no template"):
        ClassificationData("mine", labelled([0]), "picture", [0], READABLE, [])


def test_an_empty_data_set(tmp_path):
    with pytest.raises(UserError, match="zero-shot data set mine is empty"):
        ClassificationData("mine", labelled([0]).select([]), "picture", [], READABLE, ["{}"])
    refused(f"--zero_shot {tmp_path} could not be loaded", str(tmp_path))


def test_rows_that_are_picked_keep_their_labels_and_numbers():
    data = ClassificationData("mine", labelled([2, 0, 1, 2]), "picture", [2, 0, 1, 2], READABLE, ["{}"])
    assert data.select([3, 2, 1, 0]).labels == [2, 1, 0, 2]
    some = data.select([1, 3])
    assert some.labels == [0, 2] and list(some.rows["kind"]) == [0, 2]
    again = some.select([1])
    assert again.labels == [2] and list(again.rows["safe_clip_row"]) == [3]
    assert (again.name, again.class_names, len(data.rows)) == ("mine", READABLE, 4)
