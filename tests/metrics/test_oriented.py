"""AP of oriented boxes: hotcoco's figures, published IoUs, VOC's rules over turned boxes, and bad records."""

import contextlib
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.errors import DataError, UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import CocoProtocol
from otus.metrics.detection.oriented import OrientedBoxes, oriented_protocols
from otus.metrics.detection.pairs import RankedDetections
from otus.structures import Categories, Objects, oriented

CATEGORIES = Categories(("plane", "ship", "harbor"))


def as_objects(image, labels, boxes_xywhr, **others) -> Objects:
    boxes_xywhr = np.asarray(boxes_xywhr, dtype=float).reshape(-1, 5)
    return Objects.build(
        image_index=image,
        labels=labels,
        boxes_xyxy=oriented.enclosing_boxes(boxes_xywhr),
        corners_xy=oriented.corners(boxes_xywhr),
        **others,
    )


def a_scene(seed: int, *, crowds: bool = False, images: int = 6, objects: int = 60) -> SimpleNamespace:
    """Return rotated boxes, detections close to them, and false ones."""
    rng = np.random.default_rng(seed)
    boxes = np.column_stack(
        [rng.random((objects, 2)) * 150, 5 + rng.random((objects, 2)) * 110, rng.uniform(-3, 3, objects)]
    )
    image, labels = rng.integers(0, images, objects), rng.integers(0, 3, objects)
    copies = rng.integers(0, objects, 2 * objects)
    predictions = boxes[copies] + rng.normal(size=(len(copies), 5)) * [2, 2, 2, 2, 0.08]
    predictions[:, 2:4] = np.maximum(predictions[:, 2:4], 1)
    predictions[::7, :2] += 60
    return SimpleNamespace(
        images=images,
        boxes=boxes,
        found=predictions,
        ground_truth=as_objects(image, labels, boxes, is_crowd=rng.random(objects) < (0.15 if crowds else 0)),
        predictions=as_objects(image[copies], labels[copies], predictions, scores=np.round(rng.random(len(copies)), 2)),
    )


def score(scene: SimpleNamespace, name: str = "oriented", **options):
    metric = AveragePrecision(oriented_protocols(**options)[name], CATEGORIES)
    return metric.update(scene.ground_truth, scene.predictions, image_ids=range(scene.images)).compute()


def record(objects: Objects, row: int) -> dict:
    x1, y1, x2, y2 = objects.boxes_xyxy[row].tolist()
    box = oriented.from_corners(objects.corners_xy[row : row + 1])[0]
    return {
        "image_id": int(objects.image_index[row]) + 1,
        "category_id": int(objects.labels[row]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "obb": box.tolist(),
        "area": float(box[2] * box[3]),
    }


@pytest.mark.filterwarnings("ignore:hotcoco")
@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_hotcoco_says_the_same(seed, crowds, tmp_path):
    hotcoco = pytest.importorskip("hotcoco", reason="hotcoco is a reference")
    scene = a_scene(seed, crowds=crowds)
    document = {
        "images": [{"id": i + 1, "width": 200, "height": 200} for i in range(scene.images)],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)],
        "annotations": [
            {**record(scene.ground_truth, row), "id": row + 1, "iscrowd": int(scene.ground_truth.is_crowd[row])}
            for row in range(len(scene.ground_truth))
        ],
    }
    predictions = [
        {**record(scene.predictions, row), "id": row + 1, "iscrowd": 0, "score": float(scene.predictions.scores[row])}
        for row in range(len(scene.predictions))
    ]
    (tmp_path / "labels.json").write_text(json.dumps(document))
    # As a file of its own, for its load_res takes a detection's area from the box around the oriented one.
    (tmp_path / "found.json").write_text(json.dumps({**document, "annotations": predictions}))
    with contextlib.redirect_stdout(io.StringIO()):
        sides = (hotcoco.COCO(str(tmp_path / name)) for name in ("labels.json", "found.json"))
        evaluation = hotcoco.COCOeval(*sides, "obb")
        evaluation.run()
    figures = score(scene).figures
    assert 0.2 < figures["AP"] < 0.9
    assert np.nan_to_num(list(figures.values()), nan=-1) == pytest.approx(evaluation.stats, abs=1e-6)


