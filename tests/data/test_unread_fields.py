"""What readers leave unread is counted, in every format; labels without their image are reported."""

import json
from pathlib import Path

import numpy as np
import pytest

from otus.data.image_writing import write_image
from otus.data.open import open_dataset
from otus.errors import DataError


def photo(file: Path) -> Path:
    write_image(file, np.zeros((6, 8, 3), np.uint8))
    return file


def unread(folder: Path) -> dict[str, tuple[int, str]]:
    return {one.field: (one.count, one.example) for one in open_dataset(folder).unread}


def test_voc(tmp_path: Path) -> None:
    for stem, pose in (("a", "Left"), ("b", "")):
        photo(tmp_path / f"JPEGImages/{stem}.jpg")
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{stem}.xml").write_text(
            f"<annotation><folder>x</folder><filename>{stem}.jpg</filename><source><database>The DB</database>"
            "<image>flickr</image></source><size><width>8</width><height>6</height><depth>3</depth></size>"
            f"<segmented>0</segmented><object><name>cat</name><pose>{pose}</pose><difficult>0</difficult><bndbox>"
            "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox><part><name>head</name></part></object>"
            "</annotation>"
        )
    assert unread(tmp_path) == {
        "source": (2, "The DB flickr"),
        "object/pose": (1, "Left"),
        "object/part": (2, "head"),
    }


def test_labelme(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    shape = {"label": "cat", "points": [[1, 1], [4, 4]], "shape_type": "rectangle", "flags": {"wet": True}}
    document = {
        "version": "5.5.0", "flags": {}, "imagePath": "a.png", "imageData": "A" * 2000, "imageHeight": 6, "imageWidth": 8,
        "shapes": [{**shape, "description": "asleep", "group_id": None}, {**shape, "description": ""}],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(document))
    unread_fields = unread(tmp_path)
    assert unread_fields.keys() == {"imageData", "shapes[].description"}
    assert unread_fields["shapes[].description"] == (1, "asleep")
    assert len(unread_fields["imageData"][1]) == 60
    objects = open_dataset(tmp_path).objects
    assert objects is not None
    assert objects.columns["wet"].tolist() == [True, True]


def test_sa1b(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    mask = {"id": 1, "bbox": [1, 1, 4, 4], "area": 16, "source": "manual"}
    image = {"image_id": 3, "width": 8, "height": 6, "file_name": "a.png", "country": "NO"}
    (tmp_path / "a.json").write_text(json.dumps({"image": image, "annotations": [mask]}))
    assert unread(tmp_path) == {"image.country": (1, "NO"), "annotations[].source": (1, "manual")}
    (tmp_path / "a.json").write_bytes((tmp_path / "a.json").read_bytes().replace(b"manual", b"\xff"))
    with pytest.raises(DataError, match=r"a\.json: line 1: .*UTF-8"):
        unread(tmp_path)


def test_dota(tmp_path: Path) -> None:
    for stem in "ab":
        photo(tmp_path / f"images/{stem}.png")
        (tmp_path / "labelTxt").mkdir(exist_ok=True)
        text = "imagesource:GoogleEarth\ngsd:0.14\n1 1 4 1 4 4 1 4 plane 0\n"
        (tmp_path / f"labelTxt/{stem}.txt").write_text(text)
    assert unread(tmp_path) == {"imagesource": (2, "GoogleEarth"), "gsd": (2, "0.14")}


def yolo(folder: Path) -> Path:
    photo(folder / "images/train/a.png")
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (folder / "data.yaml").write_text("train: images/train\nnames: [cat]\nroboflow: {license: CC}\n")
    return folder


def test_yolo(tmp_path: Path) -> None:
    assert unread(yolo(tmp_path)) == {"data.yaml: roboflow": (1, "{'license': 'CC'}")}


def test_labels_without_a_image_of_yolo(tmp_path: Path) -> None:
    (yolo(tmp_path) / "labels/train/b.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "labels/train/classes.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"b\.txt: has no image of that name"):
        open_dataset(tmp_path)
    problems: list[DataError] = []
    assert len(open_dataset(tmp_path, report=problems.append)) == 1
    assert [one.kind for one in problems] == ["missing_image"]


def test_labels_without_a_image_of_kitti(tmp_path: Path) -> None:
    photo(tmp_path / "image_2/0.png")
    (tmp_path / "label_2").mkdir()
    for stem in "01":
        (tmp_path / f"label_2/{stem}.txt").write_text(
            "Car 0.00 0 -1.58 1.0 1.0 4.0 5.0 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n"
        )
    problems: list[DataError] = []
    dataset = open_dataset(tmp_path, report=problems.append)
    assert [one.file.name for one in problems if one.file] == ["1.txt"]
    assert dataset.objects is not None
    np.testing.assert_allclose(dataset.objects.columns["alpha"], [-1.58])
