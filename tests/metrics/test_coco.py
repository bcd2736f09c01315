"""COCO's average precision: to the bit pycocotools' on made-up and real data, its published lines, and bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from otus.errors import DataError, ShapeError, UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import AreaRange, CocoProtocol, CocoResult
from otus.structures import Categories, Objects


def score(values, protocol) -> CocoResult:
    metric = AveragePrecision(protocol, values.categories)
    return metric.update(
        values.ground_truth, values.predictions, image_ids=values.image_ids, sizes_hw=values.sizes_hw
    ).compute()


def assert_bitwise_equal(result: CocoResult, evaluation) -> None:
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(result.curves, name), evaluation.eval[name], err_msg=name)
    if len(evaluation.stats):
        ours = np.nan_to_num(list(result.figures.values()), nan=-1)
        np.testing.assert_array_equal(ours, evaluation.stats)


SCENES = {
    "integers, many ties": {"score_steps": 4},
    "two decimals": {"decimals": 2},
    "all decimals, no ties": {"decimals": None, "score_steps": 10**9},
    "one category, crowded": {"categories": 1, "detections": 150, "image_count": 6, "score_steps": 50},
    "many categories, most empty": {"categories": 30, "image_count": 4},
    "one image": {"image_count": 1},
    "few detections": {"detections": 1, "image_count": 3},
}


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("seed", range(4))
def test_boxes_equal_pycocotools_to_the_bit(name, seed, coco_scene, coco_values, pycocotools_evaluate):
    scene = coco_scene(seed, **SCENES[name])
    assert_bitwise_equal(score(coco_values(*scene), CocoProtocol()), pycocotools_evaluate(*scene, "bbox"))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [0, 1])
def test_masks_equal_pycocotools_to_the_bit(seed, decimals, coco_scene, coco_values, pycocotools_evaluate):
    scene = coco_scene(seed, outlines=True, decimals=decimals)
    if seed % 2:  # loadRes takes areas from masks where there are no boxes
        for result in scene[1]:
            del result["bbox"]
    assert_bitwise_equal(score(coco_values(*scene), CocoProtocol("segm")), pycocotools_evaluate(*scene, "segm"))


@pytest.mark.parametrize("seed", range(6))
def test_keypoints_equal_pycocotools_to_the_bit(seed, coco_scene, coco_values, pycocotools_evaluate):
    scene = coco_scene(seed, keypoints=True, categories=2, detections=40)
    assert_bitwise_equal(
        score(coco_values(*scene), CocoProtocol("keypoints")), pycocotools_evaluate(*scene, "keypoints")
    )


@pytest.mark.parametrize("max_dets", [[1, 2, 3], [100], [5, 300], [2, 7, 7, 30]])
def test_other_parameters_equal_pycocotools(max_dets, coco_scene, coco_values, pycocotools_evaluate):
    scene = coco_scene(11, detections=40, decimals=1)
    ranges = [[0, 1e10], [100, 400], [900, 900], [1e6, 1e7]]
    thresholds, recalls = [0.0, 0.1, 0.5, 0.55, 1.0], [0.0, 0.3, 0.5, 1.0]
    protocol = CocoProtocol(
        max_dets=tuple(max_dets),
        area_ranges=tuple(AreaRange(f"_{i}", low, high) for i, (low, high) in enumerate(ranges)),
        iou_thresholds=tuple(thresholds),
        recall_thresholds=tuple(recalls),
    )
    theirs = pycocotools_evaluate(
        *scene, "bbox", max_dets=max_dets, area_ranges=ranges, iou_thresholds=thresholds, recall_thresholds=recalls
    )
    assert_bitwise_equal(score(coco_values(*scene), protocol), theirs)


@pytest.mark.parametrize("source", ["sizes as in the file", "corners alone"])
def test_boxes_exactly_at_the_threshold(source, coco_values, pycocotools_evaluate, monkeypatch):
    """x + w - x is not w: an IoU of exactly 0.5 must fall on pycocotools' side, from corners alone too.

    Sizes can be had back from corners where the file's numbers are short; otherwise they come as a column.
    """
    rng = np.random.default_rng(5)
    images = [{"id": i, "width": 1000, "height": 1000} for i in range(400)]
    annotations, results = [], []
    for i in range(400):
        x, y, w, h = (round(float(v), 2) for v in (*(rng.random(2) * 500), *(10 + rng.random(2) * 100)))
        narrow = w * float(rng.choice([0.5, 0.6, 0.7, 0.75, 0.8, 0.9]))
        common = {"image_id": i, "category_id": 1}
        annotations.append({**common, "id": i + 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
        box = [x, y, round(narrow, 4) if source == "corners alone" else narrow, h]
        results.append({**common, "bbox": box, "score": float(rng.random())})
    document = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    theirs = pycocotools_evaluate(document, results, "bbox")
    values = coco_values(document, results)
    plain = replace(values.ground_truth, columns={}), replace(values.predictions, columns={})
    if source == "corners alone":
        values.ground_truth, values.predictions = plain
    assert_bitwise_equal(score(values, CocoProtocol()), theirs)
    values.ground_truth, values.predictions = plain
    monkeypatch.setattr("otus.structures.boxes.written_sizes_wh", lambda boxes: boxes[:, 2:] - boxes[:, :2])
    assert (score(values, CocoProtocol()).curves.precision != theirs.eval["precision"]).any()


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("missing", ["detections", "objects", "both"])
def test_nothing_on_one_side(kind, missing, coco_scene, coco_values, pycocotools_evaluate):
    document, results = coco_scene(3, outlines=kind == "segm", keypoints=kind == "keypoints")
    if missing != "objects":
        results = []
    if missing != "detections":
        document["annotations"] = []
    result = score(coco_values(document, results), CocoProtocol(kind))
    assert_bitwise_equal(result, pycocotools_evaluate(document, results, kind))
    if missing == "detections":
        assert result.figures["AP"] == 0
    else:
        assert np.isnan(list(result.figures.values())).all()


def test_object_with_id_0_can_be_found(coco_scene, coco_values, pycocotools_evaluate):
    """pycocotools takes the id of the matched object as the sign of a match, so with id 0 the detection counts as false."""
    document, results = coco_scene(7, image_count=3)
    first = next(a for a in document["annotations"] if not a["iscrowd"])
    for record in document["annotations"]:
        record["id"] = 0 if record is first else record["id"] + 1000
    common = {"image_id": first["image_id"], "category_id": first["category_id"]}
    results.append({**common, "bbox": first["bbox"], "score": 0.999})
    result = score(coco_values(document, results), CocoProtocol())
    wrong = pycocotools_evaluate(document, results, "bbox")
    first["id"] = 999
    right = pycocotools_evaluate(document, results, "bbox")
    assert_bitwise_equal(result, right)
    assert (wrong.eval["precision"] != right.eval["precision"]).any()


def test_ap_with_other_max_dets_is_a_figure(coco_scene, coco_values, pycocotools_evaluate):
    """pycocotools' own summary looks for max_dets 100 and says -1 (cocoapi #558); ours is the mean of its precision."""
    scene = coco_scene(2)
    theirs = pycocotools_evaluate(*scene, "bbox", max_dets=[1, 5, 50])
    figures = score(coco_values(*scene), CocoProtocol(max_dets=(1, 5, 50))).figures
    values = theirs.eval["precision"][:, :, :, 0, 2]
    assert figures["AP"] == np.mean(values[values > -1])
    assert [name for name in figures if name.startswith("AR")] == ["AR1", "AR5", "AR50", "ARs", "ARm", "ARl"]


