"""Who is taken for whom: hotcoco live, and by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.confusion import confusion_matrix
from otus.structures import Categories, Objects


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(5))
def test_equals_hotcoco_without_crowds(seed, kind, tmp_path, coco_scene, coco_values):
    hotcoco = pytest.importorskip("hotcoco", reason="hotcoco is the reference")
    document, results = coco_scene(seed, outlines=kind == "segm", score_steps=10**9, image_count=20)
    for record in document["annotations"]:
        record["iscrowd"] = 0
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (tmp_path / "found.json").write_text(json.dumps(results))
    ground_truth = hotcoco.COCO(str(tmp_path / "truth.json"))
    evaluation = hotcoco.COCOeval(ground_truth, ground_truth.loadRes(str(tmp_path / "found.json")), kind)
    matcher = DetectionMatcher(**vars(coco_values(document, results)))
    for options in ({"min_score": 0.4}, {"max_det": 5}, {"iou_thr": 0.75}, {}):
        theirs = evaluation.confusion_matrix(**options)["matrix"]
        ours = confusion_matrix(
            matcher,
            iou=options.get("iou_thr", 0.5),
            score_threshold=options.get("min_score", 0.0),
            max_dets=options.get("max_det", 100),
            masks=kind == "segm",
        )
        np.testing.assert_array_equal(ours.counts, theirs.astype(np.int64), err_msg=str(options))
    assert len(ours.confused()) > 1


def test_by_hand():
    """A cat found, a cat taken for a dog, a dog that nobody finds, a dog on nothing, one on a crowd of dogs."""
    ground_truth = Objects.build(
        image_index=[0, 0, 0, 0],
        labels=[0, 0, 1, 1],
        boxes_xyxy=[[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 100, 40]],
        is_crowd=[False, False, False, True],
    )
    predictions = Objects.build(
        image_index=[0] * 4,
        labels=[0, 1, 1, 1],
        boxes_xyxy=[[0, 0, 10, 9], [20, 0, 30, 9], [0, 50, 10, 60], [70, 10, 80, 20]],
        scores=np.array([0.9, 0.8, 0.7, 0.6]),
    )
    matcher = DetectionMatcher(ground_truth, predictions, Categories(("cat", "dog")), np.array([1]))
    result = confusion_matrix(matcher)
    assert result.counts.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert result.confused() == [("cat", "dog", 1)]
    assert confusion_matrix(matcher, score_threshold=0.85).counts.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    nothing = Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    assert confusion_matrix(replace(matcher, predictions=nothing)).counts[:, -1].tolist() == [2, 1, 0]
    assert confusion_matrix(replace(matcher, ground_truth=Objects.empty())).counts[-1].tolist() == [1, 3, 0]
