"""The bootstrap: each resample equals a data set of the images that were drawn, and intervals cover what they should."""

from dataclasses import replace

import numpy as np
import pytest

from otus.errors import UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import CocoProtocol
from otus.metrics.detection.rules import RULES, Rules
from otus.metrics.detection.voc import VocProtocol
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.bootstrap import paired_bootstrap, resample_images, resampled_average_precision
from otus.structures import Categories, Objects


def repeated(objects: Objects, counts: np.ndarray) -> Objects:
    """Repeat each image as often as it was drawn, as separate images."""
    drawn = np.repeat(np.arange(len(counts)), counts)
    rows = [np.flatnonzero(objects.image_index == one) for one in drawn]
    index = np.concatenate(rows)
    new = np.repeat(np.arange(len(drawn)), [len(one) for one in rows])
    columns = {name: getattr(objects, name)[index] for name in ("labels", "boxes_xyxy", "ids", "areas", "is_crowd")}
    if objects.scores is not None:
        columns["scores"] = objects.scores[index]
    return Objects.build(image_index=new, columns={k: v[index] for k, v in objects.columns.items()}, **columns)


@pytest.mark.parametrize("protocol", [CocoProtocol(), VocProtocol(2007), VocProtocol(2012)])
@pytest.mark.parametrize("seed", range(3))
def test_a_resample_is_a_data_set_of_the_drawn_images(seed, protocol, coco_scene, coco_values):
    values = coco_values(*coco_scene(seed, score_steps=10**9))
    difficult = np.random.default_rng(seed).random(len(values.ground_truth)) < 0.2
    values.ground_truth = replace(values.ground_truth, columns={**values.ground_truth.columns, "difficult": difficult})
    matcher = DetectionMatcher(**vars(values))
    rules = RULES["coco" if isinstance(protocol, CocoProtocol) else f"voc{protocol.year % 100:02}"]
    weights = resample_images(len(values.image_ids), resamples=6, seed=seed)
    weights[0] = 1
    figures = resampled_average_precision(matcher, matcher.match(rules), weights)
    np.testing.assert_allclose(figures[0], matcher.match(rules).average_precision(), atol=1e-12)
    for counts, ours in zip(weights, figures, strict=True):
        metric = AveragePrecision(protocol, values.categories)
        metric.update(
            repeated(values.ground_truth, counts), repeated(values.predictions, counts), image_ids=range(counts.sum())
        )
        theirs = [figures["AP"] for figures in metric.compute().per_category.values()]
        np.testing.assert_allclose(ours.mean(axis=1), theirs, atol=1e-9)


def test_draws_are_seeded_and_as_many_as_there_are_images():
    weights = resample_images(30, resamples=50, seed=3)
    assert (weights.sum(axis=1) == 30).all()
    assert (weights == resample_images(30, resamples=50, seed=3)).all()
    assert (weights != resample_images(30, resamples=50, seed=4)).any()
    assert weights.max() > 2


def images_with(rng: np.random.Generator, chance_a: float, chance_b: float, count: int = 200):
    """Return images with one object each, which two models detect at random."""
    ground_truth = Objects.build(
        image_index=np.arange(count), labels=np.zeros(count), boxes_xyxy=np.tile([0, 0, 9, 9], (count, 1))
    )
    sides = []
    for chance in (chance_a, chance_b):
        shift = np.where(rng.random(count) < chance, 0, 100)[:, None]
        boxes = np.tile([0.0, 0, 9, 9], (count, 1)) + shift
        predictions = Objects.build(
            image_index=np.arange(count), labels=np.zeros(count), boxes_xyxy=boxes, scores=rng.random(count)
        )
        sides.append(DetectionMatcher(ground_truth, predictions, Categories(("owl",)), np.arange(count)))
    return sides


def test_what_is_plain_is_sure_and_what_is_the_same_is_not():
    rng = np.random.default_rng(0)
    rules = Rules()
    a, b = images_with(rng, 0.5, 0.9)
    for one in paired_bootstrap(a, b, rules, resamples=300):
        assert one.low > 0
        assert (one.a_better, one.b_better) == (0, 1)
        assert one.low < one.difference < one.high
    (first, *_) = paired_bootstrap(a, a, rules, resamples=100)
    assert (first.difference, first.low, first.high, first.a_better, first.b_better) == (0, 0, 0, 0, 0)
    covered = 0
    for _ in range(60):
        a, b = images_with(rng, 0.7, 0.7, count=80)
        first = paired_bootstrap(a, b, rules, resamples=200)[0]
        covered += first.low <= 0 <= first.high
    assert covered >= 50  # 95 of 100 expected: 57


def test_the_names_and_what_is_not_defined():
    a, b = images_with(np.random.default_rng(1), 0.6, 0.7, count=20)
    a, b = (replace(one, categories=Categories(("owl", "cat"))) for one in (a, b))
    rows = paired_bootstrap(a, b, Rules(), resamples=20)
    assert [one.name for one in rows] == ["AP", "AP50", "AP75", "owl", "cat"]
    assert np.isnan([rows[-1].a, rows[-1].low, rows[-1].b_better]).all()
    voc = paired_bootstrap(a, b, RULES["voc07"], resamples=20)
    assert [one.name for one in voc] == ["AP", "AP50", "owl", "cat"]


def test_wrong_calls_are_refused():
    a, b = images_with(np.random.default_rng(1), 0.6, 0.7, count=5)
    with pytest.raises(UsageError, match="same ground truth"):
        paired_bootstrap(a, replace(b, ground_truth=Objects.empty()), Rules())
    for options in ({"resamples": 0}, {"confidence": 1.0}):
        with pytest.raises(UsageError, match="confidence"):
            paired_bootstrap(a, b, Rules(), **options)
