"""The folder of annotations as cocodataset.org gives it: several files of the same images, some without objects."""

import json
from pathlib import Path
from typing import Any

import pytest

from otus.data.checks.doctor import check_path
from otus.data.conversion import convert
from otus.data.formats import coco
from otus.data.formats.interface import Layout
from otus.data.open import _log_once, open_dataset
from otus.errors import DataError, UsageError

IMAGE = {"id": 7, "file_name": "000000000007.jpg", "width": 60, "height": 40}
BOX = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [5, 6, 20, 10], "area": 200, "iscrowd": 0}
PERSON = {"id": 1, "name": "person"}
POINTS = [{**BOX, "keypoints": [8, 9, 2], "num_keypoints": 1}]


@pytest.fixture(autouse=True)
def reset_log() -> None:
    _log_once.cache_clear()


def official(root: Path, parts: tuple[str, ...] = ("train", "val")) -> Path:
    (root / "annotations").mkdir(parents=True)

    def write(name: str, **content: Any) -> None:
        text = json.dumps({"info": {}, "licenses": [], "images": [IMAGE], **content})
        (root / f"annotations/{name}2017.json").write_text(text)

    for part in parts:
        write(f"captions_{part}", annotations=[{"id": 3, "image_id": 7, "caption": "A person."}])
        write(f"instances_{part}", annotations=[BOX], categories=[PERSON])
        write(f"person_keypoints_{part}", annotations=POINTS, categories=[{**PERSON, "keypoints": ["nose"]}])
        write(f"stuff_{part}", annotations=[{**BOX, "category_id": 92}], categories=[{"id": 92, "name": "banner"}])
        segments = [{"image_id": 7, "file_name": "7.png", "segments_info": [{"id": 5, "category_id": 1}]}]
        write(f"panoptic_{part}", annotations=segments, categories=[{**PERSON, "isthing": 1}])
    write("image_info_test", categories=[PERSON])
    return root


def test_the_split_alone_takes_instances_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = official(tmp_path)
    for _ in range(2):
        dataset = open_dataset(root, format="coco", split="val")
    assert dataset.source.name == "instances_val2017.json"
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"otus: {root}: reading instances_val2017.json; other labels of the same images by --split "
        "person_keypoints/val, stuff/val",
        f"otus: {root}: skipping files without categories or labels of objects: "
        "captions_train2017.json, captions_val2017.json, image_info_test2017.json",
    ]


@pytest.mark.parametrize("kind", ["person_keypoints", "stuff"])
def test_the_others_are_taken_by_their_name(tmp_path: Path, kind: str) -> None:
    dataset = open_dataset(official(tmp_path), format="coco", split=f"{kind}/val")
    assert dataset.source.name == f"{kind}_val2017.json"
    assert dataset.objects is not None
    assert (dataset.objects.keypoints is not None) == (kind == "person_keypoints")


def test_the_choice_names_splits_that_choose(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds 4 data sets") as raised:
        open_dataset(official(tmp_path))
    for line in ("--format coco --split val", "--format coco_panoptic --split val"):
        assert line in str(raised.value)
    assert "captions" not in str(raised.value)


def test_one_split_of_boxes_needs_no_choice_and_all_are_converted(tmp_path: Path) -> None:
    root = official(tmp_path / "coco")
    for file in root.glob("annotations/panoptic*"):
        file.unlink()
    done = convert(root, tmp_path / "out", to="coco", images="none")
    assert [one.split for one in done.datasets] == ["train", "val"]
    for file in root.glob("annotations/*train*"):
        file.unlink()
    assert open_dataset(root).source.name == "instances_val2017.json"


def test_the_doctor_examines_all_but_captions(tmp_path: Path) -> None:
    examination = check_path(official(tmp_path, ("val",)), format="coco")
    splits = {layout.split for layout in examination.layouts}
    assert splits == {"val", "person_keypoints/val", "stuff/val"}
    assert set(examination.counts) == {"missing_image"}


def test_captions_alone_are_named_as_what_they_are_not(tmp_path: Path) -> None:
    file = official(tmp_path) / "annotations/captions_val2017.json"
    with pytest.raises(DataError, match="category_id"):
        open_dataset(file)


def test_only_keypoints_have_the_name_of_the_split(tmp_path: Path) -> None:
    root = official(tmp_path, ("val",))
    (root / "annotations/instances_val2017.json").unlink()
    assert open_dataset(root, format="coco", split="val").source.name == "person_keypoints_val2017.json"


def test_lvis_names_its_images_by_their_address(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    image = {"id": 7, "width": 60, "height": 40, "coco_url": "http://images.cocodataset.org/val2017/000000000007.jpg"}
    file = tmp_path / "annotations/lvis_v1_val.json"
    file.write_text(json.dumps({"images": [image], "annotations": [BOX], "categories": [PERSON]}))
    dataset = open_dataset(tmp_path)
    assert dataset.images.path(0) == tmp_path / "val2017/000000000007.jpg"
    assert dataset.unread == ()
    file.write_text(json.dumps({"images": [{**image, "coco_url": None}], "annotations": [BOX], "categories": [PERSON]}))
    with pytest.raises(DataError, match=r"images\[0\]: expected a file_name, got none"):
        coco.read(Layout("coco", file))
