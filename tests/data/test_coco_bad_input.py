"""Faulty COCO files: the message names file, record and field; collecting goes on with the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otus.data.dataset import Dataset, Images
from otus.data.formats import coco
from otus.data.formats.coco_results import read_results
from otus.data.formats.interface import Layout
from otus.data.open import open_dataset
from otus.errors import DataError
from otus.structures import Categories

GOOD = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}


def file_with(folder: Path, *annotations: dict[str, Any], **changes: Any) -> Path:
    file = folder / "a.json"
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 5, "height": 4}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [GOOD, *annotations, {**GOOD, "id": 99}],
        **changes,
    }
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("window", [1 << 19, 40])
@pytest.mark.parametrize(
    ("fault", "place", "says"),
    [
        ({"bbox": [0, float("nan"), 1, 1]}, "annotations[1].bbox[1]", "finite number, got nan (correct it"),
        ({"bbox": [0, 0, 1]}, "annotations[1].bbox", "length 4"),
        ({"bbox": None}, "annotations[1]", "a bbox, a segmentation or keypoints"),
        ({"image_id": "1"}, "annotations[1].image_id", "got `str`"),
        ({"category_id": "cat"}, "annotations[1].category_id", "got `str`"),
        ({"image_id": 2}, "annotations[1].image_id", "no image"),
        ({"category_id": 2}, "annotations[1].category_id", "no category"),
        ({"id": 1}, "annotations[1].id", "duplicate id"),
        ({"bbox": [3, 0, -2, 2]}, "annotations[1].bbox", "0 or more, got [-2.0, 2.0]"),
        ({"bbox": [0, 3, 2, -2], "iscrowd": None}, "annotations[1].bbox", "0 or more, got [2.0, -2.0]"),
        ({"amodal_bbox": [3, 0, -2, 2]}, "annotations[1].amodal_bbox", "0 or more"),
        ({"segmentation": [[0, 0, 1, 1]]}, "annotations[1].segmentation[0]", "3 points or more"),
        (
            {"segmentation": {"size": [4, 6], "counts": [24]}},
            "annotations[1].segmentation.size",
            "made for 4 x 6 pixels (height x width), but the image has 4 x 5",
        ),
        ({"segmentation": {"size": [4, 5], "counts": [19]}}, "annotations[1].segmentation.counts", "add up to 4 x 5"),
        (
            {"segmentation": {"size": [4, 5], "counts": "1"}},
            "annotations[1].segmentation.counts",
            "add up to 1 pixels, expected 4 x 5 = 20",
        ),
        ({"segmentation": {"size": [4, 5], "counts": "\u007f~"}}, "annotations[1].segmentation.counts", "malformed"),
        ({"segmentation": [[0, 0, 1e9, 1, 5, 5]]}, "annotations[1].segmentation[0][2]", "<= 1000000"),
        ({"id": 2**70}, "annotations[1].id", "int"),
        ({"keypoints": [1, 2]}, "annotations[1].keypoints", "visibility"),
    ],
)
def test_a_faulty_record_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, fault: dict[str, Any], place: str, says: str
) -> None:
    monkeypatch.setattr("otus.data.formats.json_reader.stream._WINDOW", window)
    file = file_with(tmp_path, {**GOOD, "id": 2, **fault})
    with pytest.raises(DataError, match=r"a\.json") as raised:
        coco.read(Layout("coco", file))
    assert raised.value.where == place
    assert says in str(raised.value)
    problems: list[DataError] = []
    dataset = coco.read(Layout("coco", file), report=problems.append)
    assert [one.where for one in problems] == [place]
    assert dataset.objects is not None
    assert dataset.objects.ids.tolist() == [1, 99]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"images": [{"id": "1", "file_name": "a.jpg", "width": 5, "height": 4}]}, "images[0].id"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 0, "height": 4}]}, "images[0]"),
        ({"images": [{"id": 1, "file_name": "a.jpg", "width": 5, "height": 4.5}]}, "images[0]"),
        ({"images": [{"id": 1, "file_name": "../a.jpg", "width": 5, "height": 4}]}, "images[0].file_name"),
        ({"images": [{"id": 1, "file_name": "C:\\a.jpg", "width": 5, "height": 4}]}, "images[0].file_name"),
        ({"images": [{"id": 1, "file_name": "/a.jpg", "width": 5, "height": 4}]}, "images[0].file_name"),
        ({"images": [{"id": 1, "file_name": n, "width": 5, "height": 4} for n in "ab"]}, "images[1]"),
        ({"images": {}}, "images"),
        ({"annotations": 3}, "annotations"),
        ({"categories": [{"id": 1}]}, "categories[0]"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]}, "categories[1]"),
        (
            {"categories": [{"id": 1, "name": "cat", "keypoints": ["nose"], "skeleton": [[1, 2]]}]},
            "categories: cat",
        ),
    ],
)
def test_faults_of_images_and_categories_are_named(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    with pytest.raises(DataError) as raised:
        coco.read(Layout("coco", file_with(tmp_path, **changes)))
    assert raised.value.where == place


@pytest.mark.parametrize("second", [{"id": 1, "name": "owl"}, {"id": 2, "name": "cat"}])
def test_categories_that_are_the_same_are_named_with_a_remedy(tmp_path: Path, second: dict[str, Any]) -> None:
    file = file_with(tmp_path, categories=[{"id": 1, "name": "cat"}, second])
    with pytest.raises(
        DataError, match=r"categories\[1\]: duplicate id or name: .* after 1 'cat' \(give each category"
    ):
        coco.read(Layout("coco", file))


def test_the_root_of_the_categories_of_roboflow_may_have_the_name_of_one(tmp_path: Path) -> None:
    root, cat = {"id": 0, "name": "cat", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "cat"}
    dataset = coco.read(Layout("coco", file_with(tmp_path, categories=[root, cat])))
    assert dataset.categories.ids == (1,)
    assert dataset.objects is not None
    assert dataset.objects.labels.tolist() == [0, 0]


@pytest.mark.parametrize("field", ["skeleton", "flip_pairs"])
def test_pairs_of_keypoints_are_named_as_in_the_file(tmp_path: Path, field: str) -> None:
    category = {"id": 1, "name": "cat", "keypoints": ["nose", "tail"], field: [[1, 2], [1, 5]]}
    with pytest.raises(DataError, match=rf"categories: cat: {field}: \[1, 5\] names a keypoint outside 1\.\.2 \(corr"):
        coco.read(Layout("coco", file_with(tmp_path, categories=[category])))


@pytest.mark.parametrize("fault", [{"height": "4"}, {"height": None}, {"file_name": 7}, {"width": 4.5}])
def test_objects_of_a_faulty_image_go_without_a_word(tmp_path: Path, fault: dict[str, Any]) -> None:
    good = {"id": 1, "file_name": "a.jpg", "width": 5, "height": 4}
    file = file_with(tmp_path, images=[{**good, **fault}])
    problems: list[DataError] = []
    assert len(coco.read(Layout("coco", file), report=problems.append)) == 0
    assert [str(one.where)[:9] for one in problems] == ["images[0]"]
    file = file_with(tmp_path, images=[{**good, **fault}, good])  # but not if another has the id
    dataset = coco.read(Layout("coco", file), report=lambda problem: None)
    assert dataset.objects is not None
    assert dataset.objects.ids.tolist() == [1, 99]


def test_sizes_as_pandas_writes_them(tmp_path: Path) -> None:
    file = file_with(tmp_path, images=[{"id": 1, "file_name": "a.jpg", "width": 5.0, "height": 4.0}])
    assert coco.read(Layout("coco", file)).images.size_hw(0) == (4, 5)


def test_invented_ids_are_nobody_elses(tmp_path: Path) -> None:
    one = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}
    for more in ({}, {"note": "x"}):  # read as columns, and record by record
        ids = [[2, None, None], [None, None, 1], [None, None, None], [None, 2**63 - 1, -5]]
        expected = [[2, 4, 5], [2, 3, 1], [1, 2, 3]]
        for given, wanted in zip(ids, [*expected, None], strict=True):
            annotations = [{**one, **more, **({} if own is None else {"id": own})} for own in given]
            dataset = coco.read(Layout("coco", file_with(tmp_path, annotations=annotations)))
            assert dataset.objects is not None
            assert len(dataset.objects) == 3
            assert wanted is None or dataset.objects.ids.tolist() == wanted


def test_objects_of_a_refused_image_go_without_a_word(tmp_path: Path) -> None:
    file = file_with(tmp_path, images=[{"id": 1, "file_name": "../a.jpg", "width": 5, "height": 4}])
    problems: list[DataError] = []
    dataset = coco.read(Layout("coco", file), report=problems.append)
    assert len(problems) == 1
    assert len(dataset) == 0
    assert len(coco.read(Layout("coco", file), allow_outside=True)) == 1


@pytest.mark.parametrize("cut", [1, 30, 120, 200, 300])
def test_a_file_that_was_cut_off_is_no_crash(tmp_path: Path, cut: int) -> None:
    file = file_with(tmp_path)
    file.write_text(file.read_text()[:-cut])
    problems: list[DataError] = []
    coco.read(Layout("coco", file), report=problems.append)
    assert problems
    assert all("a.json" in str(one) for one in problems)


@pytest.mark.parametrize(
    "text", ["", " \n", "nonsense", "[1, 2]", "{}", '{"images": [}', '{"images": [[], 3, "x"]}', "\x00" * 9]
)
def test_other_texts_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        coco.read(Layout("coco", file))


def test_an_empty_or_missing_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        open_dataset(tmp_path / "a.json")
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("fault", "place", "says"),
    [
        ({"score": None}, "annotations[1].score", "needs a score"),
        ({"score": float("nan")}, "annotations[1].score", "finite"),
        ({"score": "0.5"}, "annotations[1].score", "float"),
        ({"image_id": 3}, "annotations[1].image_id", "no image"),
        ({"image_id": 1.5}, "annotations[1].image_id", "int"),
        ({"category_id": 3}, "annotations[1].category_id", "no category"),
    ],
)
def test_faulty_predictions_are_named(tmp_path: Path, fault: dict[str, Any], place: str, says: str) -> None:
    good = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2], "score": 0.5}
    file = tmp_path / "results.json"
    file.write_text(json.dumps([good, {**good, **fault}, good]))
    images = Images(tmp_path, ("a.jpg",), np.array([[4, 5]]), (1,))
    dataset = Dataset(tmp_path, "coco", images, Categories(("cat",), ids=(1,)))
    with pytest.raises(DataError) as raised:
        read_results(file, dataset)
    assert raised.value.where == place
    assert says in str(raised.value)
    assert len(read_results(file, dataset, report=lambda problem: None)) == 2


def test_a_file_cut_off_at_its_beginning_is_broken_not_unknown(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    file.write_text('{"images": [{"id": 1, "file_na')
    for path in (file, tmp_path):
        with pytest.raises(DataError, match=r"annotations\.json: broken JSON: .*truncated.*cut off"):
            open_dataset(path)
    file.write_text('{"something": "else"}')
    with pytest.raises(DataError, match="found no data set here"):
        open_dataset(file)


def test_nothing_said_is_not_a_crowd(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    images = [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    one = {"image_id": 1, "category_id": 0, "bbox": [1, 1, 5, 5], "area": None, "iscrowd": None, "segmentation": None}
    annotations = [one, {**one, "iscrowd": True}]
    file.write_text(json.dumps({"images": images, "categories": [{"id": 0, "name": "a"}], "annotations": annotations}))
    objects = open_dataset(file).objects
    assert objects is not None
    assert objects.is_crowd.tolist() == [False, True]
    assert objects.areas.tolist() == [25, 25]
