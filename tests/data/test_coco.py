"""COCO instances: round trips, and pycocotools reads what we write as it reads the original."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from otus.data.dataset import Dataset
from otus.data.formats import coco, labelme
from otus.data.formats.interface import Layout
from otus.errors import DataError
from otus.structures import SegmentationKind

REAL = [
    "coco/annotations.json",
    "coco_person/annotations.json",
    "voc2012/instances_val.json",
    "voc2007/instances_val.json",
]


def read(file: Path) -> Dataset:
    return coco.read(Layout("coco", file))


def written(dataset: Dataset, folder: Path) -> Path:
    assert {loss.kind for loss in coco.write(dataset, folder, images="none")} <= {"unread_field"}
    return next(folder.glob("*.json"))


def by_id(document: Mapping[str, Any], array: str) -> dict[int, Any]:
    return {record["id"]: record for record in document[array]}


@pytest.mark.parametrize("name", REAL)
def test_json_comes_back_as_it_was(shared_data: Path, tmp_path: Path, name: str) -> None:
    original = json.loads((shared_data / name).read_text())
    again = json.loads(written(read(shared_data / name), tmp_path / "out").read_text())
    ours = by_id(again, "annotations")
    assert len(ours) == len(original["annotations"])
    for record in original["annotations"]:
        one = ours[record["id"]]
        for field, value in record.items():
            assert one[field] == value, (record["id"], field)  # to the last bit
    images = by_id(again, "images")
    for record in original["images"]:
        assert images[record["id"]] == {field: record[field] for field in images[record["id"]]}
    assert [{**one, "isthing": 1} for one in again["categories"]] == [
        {**{"supercategory": ""}, **one, "isthing": 1}
        if "supercategory" in again["categories"][0]
        else {**one, "isthing": 1}
        for one in original["categories"]
    ]


@pytest.mark.parametrize("name", REAL[:3])
def test_pycocotools_sees_the_same_masks(shared_data: Path, tmp_path: Path, name: str) -> None:
    theirs, ours = COCO(shared_data / name), COCO(written(read(shared_data / name), tmp_path / "out"))
    for annotation_id in list(theirs.anns)[::7]:
        one, other = theirs.anns[annotation_id], ours.anns[annotation_id]
        assert one["area"] == other["area"]
        if one.get("segmentation"):
            np.testing.assert_array_equal(theirs.annToMask(one), ours.annToMask(other))


def test_masks_of_the_data_set_are_those_of_pycocotools(shared_data: Path) -> None:
    dataset, theirs = read(shared_data / "coco/annotations.json"), COCO(shared_data / "coco/annotations.json")
    for index in range(0, len(dataset), 40):
        instances = dataset.instances(index)
        for k, annotation_id in enumerate(instances.columns["ids"]):
            one = theirs.anns[int(annotation_id)]
            np.testing.assert_array_equal(instances.masks[k].dense()[0], theirs.annToMask(one))
            x, y, width, height = one["bbox"]
            assert instances.boxes_xyxy[k].tolist() == [x, y, x + width, y + height]
            assert dataset.categories.ids[instances.labels[k]] == one["category_id"]


def document(**changes: Any) -> dict[str, Any]:
    """A small file with one of everything."""
    return {
        "annotations": [
            {"id": 5, "image_id": 0, "category_id": 9, "bbox": [1, 1, 2, 2], "area": 3.5, "iscrowd": 0,
             "segmentation": [[1, 1, 3, 1, 3, 3]], "difficult": 1, "occluded": True, "name": "no number"},
            {"id": 6, "image_id": 7, "category_id": 0, "bbox": [0.1, 0.2, 0.3, 0.4], "iscrowd": 1,
             "segmentation": {"size": [4, 5], "counts": [6, 3, 11]}, "difficult": 0, "occluded": False,
             "predicted_iou": 0.5},
            {"id": 4, "image_id": 0, "category_id": 0, "bbox": [0, 0, 1, 1], "difficult": 0, "occluded": False,
             "score": 0.25, "corners": [0, 0, 1, 0, 1, 1, 0, 1], "cuboid": [1, 2, 3, 4, 5, 6, 7],
             "amodal_bbox": [0, 0, 2, 2], "amodal_segmentation": [[0, 0, 2, 0, 2, 2]], "keypoints": [1, 2, 2, 0, 0, 0],
             "crop_box": [0, 0, 5, 4]},
        ],
        "images": [
            {"id": 7, "file_name": "b.jpg", "width": 5, "height": 4},
            {"id": 0, "file_name": "sub\\a.jpg", "width": 5, "height": 4},
        ],
        "categories": [
            {"id": 9, "name": "cat", "supercategory": "animal"},
            {"id": 0, "name": "dog", "keypoints": ["left_eye", "right_eye"], "skeleton": [[1, 2]]},
        ],
        **changes,
    }  # fmt: skip


def saved(folder: Path, content: Any) -> Path:
    file = folder / "instances_val2017.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_every_field_has_its_place(tmp_path: Path) -> None:
    dataset = read(saved(tmp_path, document()))
    objects = dataset.objects
    assert objects is not None
    assert dataset.images.files == ("b.jpg", "sub/a.jpg")
    assert dataset.images.ids == (7, 0)
    assert dataset.categories.names == ("cat", "dog")
    assert dataset.categories.ids == (9, 0)
    assert objects.ids.tolist() == [6, 5, 4]
    assert objects.image_index.tolist() == [0, 1, 1]
    assert objects.labels.tolist() == [1, 0, 1]
    assert objects.is_crowd.tolist() == [True, False, False]
    assert objects.areas.tolist() == [3, 3.5, 1]  # of the mask, as stated, of the box
    assert objects.segmentations.kinds.tolist() == [
        SegmentationKind.RLE,
        SegmentationKind.POLYGONS,
        SegmentationKind.NONE,
    ]
    assert objects.columns.keys() == {"difficult", "occluded", "predicted_iou", "crop_box"}
    assert objects.columns["difficult"].tolist() == [0, 1, 0]
    assert objects.columns["difficult"].dtype == np.int64
    assert objects.columns["occluded"].tolist() == [False, True, False]
    np.testing.assert_array_equal(objects.columns["predicted_iou"], [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(objects.columns["crop_box"][2], [0, 0, 5, 4])
    np.testing.assert_array_equal(objects.scores, [np.nan, np.nan, 0.25])
    assert objects.corners_xy[2].tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert objects.cuboids[2].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert objects.amodal_boxes_xyxy[2].tolist() == [0, 0, 2, 2]
    assert objects.amodal_segmentations.polygons(2)[0].tolist() == [[0, 0], [2, 0], [2, 2]]
    assert objects.keypoints[2].tolist() == [[1, 2, 2], [0, 0, 0]]
    keypoints = dataset.categories.keypoints_of("dog")
    assert keypoints is not None
    assert keypoints.skeleton == ((0, 1),)


def test_a_box_around_keypoints_is_around_those_that_are_labelled(tmp_path: Path) -> None:
    keypoints = {
        1: [20, 20, 2, 30, 25, 1, 0, 0, 0],  # the third is not labelled
        2: [20, 20, 2, 30, 25, 2],  # of a category with two
        3: [20, 20, 0, 30, 25, 0],
    }
    annotations = [{"id": k, "image_id": 1, "category_id": 1, "keypoints": v} for k, v in keypoints.items()]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }
    objects = read(saved(tmp_path, content)).objects
    assert objects is not None
    assert objects.boxes_xyxy.tolist() == [[20, 20, 30, 25]] * 3
    assert objects.keypoints is not None
    assert objects.keypoints[1].tolist() == [[20, 20, 2], [30, 25, 2], [0, 0, 0]]


def test_everything_survives_a_second_trip(tmp_path: Path) -> None:
    first = read(saved(tmp_path, document()))
    second = read(written(first, tmp_path / "out"))
    assert second.images.files == first.images.files
    assert second.categories == first.categories
    assert first.objects is not None
    assert second.objects is not None
    for name in (
        "ids",
        "image_index",
        "labels",
        "boxes_xyxy",
        "areas",
        "is_crowd",
        "scores",
        "keypoints",
        "corners_xy",
        "cuboids",
    ):
        np.testing.assert_array_equal(getattr(second.objects, name), getattr(first.objects, name))
    for name in ("segmentations", "amodal_segmentations"):
        for field in ("kinds", "rings", "points", "points_xy", "counts", "counts_bytes"):
            ours, theirs = getattr(second.objects, name), getattr(first.objects, name)
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    for name, column in first.objects.columns.items():
        np.testing.assert_array_equal(second.objects.columns[name], column)


def test_objects_have_the_keypoints_of_their_category(tmp_path: Path) -> None:
    categories = [
        {"id": 1, "name": "car", "keypoints": ["front", "rear"]},
        {"id": 2, "name": "owl", "keypoints": ["beak", "left", "right"]},
        {"id": 3, "name": "tree"},
    ]
    points = {1: [1, 2, 2, 3, 3, 1], 2: [1, 2, 2, 0, 0, 0, 0, 0, 0], 3: None}
    shared = {"image_id": 0, "bbox": [0, 0, 1, 1], "iscrowd": 0}
    records = [shared | {"id": i, "category_id": i, "keypoints": values} for i, values in points.items()]
    records.append(records[0] | {"id": 4, "keypoints": [1, 2, 2, 3, 3, 1, 4, 3, 2]})  # more than its names
    dataset = read(saved(tmp_path, document(categories=categories, annotations=records)))
    content = json.loads(written(dataset, tmp_path / "out").read_text())
    expected = [*points.values(), records[3]["keypoints"]]
    assert [record.get("keypoints") for record in content["annotations"]] == expected
    labelme.write(dataset, tmp_path / "labelme", images="none")
    shapes = json.loads((tmp_path / "labelme/a.json").read_text())["shapes"]
    assert [s["label"] for s in shapes if s["shape_type"] == "point"] == ["front", "rear", "beak", "front", "rear", "2"]


@pytest.mark.parametrize("window", [1, 7, 64, 1000])
def test_windows_may_cut_anywhere(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, window: int
) -> None:
    content = document(
        info={"note": 'a "quoted" ] } \\ text', "list": [[{}]]}, annotations=document()["annotations"] * 1
    )
    file = saved(tmp_path, json.dumps(content, indent=3))
    whole = read(file)
    monkeypatch.setattr("otus.data.formats.json_reader.stream._WINDOW", window)
    cut = read(file)
    assert cut.objects is not None
    assert whole.objects is not None
    assert cut.images.files == whole.images.files
    np.testing.assert_array_equal(cut.objects.ids, whole.objects.ids)
    np.testing.assert_array_equal(cut.objects.boxes_xyxy, whole.objects.boxes_xyxy)
    assert cut.objects.columns.keys() == whole.objects.columns.keys()


@pytest.mark.parametrize(
    ("json_file", "images", "split"),
    [
        ("annotations.json", "images", None),
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("annotations/instances_val2017.json", "images/val2017", "val"),
        ("train/_annotations.coco.json", "train", "train"),
        ("valid/_annotations.coco.json", "valid", "val"),
        ("validation/_annotations.coco.json", "validation", "val"),
        ("validation.json", "images", "val"),
        ("annotations/validation_labels.json", "images/validation", "val"),
        ("annotations/labels_training.json", "images/train", "train"),
        ("instances_test.json", "JPEGImages", "test"),
        ("labels.json", ".", None),
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path: Path, json_file: str, images: str, split: str | None) -> None:
    (tmp_path / json_file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / json_file).write_text(json.dumps(document()))
    (tmp_path / images).mkdir(parents=True, exist_ok=True)
    (tmp_path / images / "b.jpg").write_bytes(b"")
    (layout,) = coco.find(tmp_path)
    assert layout == Layout("coco", tmp_path / json_file, split)
    assert read(layout.source).images.path(0).resolve() == (tmp_path / images / "b.jpg").resolve()


def test_images_are_found_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("annotations", "images"):
        (tmp_path / folder).mkdir()
    (tmp_path / "annotations/instances_val.json").write_text(json.dumps(document()))
    (tmp_path / "images/b.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "annotations")
    assert read(Path("instances_val.json")).images.path(0).resolve() == (tmp_path / "images/b.jpg").resolve()
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid/_annotations.coco.json").write_text(json.dumps(document()))
    monkeypatch.chdir(tmp_path / "valid")
    assert [layout.split for layout in coco.find(Path("_annotations.coco.json"))] == ["val"]


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    dataset = read(saved(tmp_path, document()))  # its images are not there
    with pytest.raises(DataError, match=r"cannot be written.*b\.jpg"):
        coco.write(dataset, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["instances_val2017.json"]


def test_what_no_column_holds_is_counted(tmp_path: Path) -> None:
    content = document(info={"year": 2017}, licenses=[])
    content["images"][0] |= {"license": 4, "date_captured": None}
    content["categories"][0]["color"] = [1, 2, 3]
    content["annotations"][0] |= {"caption": "a cat", "attributes": {"wet": True}, "crop_box": [1, 2]}
    content["annotations"][1] |= {"caption": "", "attributes": {}, "num_keypoints": 0}
    unread = {one.field: (one.count, one.example) for one in read(saved(tmp_path, content)).unread}
    assert unread == {
        "info": (1, "{'year': 2017}"),
        "images[].license": (1, "4"),
        "categories[].color": (1, "[1, 2, 3]"),
        "annotations[].caption": (1, "a cat"),
        "annotations[].attributes": (1, "{'wet': True}"),
        "annotations[].crop_box": (1, "[0, 0, 5, 4]"),  # the first one had two numbers
        "annotations[].name": (1, "no number"),
    }


@pytest.mark.parametrize("order", [("images", "categories", "annotations"), ("annotations", "images", "categories")])
def test_a_large_file_is_recognised_whatever_its_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    image = {"file_name": "a.jpg", "width": 5, "height": 4, "note": "x" * 100}
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "note": "x" * 100}
    content = {
        "images": [{"id": i, **image} for i in range(3000)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": i, **box} for i in range(3000)],
    }
    (tmp_path / "large.json").write_text(json.dumps({key: content[key] for key in order}))
    assert coco.find(tmp_path) == [Layout("coco", tmp_path / "large.json", None)]
