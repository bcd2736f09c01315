"""AP of whole objects: COCO's figures over amodal boxes and masks, and the split by how much is hidden."""

from dataclasses import replace

import numpy as np
import pytest

from otus.errors import UsageError
from otus.metrics.detection.amodal import AmodalObjects, amodal_protocols, occlusion_rates
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import CocoResult
from otus.structures import Categories, Objects, Segmentations


def score(values, kind: str, **changes) -> CocoResult:
    metric = AveragePrecision(amodal_protocols()[f"amodal_{kind}"], values.categories)
    return metric.update(
        changes.get("ground_truth", values.ground_truth),
        changes.get("predictions", values.predictions),
        image_ids=values.image_ids,
        sizes_hw=values.sizes_hw,
    ).compute()


def hidden_by(objects: Objects, share: float = 0.5) -> Objects:
    """Make all boxes amodal; of every second object only the left part of the box is visible."""
    boxes = objects.boxes_xyxy.copy()
    boxes[::2, 2] -= share * (boxes[::2, 2] - boxes[::2, 0])
    others = {"amodal_segmentations": objects.segmentations} if objects.segmentations is not None else {}
    return replace(objects, boxes_xyxy=boxes, amodal_boxes_xyxy=objects.boxes_xyxy, columns={}, **others)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_whole_objects_are_judged_as_coco_judges_visible_ones(
    kind, seed, coco_scene, coco_values, pycocotools_evaluate
):
    scene = coco_scene(seed, outlines=True)
    values = coco_values(*scene)
    ground_truth = hidden_by(values.ground_truth)
    result = score(values, kind, ground_truth=ground_truth)
    theirs = pycocotools_evaluate(*scene, kind)
    np.testing.assert_array_equal(result.curves.precision[..., 0, :], theirs.eval["precision"][..., 0, :])
    assert result.figures["AR100"] == theirs.stats[8]
    given = score(values, kind, ground_truth=ground_truth, predictions=hidden_by(values.predictions))
    np.testing.assert_array_equal(given.curves.precision, result.curves.precision)


def test_the_split_is_recall_of_the_objects_hidden_so_much(coco_scene, coco_values, pycocotools_evaluate):
    document, results = coco_scene(2)
    for index, record in enumerate(document["annotations"]):
        record["occlude_rate"] = [0.0, 0.1, 0.25, 0.26, 1.0][index % 5]
    values = coco_values(document, results)
    rates = {record["id"]: record["occlude_rate"] for record in document["annotations"]}
    said = np.array([rates[one] for one in values.ground_truth.ids])
    ground_truth = replace(
        values.ground_truth,
        amodal_boxes_xyxy=values.ground_truth.boxes_xyxy,
        columns={**values.ground_truth.columns, "occlude_rate": said},
    )
    result = score(values, "bbox", ground_truth=ground_truth)
    for part, chosen in (("none", {0.0}), ("partial", {0.1, 0.25}), ("heavy", {0.26, 1.0})):
        for record in document["annotations"]:
            # pycocotools ignores what lies outside the area range: give the others areas that no range has.
            record["area"] = 50.0 if record["occlude_rate"] in chosen else 1e7
        theirs = pycocotools_evaluate(document, results, "bbox", area_ranges=[[0, 1e10], [50.0, 1e6]])
        recall = theirs.eval["recall"][:, :, 1, -1]
        assert result.figures[f"AR_{part}"] == pytest.approx(recall[recall > -1].mean())
        assert result.figures[f"AP_{part}"] <= 1


def test_detections_that_find_nothing_are_false_in_every_part():
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    ground_truth = Objects.build(
        image_index=[0, 0],
        labels=[0, 0],
        boxes_xyxy=boxes,
        amodal_boxes_xyxy=boxes + np.array([[0, 0, 0, 0], [0, 0, 10, 0]]),
    )
    predictions = Objects.build(
        image_index=[0] * 3,
        labels=[0] * 3,
        boxes_xyxy=[[50, 50, 60, 60], [0, 0, 10, 10], [20, 20, 40, 30]],
        scores=np.array([0.9, 0.8, 0.7]),
    )
    metric = AveragePrecision(amodal_protocols()["amodal_bbox"], Categories(("a",)))
    figures = metric.update(ground_truth, predictions, image_ids=[1]).compute().figures
    assert figures["AR_none"] == figures["AR_heavy"] == 1
    assert figures["AP_none"] == figures["AP_heavy"] == pytest.approx(0.5)
    assert np.isnan(figures["AP_partial"])
    assert figures["AP"] == pytest.approx(2 / 3)


def test_what_says_how_much_is_hidden():
    """The file's rate before masks, masks before boxes; what has nothing amodal is not hidden."""
    square = [np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]])]
    half = [np.array([[0.0, 0], [10, 0], [10, 5], [0, 5]])]
    objects = Objects.build(
        image_index=[0, 0, 0, 0],
        labels=[0, 0, 0, 0],
        boxes_xyxy=[[0, 0, 10, 2.5]] * 4,
        segmentations=Segmentations.build([half, half, None, half]),
        amodal_boxes_xyxy=np.array([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [np.nan] * 4]),
        amodal_segmentations=Segmentations.build([square, square, square, None]),
        columns={"occlude_rate": np.array([0.3, np.nan, np.nan, np.nan])},
    )
    assert occlusion_rates(objects, sizes_hw=np.array([[20, 20]])).tolist() == [0.3, 0.5, 0.75, 0]
    assert occlusion_rates(replace(objects, columns={})).tolist() == [0.75, 0.75, 0.75, 0]


def test_perfect_whole_objects_give_1_and_nothing_amodal_is_refused(coco_scene, coco_values):
    values = coco_values(*coco_scene(1, outlines=True))
    ground_truth = hidden_by(values.ground_truth.take(~values.ground_truth.is_crowd))
    perfect = replace(ground_truth, scores=np.ones(len(ground_truth)))
    for kind in ("bbox", "segm"):
        assert score(values, kind, ground_truth=ground_truth, predictions=perfect).figures["AP"] == pytest.approx(1)
        with pytest.raises(UsageError, match=f"amodal {kind}: the ground truth has no amodal"):
            score(values, kind)
    with pytest.raises(UsageError, match="kind"):
        AmodalObjects("keypoints")
