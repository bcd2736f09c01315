"""Scores against precision: hotcoco live, and by hand."""

import json

import numpy as np
import pytest

from otus.errors import UsageError
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.calibration import calibration
from otus.structures import Categories, Objects


@pytest.mark.parametrize("seed", range(5))
def test_equals_hotcoco(seed, tmp_path, coco_scene, coco_values):
    hotcoco = pytest.importorskip("hotcoco", reason="hotcoco is the reference")
    document, results = coco_scene(seed, score_steps=20, image_count=20)
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "found.json").write_text(json.dumps(results))
    ground_truth = hotcoco.COCO(str(tmp_path / "truth.json"))
    evaluation = hotcoco.COCOeval(ground_truth, ground_truth.loadRes(str(tmp_path / "found.json")), "bbox")
    evaluation.evaluate()
    values = coco_values(document, results)
    for bins, iou in ((10, 0.5), (7, 0.75)):
        theirs = evaluation.calibration(n_bins=bins, iou_threshold=iou)
        matches = DetectionMatcher(**vars(values)).match(Rules(iou_thresholds=(iou,)))
        ours = calibration(matches, bins=bins)
        assert ours.expected_error == pytest.approx(theirs["ece"], abs=1e-12)
        assert ours.maximum_error == pytest.approx(theirs["mce"], abs=1e-12)
        assert ours.counts.tolist() == [one["count"] for one in theirs["bins"]]
        for label, name in enumerate(values.categories):
            assert calibration(matches, bins=bins, label=label).expected_error == pytest.approx(
                theirs["per_category"][name], abs=1e-12
            )


def three(scores) -> DetectionMatcher:
    ground_truth = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 10, 10]])
    boxes = [[0, 0, 10, 10], [50, 0, 60, 10], [80, 0, 90, 10]]
    predictions = Objects.build(image_index=[0] * 3, labels=[0] * 3, boxes_xyxy=boxes, scores=np.array(scores))
    return DetectionMatcher(ground_truth, predictions, Categories(("owl",)), np.array([1]))


def test_by_hand():
    result = calibration(three([0.9, 0.8, 0.1]).match(Rules()), bins=2)
    assert result.counts.tolist() == [1, 2]
    assert result.confidence.tolist() == pytest.approx([0.1, 0.85])
    assert result.precision.tolist() == [0, 0.5]
    assert result.expected_error == pytest.approx((0.1 + 2 * 0.35) / 3)
    assert result.maximum_error == pytest.approx(0.35)
    assert calibration(three([1.0, 0.0, 0.5]).match(Rules())).counts.tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_what_is_no_probability_is_refused():
    with pytest.raises(UsageError, match=r"3\.5"):
        calibration(three([3.5, 0.2, 0.1]).match(Rules()))
    with pytest.raises(UsageError, match="bins"):
        calibration(three([0.5, 0.2, 0.1]).match(Rules()), bins=0)


def test_no_detections_are_no_number():
    result = calibration(three([0.5, 0.2, 0.1]).match(Rules(min_score=0.9)))
    assert np.isnan([result.expected_error, result.maximum_error]).all()
