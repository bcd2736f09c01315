"""Cuts: every threshold tried one by one, torchvision's NMS, and by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import UsageError
from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.thresholds import best_threshold, nms_mask, score_curve, sweep_nms_iou
from otus.structures import Categories, Objects

AT_HALF = Rules(iou_thresholds=(0.5,))


def f1_above(matcher: DetectionMatcher, label: int, threshold: float) -> tuple[float, float, float]:
    """Return precision, recall and F1 of a category, matched again with only the detections above the threshold."""
    left = matcher.predictions.take(matcher.scores > threshold)
    matches = replace(matcher, predictions=left).match(AT_HALF)
    outcomes = matches.outcomes[matches.labels == label, 0]
    true, false = (outcomes == Outcome.TRUE_POSITIVE).sum(), (outcomes == Outcome.FALSE_POSITIVE).sum()
    positives = matches.positives[label]
    return true / max(true + false, 1), true / positives, 2 * true / (true + false + positives)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_cut_is_the_best_of_all(seed, coco_scene, coco_values):
    matcher = DetectionMatcher(**vars(coco_values(*coco_scene(seed, score_steps=15))))
    matches = matcher.match(AT_HALF)
    for label in range(len(matcher.categories)):
        cut = best_threshold(matches, label)
        assert (cut.precision, cut.recall, cut.f1) == pytest.approx(f1_above(matcher, label, cut.threshold))
        tried = {t: f1_above(matcher, label, t)[2] for t in np.unique([-1, *matcher.scores])}
        assert cut.f1 == pytest.approx(max(tried.values()))
        curve = score_curve(matches, label=label)
        for score, f1 in zip(curve.scores, curve.f1, strict=True):
            assert f1 == pytest.approx(f1_above(matcher, label, np.nextafter(score, -1))[2])
        higher = [t for t, f1 in tried.items() if t >= curve.scores[curve.f1.argmax()]]
        assert all(tried[t] < cut.f1 for t in higher)


def comparison_of(scores, right) -> DetectionMatcher:
    """Return detections on objects where ``right``, else on nothing, and two more objects without detections."""
    places = np.arange(len(scores)) * 20.0
    boxes = np.stack([places, np.zeros(len(places)), places + 10, np.full(len(places), 10)], axis=1)
    ground_truth = np.concatenate([boxes[np.array(right, dtype=bool)], boxes[:2] + np.array([0, 500, 0, 500])])
    return DetectionMatcher(
        Objects.build(image_index=[0] * len(ground_truth), labels=[0] * len(ground_truth), boxes_xyxy=ground_truth),
        Objects.build(image_index=[0] * len(boxes), labels=[0] * len(boxes), boxes_xyxy=boxes, scores=np.array(scores)),
        Categories(("owl", "cat")),
        np.array([1]),
    )


def test_by_hand():
    matches = comparison_of([0.9, 0.7, 0.7, 0.4, 0.2], [True, True, False, True, False]).match(AT_HALF)
    curve = score_curve(matches, label=0)
    assert curve.scores.tolist() == [0.9, 0.7, 0.4, 0.2]
    assert curve.precision.tolist() == pytest.approx([1, 2 / 3, 3 / 4, 3 / 5])
    assert curve.recall.tolist() == pytest.approx([1 / 5, 2 / 5, 3 / 5, 3 / 5])
    cut = best_threshold(matches, 0)
    assert cut == pytest.approx((0.3, 3 / 4, 3 / 5, 6 / 9, 5))
    nothing = best_threshold(matches, 1)
    assert np.isnan(nothing[:4]).all()
    assert nothing.objects == 0
    assert np.isnan(score_curve(matches, label=1).recall).all()


@given(st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=2, max_size=12), st.integers(0, 2**12))
def test_what_the_cut_promises_scores_above_it(scores, pattern):
    matcher = comparison_of(scores, [bool(pattern >> i & 1) for i in range(len(scores))])
    cut = best_threshold(matcher.match(AT_HALF), 0)
    if not np.isnan(cut.threshold):
        assert cut[1:4] == pytest.approx(f1_above(matcher, 0, cut.threshold))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("iou", [0.0, 0.3, 0.5, 1.0])
def test_suppression_equals_torchvision(seed, iou):
    torch = pytest.importorskip("torch", reason="torchvision is the reference")
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (120, 2))
    predictions = Objects.build(
        image_index=rng.integers(0, 3, 120),
        labels=rng.integers(0, 3, 120),
        boxes_xyxy=np.concatenate([corner, corner + rng.uniform(5, 40, (120, 2))], axis=1),
        scores=rng.random(120),
    )
    matcher = DetectionMatcher(Objects.empty(), predictions, Categories(("a", "b", "c")), np.arange(3))
    groups = torch.from_numpy(predictions.image_index * 3 + predictions.labels)
    theirs = batched_nms(torch.from_numpy(predictions.boxes_xyxy), torch.from_numpy(predictions.scores), groups, iou)
    assert np.flatnonzero(nms_mask(matcher, iou)).tolist() == sorted(theirs.tolist())


def test_duplicates_go_where_nms_is_strict():
    ground_truth = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 10, 10]])
    boxes = [[0, 0, 10, 10], [0, 0, 10, 8], [40, 0, 50, 10]]
    predictions = Objects.build(
        image_index=[0] * 3, labels=[0] * 3, boxes_xyxy=boxes, scores=np.array([0.9, 0.8, 0.95])
    )
    matcher = DetectionMatcher(ground_truth, predictions, Categories(("owl",)), np.array([1]))
    strict, loose = sweep_nms_iou(matcher, (0.5, 0.9))
    assert (strict.detections, loose.detections) == (2, 3)
    assert strict.f1 == pytest.approx(2 / 3)
    assert (strict.precision, strict.recall, strict.score) == (0.5, 1, 0.9)
    assert strict.average_precision == pytest.approx(0.5)
    nothing = sweep_nms_iou(replace(matcher, ground_truth=Objects.empty()), (0.5,))[0]
    assert np.isnan([nothing.f1, nothing.average_precision]).all()
    with pytest.raises(UsageError, match="NMS"):
        sweep_nms_iou(matcher, (1.5,))
