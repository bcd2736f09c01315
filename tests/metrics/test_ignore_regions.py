"""Regions in which nothing is judged: against pycocotools, the development kits' rules as slow loops, and from files."""

from dataclasses import replace

import numpy as np
import pytest

from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import CocoProtocol
from otus.metrics.detection.ignore_regions import complete_regions, ignore_regions
from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.oriented import OrientedBoxes
from otus.metrics.detection.rules import RULES, Rules
from otus.metrics.detection.voc import VocProtocol
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.structures import Categories, Objects, Segmentations
from otus.structures.boxes import pairwise_iou

NAMES = Categories(("car", "person", "ignored regions"))
IMAGES = 6


def scene(seed: int) -> tuple[Objects, Objects]:
    """Return objects of two categories, crowds of these, regions of a third, and detections near all of them."""
    rng = np.random.default_rng(seed)
    count, detections = 40, 90
    corner = rng.integers(0, 40, (count, 2))
    kind = rng.choice(["object", "crowd", "region"], count, p=[0.6, 0.15, 0.25])
    ground_truth = Objects.build(
        image_index=rng.integers(0, IMAGES, count), labels=np.where(kind == "region", 2, rng.integers(0, 2, count)),
        boxes_xyxy=np.concatenate([corner, corner + rng.integers(5, 25, (count, 2))], axis=1),
        is_crowd=kind != "object", columns={"ignored": kind == "region"},
    )  # fmt: skip
    near = ground_truth.boxes_xyxy[rng.integers(0, count, detections)] + rng.integers(-2, 3, (detections, 4))
    predictions = Objects.build(
        image_index=rng.integers(0, IMAGES, detections), labels=rng.integers(0, 2, detections), boxes_xyxy=near,
        scores=rng.permutation(detections) / 100,
    )  # fmt: skip
    return ground_truth, predictions


def figures(protocol, ground_truth: Objects, predictions: Objects):
    return AveragePrecision(protocol, NAMES).update(ground_truth, predictions, image_ids=range(IMAGES)).compute()


def as_crowds_of_all(ground_truth: Objects) -> Objects:
    """Repeat each region for every category as a COCO crowd."""
    regions = ground_truth.take(ignore_regions(ground_truth))
    copies = [replace(regions, labels=np.full(len(regions), label)) for label in range(len(NAMES))]
    parts = [ground_truth.take(~ignore_regions(ground_truth)), *copies]
    names = ("image_index", "labels", "boxes_xyxy", "is_crowd")
    return Objects.build(**{name: np.concatenate([getattr(one, name) for one in parts]) for name in names})


