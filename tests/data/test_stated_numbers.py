"""Numbers of files that follow from others: the doctor says where they do not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as codec

import otus
from otus.data.checks.doctor import DataReport, check_path
from otus.data.image_writing import write_image
from otus.structures import Objects

H, W = 300, 400
BOX = [20, 30, 200, 250]
RING = [[20, 30, 220, 30, 220, 280, 20, 280]]


def image(root: Path, name: str = "a.png") -> None:
    root.mkdir(parents=True, exist_ok=True)
    write_image(root / name, np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8))


def mask() -> dict[str, Any]:
    dense = np.zeros((H, W), dtype=np.uint8, order="F")
    dense[30:280, 20:220] = 1
    record = codec.encode(dense)
    return {"size": record["size"], "counts": record["counts"].decode()}


def coco(root: Path, *, names: list[str] | None = None, **fields: Any) -> Path:
    image(root)
    annotation = {"id": 5, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 50000, "iscrowd": 0, **fields}
    category = {"id": 1, "name": "owl"} | ({"keypoints": names} if names else {})
    images = [{"id": 1, "file_name": "a.png", "width": W, "height": H}]
    content = {"images": images, "annotations": [annotation], "categories": [category]}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def sa1b(root: Path, **fields: Any) -> Path:
    image(root)
    annotation = {"id": 5, "bbox": BOX, "area": 50000, "segmentation": mask(), **fields}
    content = {"image": {"image_id": 1, "file_name": "a.png", "width": W, "height": H}, "annotations": [annotation]}
    (root / "a.json").write_text(json.dumps(content))
    return root


def panoptic(root: Path, change: Callable[[list[dict[str, Any]]], object] = lambda segments: None) -> Path:
    image(root)
    colours = np.zeros((H, W, 3), dtype=np.uint8)
    colours[30:280, 20:220, 0], colours[:10, :, 0] = 7, 9
    (root / "panoptic").mkdir()
    write_image(root / "panoptic/a.png", colours)
    segments = [
        {"id": 7, "category_id": 1, "area": 50000, "bbox": BOX},
        {"id": 9, "category_id": 1, "area": 10 * W, "bbox": [0, 0, W, 10]},
    ]
    change(segments)
    images = [{"id": 1, "file_name": "a.png", "width": W, "height": H}]
    annotations = [{"image_id": 1, "file_name": "a.png", "segments_info": segments}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "owl", "isthing": 1}]}
    (root / "panoptic.json").write_text(json.dumps(content))
    return root


def only(examination: DataReport, kind: str, where: str, *says: str) -> None:
    (finding,) = examination.findings
    assert (finding.kind, finding.where) == (kind, where)
    assert all(text in finding.message for text in says), finding.message


@pytest.mark.parametrize("outline", [None, RING, mask()], ids=["box", "polygon", "mask"])
@pytest.mark.parametrize("area", [1.0, 125_000.0])
def test_an_area_of_coco(tmp_path: Path, outline: Any, area: float) -> None:
    fields = {} if outline is None else {"segmentation": outline}
    assert check_path(coco(tmp_path / "well", **fields)).findings == ()
    says = f"area is {area:.6g}, but the {'box' if outline is None else 'segmentation'} implies"
    where = "annotation 5 (a.png)"
    only(check_path(coco(tmp_path / "wrong", area=area, **fields)), "area_disagrees", where, says)


def test_the_area_of_a_thin_mask_may_stand_beside_its_box_alone(tmp_path: Path) -> None:
    assert check_path(coco(tmp_path, area=2_500)).findings == ()


def test_an_area_of_sa1b(tmp_path: Path) -> None:
    assert check_path(sa1b(tmp_path / "well")).findings == ()
    (finding,) = check_path(sa1b(tmp_path / "wrong", area=1)).findings
    assert finding.kind == "area_disagrees"
    assert "area is 1, but the segmentation implies" in finding.message


def test_what_evaluate_does_with_a_wrong_area(tmp_path: Path) -> None:
    """It is believed, as pycocotools does: the object is a small one."""
    dataset = otus.open_dataset(coco(tmp_path, area=1.0))
    predictions = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[20, 30, 220, 280]], scores=np.array([0.9]))
    figures = otus.evaluate(dataset, predictions=predictions).results["bbox"].figures
    assert (figures["AP"], figures["APs"]) == pytest.approx((1, 1))
    assert np.isnan(figures["APl"])


def test_num_keypoints(tmp_path: Path) -> None:
    points = {"keypoints": [30, 40, 2, 50, 60, 1, 0, 0, 0]}
    names = ["beak", "left_eye", "right_eye"]
    for k, right in enumerate(({"num_keypoints": 2}, {})):
        assert check_path(coco(tmp_path / f"well{k}", names=names, **points, **right)).findings == ()
    wrong = coco(tmp_path / "wrong", names=names, **points, num_keypoints=3)
    where = "annotations[0].num_keypoints"
    only(check_path(wrong), "num_keypoints_disagree", where, "num_keypoints is 3, but 2 are labelled")


@pytest.mark.parametrize(
    ("change", "kind", "where", "says"),
    [
        (lambda s: s[0].update(area=1), "area_disagrees", "[0].area", "area is 1, but segment 7 has 50000 pixels"),
        (lambda s: s[1].update(bbox=[0, 0, 9, 9]), "box_disagrees", "[1].bbox", "segment 9 fill [0, 0, 400, 10]"),
        (
            lambda s: s.append({"id": 11, "category_id": 1}),
            "segment_without_pixels",
            "[2]",
            "11 has no pixel in the PNG",
        ),
    ],
)
def test_segments_that_the_file_says(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], object], kind: str, where: str, says: str
) -> None:
    assert check_path(panoptic(tmp_path / "well")).findings == ()
    only(check_path(panoptic(tmp_path / "wrong", change)), kind, f"annotations[0].segments_info{where}", says)


def test_segments_that_only_the_image_has(tmp_path: Path) -> None:
    finding = check_path(panoptic(tmp_path, lambda segments: segments.pop())).findings[0]
    assert finding.kind == "wrong_map"
    assert "pixels have the ids [9], which no segment has" in finding.message


@pytest.mark.parametrize("make", [coco, sa1b, panoptic])
def test_sizes_of_images(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root = make(tmp_path)
    write_image(root / "a.png", np.random.default_rng(0).integers(0, 256, (H, W - 1, 3), dtype=np.uint8))
    kinds = check_path(root).counts
    assert kinds == {"mis_sized_image": 1}


def test_the_size_of_an_image_of_voc(tmp_path: Path) -> None:
    for part in ("JPEGImages", "Annotations"):
        (tmp_path / part).mkdir()
    image(tmp_path / "JPEGImages")
    sizes = f"<size><width>{H}</width><height>{W}</height><depth>3</depth></size>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation><filename>a.png</filename>{sizes}</annotation>")
    (finding,) = check_path(tmp_path).findings
    assert finding.kind == "mis_sized_image"
