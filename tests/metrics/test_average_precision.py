"""What must hold of average precision whatever the data: shards, orders, scores, more and fewer mistakes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.errors import UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import CocoProtocol, CocoResult
from otus.structures import Categories, Objects

CATEGORIES = Categories(("a", "b", "c"))


@st.composite
def scenes(draw: st.DrawFn) -> SimpleNamespace:
    """Generate objects and detections of some images with distinct scores."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images, objects = draw(st.integers(1, 6)), draw(st.integers(0, 15))
    where = rng.random((objects, 2)) * 60
    true_boxes = np.concatenate([where, where + rng.integers(3, 50, (objects, 2))], axis=1)
    image, labels = rng.integers(0, images, objects), rng.integers(0, 3, objects)
    copies = rng.integers(0, objects, 2 * objects) if objects else np.zeros(0, int)
    boxes = true_boxes[copies] + rng.normal(size=(len(copies), 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    scores = (rng.permutation(len(copies)) + 1) / (len(copies) + 1)
    return SimpleNamespace(
        images=images,
        ground_truth=Objects.build(
            image_index=image, labels=labels, boxes_xyxy=true_boxes, is_crowd=rng.random(objects) < 0.1
        ),
        predictions=Objects.build(image_index=image[copies], labels=labels[copies], boxes_xyxy=boxes, scores=scores),
    )


def score(
    scene: SimpleNamespace, ground_truth: Objects | None = None, predictions: Objects | None = None
) -> CocoResult:
    metric = AveragePrecision(CocoProtocol(), CATEGORIES)
    return metric.update(
        scene.ground_truth if ground_truth is None else ground_truth,
        scene.predictions if predictions is None else predictions,
        image_ids=range(scene.images),
    ).compute()


def rows(objects: Objects, **changes) -> Objects:
    """Return the objects with other columns, sorted by image again."""
    columns = {
        name: getattr(objects, name) for name in ("image_index", "labels", "boxes_xyxy", "areas", "is_crowd", "ids")
    }
    if objects.scores is not None:
        columns["scores"] = objects.scores
    return Objects.build(**{**columns, **changes})


def assert_same(a: CocoResult, b: CocoResult) -> None:
    np.testing.assert_array_equal(a.curves.precision, b.curves.precision)
    np.testing.assert_array_equal(a.curves.recall, b.curves.recall)


@given(scenes())
@settings(max_examples=40, deadline=None)
def test_figures_lie_between_0_and_1_or_are_not_defined(scene):
    values = np.array(list(score(scene).figures.values()))
    assert (np.isnan(values) | ((values >= 0) & (values <= 1))).all()
    if not (~scene.ground_truth.is_crowd).any():
        assert np.isnan(values).all()


@given(scenes(), st.sampled_from([np.sqrt, lambda s: s**3 - 5, lambda s: 1 / (1 + np.exp(-9 * s))]))
@settings(max_examples=40, deadline=None)
def test_only_the_order_of_scores_matters(scene, rising):
    moved = replace(scene.predictions, scores=rising(scene.predictions.scores))
    assert_same(score(scene), score(scene, predictions=moved))


@given(scenes(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_orders_of_images_categories_and_records_do_not_matter(scene, random):
    images = np.array(random.sample(range(scene.images), scene.images))
    labels = np.array(random.sample(range(3), 3))
    shuffle = np.array(random.sample(range(len(scene.predictions)), len(scene.predictions)), dtype=int)

    def moved(objects: Objects) -> Objects:
        return rows(objects, image_index=images[objects.image_index], labels=labels[objects.labels])

    one = scene.predictions
    shuffled = rows(
        one, image_index=one.image_index[shuffle], labels=one.labels[shuffle], boxes_xyxy=one.boxes_xyxy[shuffle],
        areas=one.areas[shuffle], scores=one.scores[shuffle],
    )  # fmt: skip
    plain, other = score(scene), score(scene, moved(scene.ground_truth), moved(shuffled))
    np.testing.assert_array_equal(plain.curves.precision, other.curves.precision[:, :, labels])
    assert plain.figures["AP"] == pytest.approx(other.figures["AP"], nan_ok=True, abs=1e-12)


@given(scenes(), st.floats(0, 1), st.integers(0, 2), st.booleans())
@settings(max_examples=60, deadline=None)
def test_one_more_false_detection_never_helps(scene, confidence, label, is_duplicate):
    """One far from every object; or a duplicate of the worst detection, below it."""
    before = scene.predictions
    if is_duplicate and len(before):
        worst = int(np.argmin(before.scores))
        image, label, box, confidence = before.image_index[worst], before.labels[worst], before.boxes_xyxy[worst], 0.0
    else:
        image, box = 0, np.array([500.0, 500, 510, 510])
    more = rows(
        before,
        image_index=np.append(before.image_index, image),
        labels=np.append(before.labels, label),
        boxes_xyxy=np.concatenate([before.boxes_xyxy, [box]]),
        areas=None,
        is_crowd=None,
        ids=None,
        scores=np.append(before.scores, confidence),
    )
    if is_duplicate and len(before):
        predictions = score(scene).curves.recall
        if (score(scene, predictions=more).curves.recall > predictions).any():
            return  # it found a second object of its own: not a false detection
    with_it, without = score(scene, predictions=more), score(scene)
    assert (with_it.curves.precision <= without.curves.precision + 1e-12).all()


@given(scenes())
@settings(max_examples=40, deadline=None)
def test_perfect_detections_above_all_others_give_1(scene):
    kept = scene.ground_truth.take(~scene.ground_truth.is_crowd)
    noise = scene.predictions
    predictions = Objects.build(
        image_index=np.append(kept.image_index, noise.image_index),
        labels=np.append(kept.labels, noise.labels),
        boxes_xyxy=np.concatenate([kept.boxes_xyxy, noise.boxes_xyxy]),
        scores=np.append(np.full(len(kept), 2.0), noise.scores),
    )
    figures = score(scene, predictions=predictions).figures
    if len(kept):
        for name in ("AP", "AP50", "AP75", "AR100"):
            assert figures[name] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_shards_merge_to_the_same_figures(kind, coco_scene, coco_values):
    values = coco_values(*coco_scene(4, outlines=kind == "segm", keypoints=kind == "keypoints", score_steps=5))
    protocol = CocoProtocol(kind)

    def judged(chosen: list[int]) -> AveragePrecision[CocoResult]:
        place = np.full(len(values.image_ids), -1)
        place[chosen] = np.arange(len(chosen))
        parts = []
        for objects in (values.ground_truth, values.predictions):
            here = np.flatnonzero(place[objects.image_index] >= 0)
            new_place = place[objects.image_index[here]]
            order = np.argsort(new_place, kind="stable")
            image = new_place[order]
            cut = replace(objects, image_index=np.zeros(len(objects), np.int64)).take(here[order])
            parts.append(replace(cut, image_index=image))
        ids = [values.image_ids[i] for i in chosen]
        metric = AveragePrecision(protocol, values.categories)
        return metric.update(*parts, image_ids=ids, sizes_hw=values.sizes_hw[chosen])

    whole = judged(list(range(12))).compute()
    shards = [judged(chosen) for chosen in ([3, 8, 1], [0, 2], [11, 10, 9], [4, 5, 6, 7])]
    merged = shards[0].merge(shards[1]).merge(shards[2]).merge(shards[3]).compute()
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(whole.curves, name), getattr(merged.curves, name))


def test_a_image_counts_once_and_protocols_do_not_mix():
    nothing, no_scores = Objects.empty(), np.zeros(0)
    predictions = replace(nothing, scores=no_scores)
    metric = AveragePrecision(CocoProtocol(), CATEGORIES).update(nothing, predictions, image_ids=["x", "y"])
    with pytest.raises(UsageError, match="image y was added before"):
        metric.update(nothing, predictions, image_ids=["y"])
    with pytest.raises(UsageError, match="image x was added before"):
        metric.merge(AveragePrecision(CocoProtocol(), CATEGORIES).update(nothing, predictions, image_ids=["x"]))
    with pytest.raises(UsageError, match="same protocol"):
        metric.merge(AveragePrecision(CocoProtocol("segm"), CATEGORIES))
    with pytest.raises(UsageError, match="categories"):
        metric.merge(AveragePrecision(CocoProtocol(), Categories(("other",))))
