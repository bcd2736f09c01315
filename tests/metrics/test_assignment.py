"""Rules turned one by one: at the protocols' own settings they give the protocols' figures."""

from dataclasses import replace

import numpy as np
import pytest

from otus.errors import UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import ALL, LARGE, MEDIUM, SMALL, CocoProtocol
from otus.metrics.detection.matching import Outcome, match_image
from otus.metrics.detection.rules import RULES, Rules, parse_rules
from otus.metrics.detection.voc import VocProtocol
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.structures import Categories, Objects
from otus.structures.boxes import pairwise_iou


def by_protocol(values, protocol):
    metric = AveragePrecision(protocol, values.categories)
    return metric.update(
        values.ground_truth, values.predictions, image_ids=values.image_ids, sizes_hw=values.sizes_hw
    ).compute()


@pytest.fixture(params=range(4))
def scene(request, coco_scene, coco_values):
    values = coco_values(*coco_scene(request.param, outlines=True, score_steps=5))
    rng = np.random.default_rng(request.param)
    difficult = rng.random(len(values.ground_truth)) < 0.2
    values.ground_truth = replace(values.ground_truth, columns={**values.ground_truth.columns, "difficult": difficult})
    return values


@pytest.mark.parametrize("masks", [False, True])
def test_cocos_rules_give_cocos_figures(scene, masks):
    result = by_protocol(scene, CocoProtocol("segm" if masks else "bbox"))
    matches = DetectionMatcher(**vars(scene)).match(Rules(), masks=masks)
    precision = result.curves.precision[..., 0, -1]
    theirs = np.where(precision[:, 0] > -1, precision.mean(axis=1), np.nan).T
    np.testing.assert_allclose(matches.average_precision(), theirs, atol=1e-12)
    assert matches.mean_average_precision() == pytest.approx(result.figures["AP"], abs=1e-12)


@pytest.mark.parametrize(("name", "one"), [("all", ALL), ("small", SMALL), ("medium", MEDIUM), ("large", LARGE)])
def test_areas_and_limits(scene, name, one):
    rules = Rules(area=name, max_dets=3, iou_thresholds=(0.5, 0.75))
    protocol = CocoProtocol(area_ranges=(one,), max_dets=(3,), iou_thresholds=(0.5, 0.75))
    ours = DetectionMatcher(**vars(scene)).match(rules).mean_average_precision()
    np.testing.assert_allclose(ours, by_protocol(scene, protocol).figures["AP"], atol=1e-12)


@pytest.mark.parametrize("year", [2007, 2012])
def test_vocs_rules_give_vocs_figures(scene, year):
    result = by_protocol(scene, VocProtocol(year))
    matches = DetectionMatcher(**vars(scene)).match(RULES[f"voc{year % 100:02}"])
    ours = matches.average_precision()[:, 0]
    np.testing.assert_allclose(ours, list(result.average_precision.values()), atol=1e-12)


def test_each_takes_what_the_plain_rule_says(scene):
    matches = DetectionMatcher(**vars(scene)).match(Rules(iou_thresholds=(0.5, 0.75)))
    ground_truth, predictions = scene.ground_truth, scene.predictions
    matched = 0
    for label in range(len(scene.categories)):
        for image in range(len(scene.image_ids)):
            there = np.flatnonzero((ground_truth.labels == label) & (ground_truth.image_index == image))
            here = np.flatnonzero((matches.labels == label) & (matches.image_index == image))
            crowd = ground_truth.is_crowd[there]
            boxes = predictions.boxes_xyxy[matches.detections[here]]
            within = intersection_over_first(boxes, ground_truth.boxes_xyxy[there])
            iou = np.where(crowd, within, pairwise_iou(boxes, ground_truth.boxes_xyxy[there]))
            for t, threshold in enumerate((0.5, 0.75)):
                expected = match_image(iou, threshold, ignored=crowd, crowd=crowd)
                np.testing.assert_array_equal(matches.matched[here, t], np.append(there, -1)[expected])
                found_one = np.flatnonzero(expected >= 0)
                overlaps = iou[found_one, expected[found_one]]
                np.testing.assert_allclose(matches.ious[here, t][found_one], overlaps)
                matched += len(found_one)
    assert matched > 20