@pytest.mark.parametrize("seed", range(4))
def test_a_region_is_a_crowd_of_every_category_to_pycocotools(seed):
    pycoco, pycocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    ground_truth, predictions = scene(seed)
    spread = as_crowds_of_all(ground_truth)

    def records(objects: Objects, **further):
        corner, size = objects.boxes_xyxy[:, :2], objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
        for i, box in enumerate(np.concatenate([corner, size], axis=1).tolist()):
            record = {"id": i + 1, "image_id": int(objects.image_index[i]), "category_id": int(objects.labels[i])}
            yield record | {"bbox": box, "area": box[2] * box[3], "iscrowd": int(objects.is_crowd[i])}

    labels, results = pycoco.COCO(), pycoco.COCO()
    images = [{"id": i} for i in range(IMAGES)]
    categories = [{"id": label} for label in range(len(NAMES))]
    labels.dataset = {"images": images, "categories": categories, "annotations": list(records(spread))}
    scored = [
        one | {"score": score} for one, score in zip(records(predictions), predictions.scores.tolist(), strict=True)
    ]
    results.dataset = {"images": images, "categories": categories, "annotations": scored}
    labels.createIndex()
    results.createIndex()
    judge = pycocoeval.COCOeval(labels, results, "bbox")
    judge.evaluate()
    judge.accumulate()
    ours = figures(CocoProtocol(), ground_truth, predictions)
    np.testing.assert_array_equal(ours.curves.precision, judge.eval["precision"])
    without = figures(CocoProtocol(), ground_truth.take(~ignore_regions(ground_truth)), predictions)
    assert ours.figures["AP"] > without.figures["AP"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_false_detections_are_those_of_kittis_kit(seed, threshold):
    """evaluate_object.cpp: detections without an object are false, less those whose overlap with a region, over their own
    area, exceeds the class's minimal overlap."""
    ground_truth, predictions = scene(seed)
    ground_truth = ground_truth.take(~ground_truth.is_crowd | ignore_regions(ground_truth))  # KITTI has no crowds
    is_region = ignore_regions(ground_truth)
    matcher = DetectionMatcher(ground_truth, predictions, NAMES, np.arange(IMAGES))
    rules = Rules(iou_thresholds=(threshold,), max_dets=None)
    matches = matcher.match(rules)
    assert (matches.outcomes == Outcome.IGNORED).sum() >= 5
    for image in range(IMAGES):
        for label in (0, 1):
            objects = np.flatnonzero((ground_truth.image_index == image) & (ground_truth.labels == label) & ~is_region)
            regions = ground_truth.boxes_xyxy[(ground_truth.image_index == image) & is_region]
            here = np.flatnonzero((predictions.image_index == image) & (predictions.labels == label))
            free, false = set(objects.tolist()), 0
            for d in here[np.argsort(-predictions.scores[here])]:
                box = predictions.boxes_xyxy[d]
                ious = {g: pairwise_iou(box[None], ground_truth.boxes_xyxy[[g]])[0, 0] for g in free}
                best = max(ious, key=ious.get, default=None)
                if best is not None and ious[best] >= threshold:
                    free.remove(best)
                    continue
                shared = np.minimum(box[2:], regions[:, 2:]) - np.maximum(box[:2], regions[:, :2])
                over_own = shared.clip(0).prod(axis=1) / (box[2:] - box[:2]).prod()
                false += not (over_own > threshold - 1e-9).any()
            ours = (matches.labels == label) & (matches.image_index == image)
            assert (matches.outcomes[ours, 0] == Outcome.FALSE_POSITIVE).sum() == false


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("year", [2007, 2012])
def test_voc_by_a_slow_loop(seed, year):
    """An object first, the one overlapped most, free or not; what is false then does not count in a crowd or region."""
    ground_truth, predictions = scene(seed)
    spread = as_crowds_of_all(ground_truth)
    result = figures(VocProtocol(year), ground_truth, predictions)
    for label in (0, 1):
        here = np.flatnonzero(predictions.labels == label)
        taken, outcomes = set(), []
        for d in here[np.argsort(-predictions.scores[here])]:
            there = (spread.labels == label) & (spread.image_index == predictions.image_index[d])
            box = predictions.boxes_xyxy[d]
            objects, crowds = np.flatnonzero(there & ~spread.is_crowd), spread.boxes_xyxy[there & spread.is_crowd]
            ious = pairwise_iou(box[None], spread.boxes_xyxy[objects])[0]
            best = int(objects[ious.argmax()]) if len(objects) and ious.max() >= 0.5 else None
            shared = (np.minimum(box[2:], crowds[:, 2:]) - np.maximum(box[:2], crowds[:, :2])).clip(0).prod(axis=1)
            if best is not None and best not in taken:
                taken.add(best)
                outcomes.append(True)
            elif not (shared / (box[2:] - box[:2]).prod() >= 0.5).any():
                outcomes.append(False)
        true = np.cumsum(outcomes)
        recall = true / ((spread.labels == label) & ~spread.is_crowd).sum()
        precision = true / np.arange(1, len(true) + 1)
        if year == 2007:
            expected = np.mean([precision[recall >= r * 0.1].max(initial=0) for r in range(11)])
        else:
            steps = np.diff(recall, prepend=0)
            expected = sum(step * precision[i:].max() for i, step in enumerate(steps))
        assert result.per_category[NAMES[label]]["AP"] == pytest.approx(expected, abs=1e-12)
    rules = DetectionMatcher(ground_truth, predictions, NAMES, np.arange(IMAGES)).match(RULES[f"voc{year % 100:02}"])
    assert rules.mean_average_precision() == pytest.approx(result.figures["AP"], abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_explanations_count_as_evaluate_does(seed):
    ground_truth, predictions = scene(seed)
    matcher = DetectionMatcher(ground_truth, predictions, NAMES, np.arange(IMAGES))
    expected = figures(CocoProtocol(), ground_truth, predictions).figures["AP"]
    assert matcher.match(Rules()).mean_average_precision() == pytest.approx(expected, abs=1e-12)
    for label in (0, 1):
        alone = matcher.of_category(label).match(Rules()).average_precision()[label].mean()
        assert alone == pytest.approx(matcher.match(Rules()).average_precision()[label].mean(), abs=1e-12)
    counted = matcher.match(Rules(crowd="counted"))
    assert not counted.is_positive[ignore_regions(ground_truth)].any()


def test_shards_merge_to_the_same_figures():
    ground_truth, predictions = scene(5)
    first = AveragePrecision(CocoProtocol(), NAMES)
    for k in range(IMAGES):
        alone = AveragePrecision(CocoProtocol(), NAMES)
        sides = (one.take(one.image_index == k) for one in (ground_truth, predictions))
        alone.update(*(replace(one, image_index=np.zeros(len(one), dtype=int)) for one in sides), image_ids=[k])
        first = alone if k == 0 else first.merge(alone)
    np.testing.assert_array_equal(
        first.compute().curves.precision, figures(CocoProtocol(), ground_truth, predictions).curves.precision
    )


def test_regions_without_outline_or_corners_are_their_boxes():
    ring = np.array([[0.0, 0], [9, 0], [9, 9], [0, 9]])
    corners = np.stack([ring, np.full((4, 2), np.nan)])
    ground_truth = Objects.build(
        image_index=[0, 0], labels=[0, 2], boxes_xyxy=[[0, 0, 9, 9], [10, 10, 30, 30]], is_crowd=[False, True],
        columns={"ignored": np.array([False, True])}, segmentations=Segmentations.build([[ring], None]),
        corners_xy=corners,
    )  # fmt: skip
    whole = complete_regions(ground_truth)
    predictions = Objects.build(
        image_index=[0, 0], labels=[0, 0], boxes_xyxy=[[0, 0, 9, 9], [12, 12, 20, 20]], scores=np.array([0.5, 0.9]),
        segmentations=Segmentations.build([[ring], [ring * 8 / 9 + 12]]),
        corners_xy=np.stack([ring, ring * 8 / 9 + 12]),
    )  # fmt: skip
    for protocol in (CocoProtocol("segm"), CocoProtocol(similarity=OrientedBoxes())):
        metric = AveragePrecision(protocol, NAMES)
        metric.update(whole, predictions, image_ids=[0], sizes_hw=np.array([[40, 40]]))
        assert metric.compute().figures["AP"] == pytest.approx(1)