def test_published_ious_decide_what_matches(shared_data):
    """Each box of a case against each other; detectron2's angles turn the other way."""
    cases = json.loads((shared_data / "metric_fixtures" / "rotated_iou" / "cases.json").read_text())["cases"]
    compared = 0
    for case in cases:
        sides = [np.array(case[side], dtype=float).reshape(-1, 5) * [1, 1, 1, 1, -np.pi / 180] for side in "ab"]
        expected = np.array(case["iou"], dtype=float).reshape(len(sides[0]), len(sides[1]))
        predictions = as_objects([0] * len(sides[0]), [0] * len(sides[0]), sides[0], scores=np.ones(len(sides[0])))
        ground_truth = as_objects([0] * len(sides[1]), [0] * len(sides[1]), sides[1])
        ground_truth, predictions = OrientedBoxes().view(ground_truth, predictions, sizes_hw=None)
        order = RankedDetections.build(ground_truth, predictions, label_count=1, limit=None)
        pairs = OrientedBoxes().pairs(ground_truth, predictions, order, sizes_hw=None, min_similarity=0.0)
        np.testing.assert_allclose(pairs.similarities.reshape(expected.shape), expected, atol=2e-3)
        compared += expected.size
    assert compared >= 10


@pytest.mark.parametrize("year", [7, 12])
def test_voc_rules_by_a_slow_loop(year):
    scene = a_scene(4)
    difficult = np.random.default_rng(1).random(len(scene.ground_truth)) < 0.2
    scene.ground_truth = replace(scene.ground_truth, columns={"difficult": difficult})
    result = score(scene, f"oriented_voc{year:02}")
    ground_truth, predictions = scene.ground_truth, scene.predictions
    ious = oriented.pairwise_oriented_iou(
        *(oriented.from_corners(one.corners_xy) for one in (predictions, ground_truth))
    )
    for label, name in enumerate(CATEGORIES):
        rows = np.flatnonzero(predictions.labels == label)
        taken: set[int] = set()
        true = false = 0
        points = []
        positives = int(((ground_truth.labels == label) & ~difficult).sum())
        for row in rows[np.argsort(-predictions.scores[rows], kind="stable")]:
            mine = np.flatnonzero(
                (ground_truth.image_index == predictions.image_index[row]) & (ground_truth.labels == label)
            )
            best = mine[ious[row, mine].argmax()] if len(mine) else -1
            if best >= 0 and ious[row, best] >= 0.5:
                if difficult[best]:
                    continue
                true, false = (true, false + 1) if best in taken else (true + 1, false)
                taken.add(int(best))
            else:
                false += 1
            points.append((true / positives, true / (true + false)))
        recall, precision = np.array(points).T
        if year == 7:
            at = [precision[recall >= t].max(initial=0) for t in np.arange(11) * 0.1]
            expected = np.mean(at)
        else:
            steps = np.diff(np.append(0, recall))
            expected = sum(step * precision[i:].max() for i, step in enumerate(steps))
        assert result.per_category[name]["AP50"] == pytest.approx(expected)


