"""SA-1B: every field of the published format, both ways."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otus.data.formats import coco, sa1b
from otus.data.formats.interface import Layout
from otus.errors import DataError
from otus.structures import Masks

# The fields as the README of segment-anything lists them.
MASK = {
    "id": 532,
    "segmentation": {"size": [4, 5], "counts": Masks.from_rle([[6, 3, 11]], (4, 5)).rle()[0]["counts"].decode()},  # type: ignore[attr-defined]
    "bbox": [1.0, 2.0, 1.0, 3.0],
    "area": 3,
    "predicted_iou": 0.96,
    "stability_score": 0.98,
    "crop_box": [0.0, 0.0, 5.0, 4.0],
    "point_coords": [[1.5, 2.5]],
}


def folder_with(folder: Path, *masks: dict[str, Any], **image: Any) -> Path:
    for number in (1, 2):
        head = {"image_id": number, "width": 5, "height": 4, "file_name": f"sa_{number}.jpg", **image}
        numbered = [{**mask, "id": mask["id"] + 1000 * number} for mask in masks]
        (folder / f"sa_{number}.json").write_text(json.dumps({"image": head, "annotations": numbered}))
        (folder / f"sa_{number}.jpg").write_bytes(b"")
    return folder


def test_every_field_comes_back(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = folder_with(tmp_path / "in", MASK, {**MASK, "id": 533})
    (layout,) = sa1b.find(source)
    dataset = sa1b.read(layout)
    assert dataset.images.path(0) == source / "sa_1.jpg"
    assert dataset.objects is not None
    assert dataset.objects.columns.keys() == set(sa1b.COLUMNS)
    assert sa1b.write(dataset, tmp_path / "out", images="none") == []
    for name in ("sa_1.json", "sa_2.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((source / name).read_text())


def test_masks_from_coco_keep_their_pixels_and_losses_are_told(shared_data: Path, tmp_path: Path) -> None:
    first = coco.read(Layout("coco", shared_data / "coco/annotations.json")).select(range(20))
    losses = sa1b.write(first, tmp_path / "out", images="none")
    assert first.objects is not None
    assert {loss.kind for loss in losses} == {
        "category", "categories", "category_ids", "supercategories", "keypoints", "keypoint_names", "skeleton",
        "polygons", "unread_field",
    }  # fmt: skip
    assert sum(loss.kind == "category" for loss in losses) == len(first.objects)
    second = sa1b.read(Layout("sa1b", tmp_path / "out"))
    for index in range(20):
        ours, theirs = second.instances(index), first.instances(index)
        assert ours.masks.rle() == theirs.masks.rle()
        np.testing.assert_array_equal(ours.boxes_xyxy, theirs.boxes_xyxy)
        np.testing.assert_array_equal(ours.columns["areas"], theirs.columns["areas"])


def test_faults_name_their_file(tmp_path: Path) -> None:
    folder_with(tmp_path, MASK)
    broken = json.loads((tmp_path / "sa_2.json").read_text())
    broken["annotations"][0]["segmentation"]["size"] = [4, 6]
    (tmp_path / "sa_2.json").write_text(json.dumps(broken))
    (tmp_path / "sa_3.json").write_text("{")
    problems: list[DataError] = []
    dataset = sa1b.read(Layout("sa1b", tmp_path), report=problems.append)
    assert [(one.file and one.file.name, one.where) for one in problems] == [
        ("sa_3.json", None),
        ("sa_2.json", "annotations[0].segmentation.size"),
    ]
    assert dataset.objects is not None
    assert dataset.objects.ids.tolist() == [1532]


@pytest.mark.parametrize("image", [{"image_id": "1"}, {"image_id": 7}, {"width": 0}, {"file_name": "../a.jpg"}])
def test_faults_of_images(tmp_path: Path, image: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"sa_\d\.json: image"):
        sa1b.read(Layout("sa1b", folder_with(tmp_path, MASK, **image)))


def test_a_mark_of_utf8_is_no_fault(tmp_path: Path) -> None:
    file = folder_with(tmp_path, MASK) / "sa_1.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    objects = sa1b.read(sa1b.find(tmp_path)[0]).objects
    assert objects is not None
    assert len(objects) == 2
