"""Labels that are probably wrong: errors planted in real labels come up, and by hand."""

from dataclasses import replace

import numpy as np
import pytest

from otus.data.open import open_dataset
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.label_errors import count_by_image, find_label_errors
from otus.metrics.diagnosis.tide import find_errors
from otus.structures import Categories, Objects


def test_planted_errors_are_found(shared_data):
    """VOC's labels with 40 objects forgotten, 40 misnamed and 40 imagined, judged by a detector that is mostly right."""
    dataset = open_dataset(shared_data / "voc2007" / "instances_val.json")
    labels, rng = dataset.objects, np.random.default_rng(0)
    sides = np.tile(labels.boxes_xyxy[:, 2:] - labels.boxes_xyxy[:, :2], 2)
    boxes = labels.boxes_xyxy + rng.normal(scale=0.05, size=sides.shape) * sides
    boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:])
    seen = rng.random(len(labels)) < 0.9
    scores = rng.uniform(0.3, 1, len(labels))
    predictions = Objects.build(
        image_index=labels.image_index[seen], labels=labels.labels[seen], boxes_xyxy=boxes[seen], scores=scores[seen]
    )
    order = rng.permutation(len(labels))
    forgotten, misnamed = order[:40], order[40:80]
    names = labels.labels.copy()
    names[misnamed] = (names[misnamed] + 7) % len(dataset.categories)
    kept = np.setdiff1d(np.arange(len(labels)), forgotten)
    images = rng.integers(0, len(dataset), 40)
    ground_truth = Objects.build(
        image_index=np.concatenate([labels.image_index[kept], images]),
        labels=np.concatenate([names[kept], rng.integers(0, len(dataset.categories), 40)]),
        boxes_xyxy=np.concatenate([labels.boxes_xyxy[kept], np.tile([2.0, 2, 14, 14], (40, 1))]),
        ids=np.concatenate([kept, np.arange(100_000, 100_040)]),
    )
    matcher = DetectionMatcher(ground_truth, predictions, dataset.categories, np.arange(len(dataset)))
    suspects = find_label_errors(matcher, find_errors(matcher))
    accused = {int(ground_truth.ids[one.ground_truth]) for one in suspects if one.kind == "wrong_category"}
    imagined = {int(ground_truth.ids[one.ground_truth]) for one in suspects if one.kind == "no_detection"}
    alone = {one.detection for one in suspects if one.kind == "missing_label"}
    origin = np.flatnonzero(seen)[np.argsort(labels.image_index[seen], kind="stable")]
    confident = set(np.flatnonzero(seen & (scores >= 0.5)).tolist())
    assert len(accused & set(misnamed.tolist())) >= 0.8 * len(confident & set(misnamed.tolist())) > 10
    assert len(imagined & set(range(100_000, 100_040))) > 25
    forgotten_seen = confident & set(forgotten.tolist())
    assert len({int(origin[one]) for one in alone} & forgotten_seen) > 0.5 * len(forgotten_seen) > 10
    assert len(accused - set(misnamed.tolist())) < 10
    assert [one.score for one in suspects if one.kind != "no_detection"] == sorted(
        (one.score for one in suspects if one.kind != "no_detection"), reverse=True
    )


def a_comparison() -> DetectionMatcher:
    """Image 0: one true and one false positive. Image 1: empty. Image 2: two missed, a weak detection on one."""
    ground_truth = Objects.build(
        image_index=[0, 2, 2], labels=[0, 0, 0], boxes_xyxy=[[0, 0, 10, 10], [0, 0, 10, 10], [30, 0, 60, 30]]
    )
    predictions = Objects.build(
        image_index=[0, 0, 2],
        labels=[0, 0, 0],
        boxes_xyxy=[[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 10]],
        scores=np.array([0.9, 0.8, 0.3]),
    )
    return DetectionMatcher(ground_truth, predictions, Categories(("owl",)), np.array([5, 6, 7]))


def test_the_worst_images():
    matcher = a_comparison()
    counts = count_by_image(matcher, find_errors(matcher))
    assert (counts.true_positives.tolist(), counts.false_positives.tolist(), counts.false_negatives.tolist()) == (
        [1, 0, 0],
        [1, 0, 0],
        [0, 0, 2],
    )
    np.testing.assert_allclose(counts.f1, [2 / 3, np.nan, 0])
    assert counts.worst(5) == [2, 0]
    assert counts.worst(1) == [2]
    weak = count_by_image(matcher, find_errors(matcher), score_threshold=0.2)
    assert weak.true_positives.tolist() == [1, 0, 1]


def test_by_hand():
    matcher = a_comparison()
    suspects = find_label_errors(matcher, find_errors(matcher))
    assert [(one.kind, one.image_index, one.detection, one.ground_truth) for one in suspects] == [
        ("missing_label", 0, 1, -1),
        ("no_detection", 2, -1, 2),
    ]
    named = replace(matcher, categories=Categories(("owl", "cat")))
    named = replace(named, predictions=replace(named.predictions, labels=np.array([1, 0, 0])))
    suspects = find_label_errors(named, find_errors(named))
    assert [one.kind for one in suspects] == ["wrong_category", "missing_label", "no_detection"]
    assert suspects[0].score == pytest.approx(0.9)
    assert suspects[0].ground_truth == 0
