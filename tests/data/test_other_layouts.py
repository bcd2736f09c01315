"""Sets as other tools lay them out: with the smallest input, and whatever lies at the same path is not taken for another."""

import json
from pathlib import Path

import numpy as np
import pytest

from otus.data.conversion import convert
from otus.data.formats import coco
from otus.data.formats.contract import Layout
from otus.data.open import find_layouts, open_dataset, open_splits
from otus.data.pictures import write_picture
from otus.errors import DataError

XML = """<annotation><filename>{stem}.png</filename><size><width>20</width><height>10</height></size>
<object><name>{name}</name><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>12</xmax><ymax>8</ymax></bndbox></object></annotation>"""
LINE = "{label} 0.35 0.45 0.5 0.7\n"  # of a picture of 20 x 10 the same box
BOX = [2, 1, 12, 8]


def write(folder: Path, **texts: str) -> Path:
    """Files by name, where / is __ and . is _ before the last part; pictures of 20 x 10 of those without a text."""
    for name, text in texts.items():
        *parts, suffix = name.replace("__", "/").rsplit("_", 1)
        file = folder / f"{'_'.join(parts)}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "png":
            write_picture(file, np.full((10, 20, 3), 7, np.uint8))
        else:
            file.write_text(text)
    return folder


def one_object(folder: Path, *, format: str, split: str | None = None, name: str = "owl") -> None:
    """The folder is one set of that format, with one object in one picture."""
    assert {layout.format for layout in find_layouts(folder)} == {format}
    dataset = open_dataset(folder, split=split)
    assert dataset.objects is not None
    np.testing.assert_allclose(dataset.objects.boxes_xyxy, [BOX], atol=1e-9)
    assert [dataset.categories[label] for label in dataset.objects.labels] == [name]
    assert dataset.image(0).shape == (10, 20, 3)
    done = convert(folder, folder.with_name("coco"), to="coco", split=split)
    assert not done.problems


@pytest.mark.parametrize("pictures", ["images__", "annotations__", "JPEGImages__", ""])
def test_voc_of_kaggle(tmp_path: Path, pictures: str) -> None:
    labels = "annotations__" if pictures else ""
    files = {f"{pictures}a_png": "", f"{labels}a_xml": XML.format(stem="a", name="owl")}
    one_object(write(tmp_path / "set", **files), format="voc")


def test_voc_with_a_folder_a_split(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "set",
        train__a_png="", train__a_xml=XML.format(stem="a", name="owl"),
        valid__images__b_png="", valid__annotations__b_xml=XML.format(stem="b", name="cat eagle"),
    )  # fmt: skip
    one_object(folder, format="voc", split="train")
    splits = open_splits(folder)
    assert [one.split for one in splits] == ["train", "valid"]
    assert {one.categories.names for one in splits} == {("cat eagle", "owl")}
    assert [one.pictures.files for one in splits] == [("train/a.png",), ("valid/images/b.png",)]


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("name", ["set", "images"])
def test_pictures_beside_lines_of_yolo(tmp_path: Path, classes: bool, name: str) -> None:
    folder = write(tmp_path / name, a_png="", a_txt=LINE.format(label=1), b_png="")
    if classes:
        (folder / "classes.txt").write_text("cat\nowl\n")
    one_object(folder, format="yolo", name="owl" if classes else "1")


def test_pictures_beside_lines_of_yolo_in_a_folder_a_split(tmp_path: Path) -> None:
    line = LINE.format(label=0)
    folder = write(
        tmp_path / "set", train__a_png="", train__a_txt=line, train__classes_txt="owl", val__b_png="", val__b_txt=""
    )
    one_object(folder, format="yolo", split="train")


@pytest.mark.parametrize("prefix", ["", "data/", "/home/me/darknet/data/", "build\\\\data\\\\"])
def test_lists_of_darknet_and_of_cvat(tmp_path: Path, prefix: str) -> None:
    prefix = prefix.replace("\\\\", "\\")
    folder = write(
        tmp_path / "set",
        obj_data=f"classes = 2\ntrain = {prefix}train.txt\nvalid={prefix}valid.txt\nnames = {prefix}obj.names\n",
        obj_names="cat\nowl\n",
        train_txt=f"{prefix}obj_train_data/a.png\n",
        valid_txt=f"{prefix}obj_valid_data/b.png\n\n",
        obj_train_data__a_png="", obj_train_data__a_txt=LINE.format(label=1), obj_valid_data__b_png="",
    )  # fmt: skip
    assert [layout.split for layout in find_layouts(folder)] == ["train", "val"]
    one_object(folder, format="yolo", split="train")
    assert len(open_dataset(folder / "obj.data", split="val")) == 1


def test_lists_of_darknet_may_not_leave_their_folder(tmp_path: Path) -> None:
    write(tmp_path, b_png="", b_txt=LINE.format(label=0))
    texts = {"obj_data": "train = train.txt\nnames = obj.names", "obj_names": "owl", "train_txt": "../b.png"}
    problems: list[DataError] = []
    open_dataset(write(tmp_path / "set", **texts), report=problems.append)
    assert problems


@pytest.mark.parametrize("labels", ["annfiles", "labelTxt", "labelTxt-v1.0"])
def test_labels_of_dota_and_mmrotate(tmp_path: Path, labels: str) -> None:
    folder = write(tmp_path / "set", trainval__images__a_png="")
    (folder / "trainval" / labels).mkdir()
    (folder / "trainval" / labels / "a.txt").write_text("2 1 12 1 12 8 2 8 owl 0\n")
    one_object(folder, format="dota", split="trainval")


@pytest.mark.parametrize("without", [("width", "height"), ("height",)])
def test_coco_without_sizes(tmp_path: Path, without: tuple[str, ...]) -> None:
    images = [
        {"id": number, "file_name": f"{stem}.png", **dict.fromkeys({"width", "height"} - set(without), 1)}
        for number, stem in ((1, "a"), (2, "missing"))
    ]
    annotation = {"image_id": 1, "category_id": 1, "bbox": [2, 1, 10, 7]}
    document = {"images": images, "annotations": [annotation, {**annotation, "image_id": 2}]}
    document["categories"] = [{"id": 1, "name": "owl"}]
    folder = write(tmp_path / "set", images__a_png="", instances_json=json.dumps(document))
    problems: list[DataError] = []
    dataset = coco.read(Layout("coco", folder / "instances.json"), report=problems.append)
    assert [problem.kind for problem in problems] == ["missing_picture"]
    assert dataset.pictures.sizes_hw.tolist() == [[10, 20]]
    document.update(images=images[:1], annotations=[annotation])
    (folder / "instances.json").write_text(json.dumps(document))
    one_object(folder, format="coco")
