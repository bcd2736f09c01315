"""COCO panoptic: maps come back to the pixel; faults are named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from otus.data.formats import coco_panoptic
from otus.data.formats.interface import Layout
from otus.errors import DataError


def test_round_trip_of_real_maps(shared_data: Path, tmp_path: Path) -> None:
    (layout,) = [one for one in coco_panoptic.find(shared_data / "coco_panoptic") if one.split == "val"]
    first = coco_panoptic.read(layout).select(range(12))
    losses = coco_panoptic.write(first, tmp_path / "out", images="none")
    assert {loss.kind for loss in losses} == {"unread_field"}  # licences, dates
    second = coco_panoptic.read(Layout("coco_panoptic", tmp_path / "out/panoptic_val.json"))
    assert second.categories == first.categories
    assert second.images.ids == first.images.ids
    original = json.loads(layout.source.read_text())
    stated = {one["image_id"]: one["segments_info"] for one in original["annotations"]}
    again = json.loads((tmp_path / "out/panoptic_val.json").read_text())
    for index in range(12):
        ours, theirs = second.panoptic_map(index), first.panoptic_map(index)
        assert ours is not None
        assert theirs is not None
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        assert ours.segments == theirs.segments
        written = again["annotations"][index]
        assert written["segments_info"] == [
            {name: one[name] for name in ("id", "category_id", "iscrowd", "bbox", "area")}
            for one in stated[written["image_id"]]
        ]


def document(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 2, "height": 1}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
        "annotations": [
            {"image_id": 3, "file_name": "a.png", "segments_info": [{"id": 70000, "category_id": 2, "iscrowd": 0}]}
        ],
        **changes,
    }


def test_ids_are_spread_over_the_colours(tmp_path: Path) -> None:
    (tmp_path / "panoptic_val.json").write_text(json.dumps(document()))
    (tmp_path / "panoptic_val").mkdir()
    colour = (70000 % 256, 70000 // 256 % 256, 70000 // 65536)
    Image.fromarray(np.array([[colour, (0, 0, 0)]], dtype=np.uint8)).save(tmp_path / "panoptic_val/a.png")
    dataset = coco_panoptic.read(Layout("coco_panoptic", tmp_path / "panoptic_val.json"))
    panoptic = dataset.panoptic_map(0)
    assert panoptic is not None
    assert panoptic.ids.tolist() == [[70000, 0]]
    assert dataset.categories.is_thing == (True, False)
    np.testing.assert_array_equal(coco_panoptic.ids_to_rgb(panoptic.ids)[0, 0], colour)


@pytest.mark.parametrize(
    ("annotation", "place"),
    [
        ({"image_id": 4}, "annotations[0].image_id"),
        ({"image_id": "3"}, "annotations[0].image_id"),
        ({"file_name": "../a.png"}, "annotations[0].file_name"),
        ({"segments_info": [{"id": 1, "category_id": 9}]}, "annotations[0].segments_info[0].category_id"),
        ({"segments_info": [{"id": 0, "category_id": 1}]}, "annotations[0].segments_info[0].id"),
        ({"segments_info": [{"id": 1, "category_id": 1}] * 2}, "annotations[0].segments_info[1].id"),
    ],
)
def test_faults_are_named(tmp_path: Path, annotation: dict[str, Any], place: str) -> None:
    good = document()["annotations"][0]
    (tmp_path / "p.json").write_text(json.dumps(document(annotations=[{**good, **annotation}])))
    with pytest.raises(DataError) as raised:
        coco_panoptic.read(Layout("coco_panoptic", tmp_path / "p.json"))
    assert raised.value.where == place


def test_images_that_differ_by_their_suffix_keep_their_maps(tmp_path: Path) -> None:
    images = [{"id": k, "file_name": f"a.{suffix}", "width": 2, "height": 1} for k, suffix in ((3, "jpg"), (4, "png"))]
    annotations = [
        {"image_id": k, "file_name": f"{k}.png", "segments_info": [{"id": k, "category_id": 2}]} for k in (3, 4)
    ]
    (tmp_path / "panoptic_val.json").write_text(json.dumps(document(images=images, annotations=annotations)))
    (tmp_path / "panoptic_val").mkdir()
    for k in (3, 4):
        ids = np.array([[k, 0]])
        Image.fromarray(coco_panoptic.ids_to_rgb(ids)).save(tmp_path / f"panoptic_val/{k}.png")
    dataset = coco_panoptic.read(Layout("coco_panoptic", tmp_path / "panoptic_val.json"))
    assert coco_panoptic.write(dataset, tmp_path / "out", images="none") == []
    back = coco_panoptic.read(Layout("coco_panoptic", tmp_path / "out/panoptic.json"))
    assert back.images.files == ("a.jpg", "a.png")
    for index, k in enumerate((3, 4)):
        panoptic = back.panoptic_map(index)
        assert panoptic is not None
        assert panoptic.ids.tolist() == [[k, 0]]


def test_a_image_that_cannot_be_decoded_is_one_problem(tmp_path: Path) -> None:
    images = [{"id": 3, "file_name": "a.jpg", "width": "2", "height": 1}]
    (tmp_path / "p.json").write_text(json.dumps(document(images=images)))
    problems: list[DataError] = []
    coco_panoptic.read(Layout("coco_panoptic", tmp_path / "p.json"), report=problems.append)
    assert [one.where for one in problems] == ["images[0].width"]