def test_real_labels_moved_a_little(shared_data, coco_values, pycocotools_evaluate):
    document = json.loads((shared_data / "coco" / "annotations.json").read_text())
    rng = np.random.default_rng(0)
    from pycocotools import mask as codec

    sizes = {image["id"]: (image["height"], image["width"]) for image in document["images"]}
    results = []
    for record in document["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            x, y, w, h = np.array(record["bbox"]) + rng.normal(size=4) * 0.05 * max(record["bbox"][2:])
            outline = record["segmentation"]
            if isinstance(outline, list):
                shifted = [[v + rng.integers(-4, 5) for v in ring] for ring in outline]
                outline = codec.merge(codec.frPyObjects(shifted, *sizes[record["image_id"]]))
                outline["counts"] = outline["counts"].decode()
            elif isinstance(outline["counts"], list):
                outline = codec.frPyObjects(outline, *outline["size"])
                outline["counts"] = outline["counts"].decode()
            category = record["category_id"] if rng.random() < 0.9 else document["categories"][0]["id"]
            results.append({
                "image_id": record["image_id"], "category_id": category, "score": round(float(rng.random()), 2),
                "bbox": [float(v) for v in (x, y, abs(w), abs(h))], "segmentation": outline,
            })  # fmt: skip
    values = coco_values(document, results)
    for kind in ("bbox", "segm"):
        assert_bitwise_equal(score(values, CocoProtocol(kind)), pycocotools_evaluate(document, results, kind))


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_published_lines_of_the_first_100_images(kind, shared_data: Path, coco_values, pycocotools_evaluate):
    folder = shared_data / "metric_fixtures" / "coco_fake100"
    ground_truth, predictions = {
        "bbox": ("instances_val2014_100", "instances_val2014_fakebbox100_results"),
        "segm": ("instances_val2014_100", "instances_val2014_fakesegm100_results"),
        "keypoints": ("person_keypoints_val2014_100", "person_keypoints_val2014_fakekeypoints100_results"),
    }[kind]
    expected = json.loads((folder / "expected.json").read_text())
    document = json.loads((folder / f"{ground_truth}.json").read_text())
    results = json.loads((folder / f"{predictions}.json").read_text())
    result = score(coco_values(document, results), CocoProtocol(kind))
    names = expected["keypoints_order" if kind == "keypoints" else "order"]
    assert {name: round(result.figures[name], 3) for name in names} == dict(zip(names, expected[kind], strict=True))
    assert_bitwise_equal(result, pycocotools_evaluate(document, results, kind))


def one_box(**changes) -> Objects:
    return replace(
        Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 10, 10]], ids=[42], scores=np.array([0.5])),
        **changes,
    )


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"scores": np.array([np.nan])}, ["predictions[0]", "id 42", "scores", "nan"]),
        ({"scores": np.array([np.inf])}, ["predictions[0]", "scores", "inf"]),
        ({"boxes_xyxy": np.array([[0, 0, np.nan, 1]])}, ["predictions[0]", "boxes_xyxy", "nan"]),
        ({"boxes_xyxy": np.array([[0.0, 0, -3, 1]])}, ["predictions[0]", "boxes_xyxy", "-3"]),
        ({"labels": np.array([2])}, ["predictions[0]", "labels", "0..1", "2"]),
        ({"image_index": np.array([1])}, ["predictions[0]", "image_index", "0..0", "1"]),
        ({"areas": np.array([-1.0])}, ["predictions[0]", "areas", "-1"]),
    ],
)
def test_a_record_that_cannot_be_is_named(changes, names):
    metric = AveragePrecision(CocoProtocol(), Categories(("a", "b")))
    with pytest.raises(DataError) as caught:
        metric.update(one_box(), one_box(**changes), image_ids=[1])
    for name in names:
        assert name in str(caught.value)
    assert metric.update(one_box(), one_box(), image_ids=[1]).compute().figures["AP"] == pytest.approx(1)