def test_axis_aligned_ones_are_coco_s(coco_scene, coco_values, pycocotools_evaluate):
    scene = coco_scene(3, decimals=1)
    for side in scene[0]["annotations"], scene[1]:
        for one in side:
            one["area"] = one["bbox"][2] * one["bbox"][3]
    values = coco_values(*scene)
    for side in ("ground_truth", "predictions"):
        objects = getattr(values, side)
        x1, y1, x2, y2 = objects.boxes_xyxy.T
        corners = np.stack([x1, y1, x2, y1, x2, y2, x1, y2], axis=1).reshape(-1, 4, 2)
        setattr(values, side, replace(objects, corners_xy=corners))
    metric = AveragePrecision(oriented_protocols()["oriented"], values.categories)
    figures = metric.update(values.ground_truth, values.predictions, image_ids=values.image_ids).compute().figures
    assert np.nan_to_num(list(figures.values()), nan=-1) == pytest.approx(
        pycocotools_evaluate(*scene, "bbox").stats, abs=1e-9
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from(["oriented", "oriented_voc07", "oriented_voc12"]))
@settings(max_examples=15, deadline=None)
def test_what_must_hold(seed, name):
    scene = a_scene(seed, objects=20, images=3)
    plain = score(scene, name)
    assert all(np.isnan(value) or 0 <= value <= 1 for value in plain.figures.values())
    turned = SimpleNamespace(
        images=3, ground_truth=rotate_all(scene.ground_truth, 0.7), predictions=rotate_all(scene.predictions, 0.7)
    )
    assert score(turned, name).figures["AP"] == pytest.approx(plain.figures["AP"])
    risen = replace(scene.predictions, scores=1 / (1 + np.exp(-5 * scene.predictions.scores)))
    assert score(SimpleNamespace(**{**vars(scene), "predictions": risen}), name).figures == pytest.approx(
        plain.figures, nan_ok=True
    )
    perfect = SimpleNamespace(
        images=3, ground_truth=scene.ground_truth, predictions=replace(scene.ground_truth, scores=np.ones(20))
    )
    assert score(perfect, name).figures["AP50"] == pytest.approx(1)
    far = np.array([900.0, 900, 20, 10, 0.5])
    predictions = scene.predictions
    more = as_objects(
        np.append(predictions.image_index, 0),
        np.append(predictions.labels, seed % 3),
        np.concatenate([oriented.from_corners(predictions.corners_xy), far[None]]),
        scores=np.append(predictions.scores, (seed % 100) / 100),
    )
    figures = score(SimpleNamespace(**{**vars(scene), "predictions": more}), name).figures
    assert figures["AP"] <= plain.figures["AP"] + 1e-9


def test_shards_merge_and_other_comparisons_do_not():
    scene = a_scene(2)
    whole = score(scene).figures
    parts = []
    for images in ([0, 3], [1, 2, 4, 5]):
        place = np.full(6, -1)
        place[images] = range(len(images))
        sides = []
        for objects in (scene.ground_truth, scene.predictions):
            here = place[objects.image_index] >= 0
            sides.append(replace(objects.take(here), image_index=place[objects.image_index[here]]))
        metric = AveragePrecision(oriented_protocols()["oriented"], CATEGORIES)
        parts.append(metric.update(*sides, image_ids=images))
    assert parts[0].merge(parts[1]).compute().figures == whole
    with pytest.raises(UsageError, match="same protocol"):
        parts[0].merge(AveragePrecision(CocoProtocol(), CATEGORIES))


def rotate_all(objects: Objects, angle: float) -> Objects:
    """Rotate everything about the origin."""
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners = objects.corners_xy @ rotation
    return replace(objects, corners_xy=corners, boxes_xyxy=np.concatenate([corners.min(1), corners.max(1)], axis=1))


def test_records_without_corners_are_named():
    scene = a_scene(1)
    with pytest.raises(UsageError, match="corners_xy: the predictions have none"):
        score(
            SimpleNamespace(
                images=6, ground_truth=scene.ground_truth, predictions=replace(scene.predictions, corners_xy=None)
            )
        )
    corners = scene.predictions.corners_xy.copy()
    corners[5, 1] = np.nan
    broken = replace(scene.predictions, corners_xy=corners)
    with pytest.raises(DataError, match=r"predictions\[5\] \(id \d+\).corners_xy"):
        score(SimpleNamespace(images=6, ground_truth=scene.ground_truth, predictions=broken))
    nothing = SimpleNamespace(
        images=6, ground_truth=scene.ground_truth, predictions=replace(Objects.empty(), scores=np.zeros(0))
    )
    assert score(nothing).figures["AP"] == score(nothing, "oriented_voc12").figures["AP"] == 0