def intersection_over_first(a, b):
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.maximum(sides, 0).prod(axis=2) / (a[:, 2:] - a[:, :2]).prod(axis=1)[:, None]


def one_object(**columns) -> DetectionMatcher:
    """Return an object, one that is marked by a column, and a detection on each."""
    ground_truth = Objects.build(
        image_index=[0, 0], labels=[0, 0], boxes_xyxy=[[0, 0, 10, 10], [20, 0, 30, 10]], **columns
    )
    predictions = Objects.build(
        image_index=[0, 0], labels=[0, 0], boxes_xyxy=[[20, 0, 30, 10], [0, 0, 10, 10]], scores=np.array([0.9, 0.44])
    )
    return DetectionMatcher(ground_truth, predictions, Categories(("owl", "cat")), np.array([3]))


@pytest.mark.parametrize("mark", ["crowd", "difficult"])
def test_what_is_special_is_ignored_counted_or_dropped(mark):
    column = np.array([False, True])
    columns = {"is_crowd": column} if mark == "crowd" else {"columns": {"difficult": column}}
    expected = {"ignored": (1, 1.0), "counted": (2, 1.0), "dropped": (1, 0.5)}
    for choice, (positives, ap) in expected.items():
        for matching in ("greedy", "best_overlap"):
            rules = Rules(interpolation="area", matching=matching, **{mark: choice})
            matches = one_object(**columns).match(rules)
            assert matches.positives.tolist() == [positives, 0]
            assert matches.mean_average_precision() == pytest.approx(ap)


def test_floor_rounding_and_average():
    values = one_object()
    assert values.match(Rules(min_score=0.5)).mean_average_precision() == pytest.approx(51 / 101)
    assert values.match(Rules(min_score=0.44)).mean_average_precision() == pytest.approx(1)
    assert values.match(Rules(score_decimals=1)).scores.tolist() == [0.9, 0.4]
    stray = replace(values.predictions, labels=np.array([0, 1]))
    values = replace(values, predictions=stray)
    assert values.match(Rules()).mean_average_precision() == pytest.approx(51 / 101)
    both = values.match(Rules(average="with_objects_or_detections"))
    assert both.mean_average_precision() == pytest.approx(51 / 202)
    assert both.outcomes[:, 0].tolist() == [Outcome.TRUE_POSITIVE, Outcome.FALSE_POSITIVE]


def test_inclusive_boxes_reach_further():
    ground_truth = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 10, 10]])
    predictions = Objects.build(image_index=[0], labels=[0], boxes_xyxy=[[0, 0, 10, 5]], scores=np.array([0.5]))
    values = DetectionMatcher(ground_truth, predictions, Categories(("owl",)), np.array([3]))
    assert values.match(Rules()).ious[0, 0] == pytest.approx(0.5)
    assert values.match(Rules(inclusive_boxes=True)).ious[0, 0] == pytest.approx(6 / 11)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pascal", "coco, voc07"),
        ("coco:max_det=3", "max_dets"),
        ("coco:max_dets", "NAME=VALUE"),
        ("coco:max_dets=many", "a number"),
        ("coco:max_dets=0", "1 or more"),
        ("coco:matching=hungarian", "greedy"),
        ("coco:crowd=yes", "ignored"),
        ("coco:area=tiny", "small"),
        ("coco:inclusive_boxes=1", "yes or no"),
        ("coco:iou_thresholds=0.5,0.7", "0.5/0.75"),
        ("coco:iou_thresholds=2", r"in \(0, 1\]"),
        ("coco:score_decimals=-1", "0 or more"),
        ("coco:min_score=nan", "a finite number"),
    ],
)
def test_wrong_rules_are_refused(text, words):
    with pytest.raises(UsageError, match=words):
        parse_rules(text)


def test_rules_are_read():
    rules = parse_rules(
        "voc12:max_dets=10:difficult=counted:iou_thresholds=coco:inclusive_boxes=yes:score_decimals=none"
    )
    assert rules == replace(
        RULES["voc12"], max_dets=10, difficult="counted", iou_thresholds=Rules().iou_thresholds, inclusive_boxes=True
    )


def test_scores_are_needed():
    with pytest.raises(UsageError, match="scores"):
        DetectionMatcher(Objects.empty(), Objects.empty(), Categories(("owl",)), np.array([1]))
