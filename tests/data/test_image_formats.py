"""Formats that say something of whole images or of every pixel: classification by folders, index images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from otus.data.formats import classification_folders, index_png
from otus.data.image_writing import write_image, write_label_image
from otus.data.open import open_dataset, open_splits
from otus.errors import DataError


def image(file: Path, values: np.ndarray | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((6, 9, 3), np.uint8) if values is None else values.astype(np.uint8)).save(file)


def test_folders_are_categories(tmp_path: Path) -> None:
    for file in ("owl/1.png", "cat/b/2.png", "cat/1.jpg"):
        image(tmp_path / file)
    (layout,) = classification_folders.find(tmp_path)
    dataset = classification_folders.read(layout)
    assert dataset.categories.names == ("cat", "owl")
    assert dataset.images.files == ("cat/1.jpg", "cat/b/2.png", "owl/1.png")
    assert dataset.image_labels is not None
    assert dataset.image_labels.tolist() == [0, 0, 1]
    assert dataset.objects is None
    assert dataset[2].label == 1


def test_splits_share_their_categories(tmp_path: Path) -> None:
    for file in ("train/owl/1.png", "train/cat/1.png", "val/owl/1.png"):
        image(tmp_path / file)
    train, val = (classification_folders.read(layout) for layout in classification_folders.find(tmp_path))
    assert (train.split, val.split) == ("train", "val")
    assert train.categories == val.categories
    assert val.image_labels is not None
    assert val.image_labels.tolist() == [1]
    assert val.images.files == ("val/owl/1.png",)


@pytest.mark.parametrize(
    "files",
    [(), ("cat/1.png",), ("images/1.png", "masks/1.png"), ("train/1.png", "trainannot/1.png"), ("a/1.png", "b/1.txt")],
)
def test_what_is_no_classification(tmp_path: Path, files: tuple[str, ...]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert classification_folders.find(tmp_path) == []


def test_broken_images_are_reported_and_left_out(tmp_path: Path) -> None:
    for file in ("owl/1.png", "owl/2.png", "cat/1.png"):
        image(tmp_path / file)
    (tmp_path / "owl/1.png").write_bytes(b"no image")
    problems: list[DataError] = []
    dataset = classification_folders.read(classification_folders.find(tmp_path)[0], report=problems.append)
    assert ["1.png" in str(problem) for problem in problems] == [True]
    assert dataset.images.files == ("cat/1.png", "owl/2.png")
    assert dataset.image_labels is not None
    assert dataset.image_labels.tolist() == [0, 1]


VALUES = np.array([[0, 1, 2], [3, 2, 9]])


@pytest.mark.parametrize(
    "names", ["Sky\nTree\nUnlabelled\nCar\n", "3 Car\n0 Sky\n1 Tree\n\n2 void\n", "Sky\nTree\n\nCar"]
)
def test_index_images_with_names(tmp_path: Path, names: str) -> None:
    for stem in ("a", "b"):
        image(tmp_path / f"train/{stem}.jpg", np.zeros((2, 3)))
        image(tmp_path / f"trainannot/{stem}.png", VALUES)
    (tmp_path / "classes.txt").write_text(names)
    (tmp_path / "train.txt").write_text("b\n")
    (layout,) = index_png.find(tmp_path)
    dataset = index_png.read(layout)
    assert dataset.categories.names == ("Sky", "Tree", "Car")
    assert dataset.categories.ids == (0, 1, 3)
    assert dataset.images.ids == ("b",)
    semantic = dataset.semantic_map(0)
    assert semantic is not None
    assert semantic.labels.tolist() == [[0, 1, 255], [2, 255, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 255], [0, 1]), ([0, 128, 255], [0, 255, 1]), ([0, 1], [0, 1]), ([0, 1, 255], [0, 1, 255])],
)
def test_objects_on_background_are_known_by_their_values(
    tmp_path: Path, values: list[int], expected: list[int]
) -> None:
    row = np.array([values])
    image(tmp_path / "images/a.jpg", np.zeros(row.shape))
    image(tmp_path / "masks/a.png", row)
    (layout,) = index_png.find(tmp_path)
    dataset = index_png.read(layout)
    semantic = dataset.semantic_map(0)
    assert semantic is not None
    assert semantic.categories.names == ("background", "object")
    assert semantic.labels.tolist() == [expected]


def test_values_of_many_objects_are_not_taken_for_categories(tmp_path: Path) -> None:
    image(tmp_path / "images/a.jpg", np.zeros((2, 3)))
    image(tmp_path / "masks/a.png", VALUES)
    assert index_png.find(tmp_path) == []


@pytest.mark.parametrize("folders", ["images masks", "images/a labels/a", "JPEGImages/a Annotations/a"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_label_images_without_names_say_which_file_to_write(tmp_path: Path, folders: str, mode: str) -> None:
    images, masks = folders.split()
    image(tmp_path / images / "a.jpg", np.zeros((2, 3)))
    (tmp_path / masks).mkdir(parents=True)
    Image.fromarray(VALUES.astype(np.uint8)).convert(mode).save(tmp_path / masks / "a.png")
    with pytest.raises(DataError, match=r"classes\.txt: .*not binary masks \(write this file.*'red green blue name'"):
        open_dataset(tmp_path)
    names = ["sky", "road", "car", "tree"]
    lines = [f"{value} {value} {value} {name}" if mode == "RGB" else name for value, name in enumerate(names)]
    (tmp_path / "classes.txt").write_text("\n".join([*lines, "9 9 9 owl" if mode == "RGB" else "owl"]))
    (dataset,) = open_splits(tmp_path)
    assert dataset.categories.names == (*names, "owl")
    assert dataset.semantic_map(0) is not None


def test_splits_below_images_and_masks(tmp_path: Path) -> None:
    for split in ("train", "val"):
        image(tmp_path / f"images/{split}/a.jpg", np.zeros((2, 3)))
        image(tmp_path / f"masks/{split}/a.png", VALUES)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    layouts = index_png.find(tmp_path)
    assert [layout.split for layout in layouts] == ["train", "val"]
    assert index_png.read(layouts[1]).images.files == ("images/val/a.jpg",)


@pytest.mark.parametrize("names", ["", "0 a\n0 b\n", "300 a\n", "a\na\n"])
def test_bad_names(tmp_path: Path, names: str) -> None:
    image(tmp_path / "images/a.jpg", np.zeros((2, 3)))
    image(tmp_path / "masks/a.png", VALUES)
    (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(DataError, match=r"classes\.txt"):
        index_png.read(index_png.find(tmp_path)[0])


def test_missing_parts_are_reported(tmp_path: Path) -> None:
    for stem in ("a", "b", "c"):
        image(tmp_path / f"val/{stem}.jpg", np.zeros((2, 3)))
        image(tmp_path / f"valannot/{stem}.png", VALUES)
    (tmp_path / "valannot/b.png").unlink()
    (tmp_path / "val/c.jpg").write_bytes(b"")
    (tmp_path / "val.txt").write_text("a.jpg\nb.jpg\nc.jpg\nd.jpg\n..\n")
    (tmp_path / "classes.txt").write_text("x\ny\n")
    problems: list[DataError] = []
    dataset = index_png.read(index_png.find(tmp_path)[0], report=problems.append)
    assert dataset.images.ids == ("a",)
    expected = ["val.txt: line 5", "val/d: is listed", "val/b.jpg: has no label PNG", "val/c.jpg"]
    assert len(problems) == len(expected)
    assert all(words in str(problem) for words, problem in zip(expected, problems, strict=True))


def test_real_street_scenes(shared_data: Path) -> None:
    layouts = index_png.find(shared_data / "camvid")
    train, val = (index_png.read(layout) for layout in layouts)
    assert (len(train), len(val)) == (367, 101)
    assert train.categories.names[:2] == ("Sky", "Building")
    assert len(train.categories) == 11
    semantic = val.semantic_map(0)
    assert semantic is not None
    values = np.asarray(Image.open(shared_data / "camvid" / "valannot" / f"{val.images.ids[0]}.png"))
    np.testing.assert_array_equal(semantic.labels, np.where(values == 11, 255, values))


def test_real_objects_of_interactive_segmentation(shared_data: Path) -> None:
    (layout,) = index_png.find(shared_data / "interactive")
    dataset = index_png.read(layout)
    assert len(dataset) == len(list((shared_data / "interactive" / "masks").iterdir()))
    semantic = dataset.semantic_map(0)
    assert semantic is not None
    values = np.asarray(Image.open(shared_data / "interactive" / "masks" / f"{dataset.images.ids[0]}.png"))
    np.testing.assert_array_equal(semantic.mask_of("object"), values == 255)
    np.testing.assert_array_equal(semantic.labels == 255, values == 128)
    assert index_png.find(shared_data / "penn_fudan") == []


def test_davis_sequences(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "davis")
    assert (dataset.format, dataset.split, tuple(dataset.categories)) == ("index_png", None, ("background", "object"))
    assert len({file.rsplit("/", 1)[0] for file in dataset.images.files}) == 4
    assert len(set(dataset.images.ids)) == len(dataset) == 58
    sample = dataset[dataset.images.files.index("JPEGImages/bmx-trees/00015.jpg")]
    assert sample.semantic is not None
    assert sample.semantic.labels.shape == sample.image.shape[:2]
    assert set(np.unique(sample.semantic.labels)) == {0, 1}


def test_index_images_without_a_image_are_reported(tmp_path: Path) -> None:
    for name in ("images/v/1.jpg", "images/v/2.jpg"):
        write_image(tmp_path / name, np.zeros((4, 5, 3), np.uint8))
    for name in ("masks/v/1.png", "masks/v/3.png"):
        write_label_image(tmp_path / name, np.array([[0, 255]] * 3))
    problems: list[DataError] = []
    dataset = open_dataset(tmp_path, report=problems.append)
    assert dataset.images.files == ("images/v/1.jpg",)
    assert [one.file.name for one in problems if one.file] == ["2.jpg", "3.png"]


def test_lists_of_names_with_spaces(tmp_path: Path) -> None:
    for stem in ("my", "my photo", "b"):
        image(tmp_path / f"val/{stem}.png", np.zeros((2, 3)))
        image(tmp_path / f"valannot/{stem}.png", VALUES)
    (tmp_path / "classes.txt").write_text("x\ny\n")
    for lines in ("my photo.png\nb.png\n", "/val/my photo.png /valannot/my photo.png\n/val/b.png valannot/b.png\n"):
        (tmp_path / "val.txt").write_text(lines)
        assert index_png.read(index_png.find(tmp_path)[0]).images.ids == ("b", "my photo")