def test_what_is_missing_is_said():
    metric = AveragePrecision(CocoProtocol("segm"), Categories(("a", "b")))
    with pytest.raises(UsageError, match="sizes_hw"):
        metric.update(one_box(), one_box(), image_ids=[1])
    with pytest.raises(UsageError, match="no masks"):
        metric.update(one_box(), one_box(), image_ids=[1], sizes_hw=np.array([[20, 20]]))
    with pytest.raises(UsageError, match="scores"):
        AveragePrecision(CocoProtocol(), Categories(("a",))).update(one_box(), one_box(scores=None), image_ids=[1])
    with pytest.raises(UsageError, match="sigmas"):
        AveragePrecision(CocoProtocol("keypoints"), Categories(("a",))).update(one_box(), one_box(), image_ids=[1])
    with pytest.raises(UsageError, match="nothing to compute"):
        metric.compute()
    for wrong in ({"kind": "boxes"}, {"max_dets": (0,)}, {"iou_thresholds": (0.9, 0.5)}, {"recall_thresholds": ()}):
        with pytest.raises(UsageError):
            CocoProtocol(**wrong)


def test_masks_that_cannot_be_are_named(coco_scene, coco_values):
    values = coco_values(*coco_scene(1, outlines=True))
    values.sizes_hw = values.sizes_hw + 1
    with pytest.raises(DataError, match=r"\(id \d+\)\.segmentation.* 14400 pixels, .* 121 x 121 = 14641"):
        score(values, CocoProtocol("segm"))
    values = coco_values(*coco_scene(1, outlines=True))
    payload = values.ground_truth.segmentations.counts_bytes.copy()
    payload[:] = 255
    values.ground_truth = replace(
        values.ground_truth, segmentations=replace(values.ground_truth.segmentations, counts_bytes=payload)
    )
    with pytest.raises(DataError, match="run lengths"):
        score(values, CocoProtocol("segm"))
    kinds = np.zeros_like(values.ground_truth.segmentations.kinds)
    values.ground_truth = replace(
        values.ground_truth, segmentations=replace(values.ground_truth.segmentations, kinds=kinds)
    )
    with pytest.raises(DataError, match="expected a segmentation"):
        score(values, CocoProtocol("segm"))


def test_keypoints_of_another_number(coco_scene, coco_values):
    values = coco_values(*coco_scene(1, keypoints=True))
    values.predictions = replace(values.predictions, keypoints=values.predictions.keypoints[:, :5])
    with pytest.raises(ShapeError, match="5 per prediction"):
        score(values, CocoProtocol("keypoints"))
