"""AP of cuboids: an independent slow loop over IoUs by counting points, KITTI's 40 recalls, and bad records."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.errors import DataError, UsageError
from otus.metrics.detection.average_precision import AveragePrecision
from otus.metrics.detection.coco import CocoResult
from otus.metrics.detection.cuboid import Cuboids, cuboid_protocols
from otus.structures import Categories, Objects, oriented

CATEGORIES = Categories(("Car", "Cyclist"))


def as_objects(image, labels, cuboids, **others) -> Objects:
    return Objects.build(
        image_index=image,
        labels=labels,
        boxes_xyxy=np.tile([0.0, 0, 9, 9], (len(cuboids), 1)),
        cuboids=cuboids,
        **others,
    )


def a_scene(seed: int, *, images: int = 4, objects: int = 40) -> SimpleNamespace:
    rng = np.random.default_rng(seed)
    cuboids = np.column_stack(
        [
            rng.random((objects, 2)) * 40,
            rng.normal(size=objects),
            1 + rng.random((objects, 3)) * 4,
            rng.uniform(-3, 3, objects),
        ]
    )
    image, labels = rng.integers(0, images, objects), rng.integers(0, 2, objects)
    copies = rng.integers(0, objects, 2 * objects)
    predictions = cuboids[copies] + rng.normal(size=(len(copies), 7)) * [0.3, 0.3, 0.2, 0.2, 0.2, 0.2, 0.1]
    predictions[:, 3:6] = np.maximum(predictions[:, 3:6], 0.2)
    scores = (rng.permutation(len(copies)) + 1) / (len(copies) + 1)
    return SimpleNamespace(
        images=images,
        ground_truth=as_objects(image, labels, cuboids),
        predictions=as_objects(image[copies], labels[copies], predictions, scores=scores),
    )


def score(scene: SimpleNamespace, name: str = "cuboid") -> CocoResult:
    metric = AveragePrecision(cuboid_protocols()[name], CATEGORIES)
    return metric.update(scene.ground_truth, scene.predictions, image_ids=range(scene.images)).compute()


def slow_ap(scene: SimpleNamespace, label: int, ious: np.ndarray, threshold: float, recalls: np.ndarray) -> float:
    """Match each detection, by descending score, to the free object of highest IoU; then average precision over recalls."""
    ground_truth, predictions = scene.ground_truth, scene.predictions
    rows = np.flatnonzero(predictions.labels == label)
    positives = int((ground_truth.labels == label).sum())
    if not positives:
        return float("nan")
    free = ground_truth.labels == label
    curve, true = [], 0
    for count, row in enumerate(rows[np.argsort(-predictions.scores[rows])], start=1):
        mine = np.where(free & (ground_truth.image_index == predictions.image_index[row]), ious[row], -1)
        best = int(mine.argmax())
        if mine[best] >= threshold:
            free[best], true = False, true + 1
        curve.append((true / positives, true / count))
    reached = np.array(curve).reshape(-1, 2)
    return float(np.mean([reached[reached[:, 0] >= r, 1].max(initial=0) for r in recalls]))


@pytest.mark.parametrize("name", ["cuboid", "birds_eye"])
@pytest.mark.parametrize("seed", range(3))
def test_a_slow_loop_says_the_same(name, seed):
    scene = a_scene(seed)
    pair = scene.predictions.cuboids, scene.ground_truth.cuboids
    if name == "cuboid":
        ious = oriented.pairwise_cuboid_iou(*pair)
    else:
        ious = oriented.pairwise_oriented_iou(*map(oriented.footprints, pair))
    for suffix, recalls, thresholds in (
        ("", np.linspace(0, 1, 101), {"AP15": 0.15, "AP25": 0.25, "AP50": 0.5}),
        ("_r40", np.arange(1, 41) / 40, {"AP50": 0.5, "AP70": 0.7}),
    ):
        result = score(scene, name + suffix)
        for figure, threshold in thresholds.items():
            for label, category in enumerate(CATEGORIES):
                expected = slow_ap(scene, label, ious, threshold, recalls)
                assert result.per_category[category][figure] == pytest.approx(expected, abs=1e-9)
    everywhere = [
        slow_ap(scene, label, ious, threshold, np.linspace(0, 1, 101))
        for label in range(2)
        for threshold in np.arange(1, 11) / 20
    ]
    assert score(scene, name).figures["AP"] == pytest.approx(np.mean(everywhere), abs=1e-9)


def test_ious_by_counting_points():
    """Points of a fine grid inside one, inside the other, and inside both."""
    rng = np.random.default_rng(0)
    a = np.array([0.0, 0, 0, 4, 2, 1.5, 0.4])
    grid = rng.uniform(-5, 5, (400_000, 3))

    def inside(cuboid: np.ndarray, axes: int) -> np.ndarray:
        moved = grid - cuboid[:3]
        cos, sin = np.cos(cuboid[6]), np.sin(cuboid[6])
        own = np.stack([moved[:, 0] * cos + moved[:, 1] * sin, moved[:, 1] * cos - moved[:, 0] * sin, moved[:, 2]], 1)
        return (np.abs(own[:, :axes]) <= cuboid[3 : 3 + axes] / 2).all(axis=1)

    for seen, axes in (("3d", 3), ("bev", 2)):
        for _ in range(3):
            b = a + rng.normal(size=7) * [0.6, 0.6, 0.3, 0.4, 0.4, 0.3, 0.4]
            one = as_objects([0], [0], b[None], scores=np.ones(1))
            from otus.metrics.detection.pairs import RankedDetections

            ground_truth = as_objects([0], [0], a[None])
            order = RankedDetections.build(ground_truth, one, label_count=1, limit=None)
            pairs = Cuboids(seen).pairs(ground_truth, one, order, sizes_hw=None, min_similarity=0.0)
            both, either = inside(a, axes) & inside(b, axes), inside(a, axes) | inside(b, axes)
            assert pairs.similarities[0] == pytest.approx(both.sum() / either.sum(), abs=0.02)


def test_40_recalls_leave_out_recall_0():
    """One of four cars found: at 101 recalls 26 count, at 40 ten."""
    cuboids = np.tile([0.0, 0, 0, 4, 2, 1.5, 0], (4, 1)) + np.arange(4)[:, None] * [10, 0, 0, 0, 0, 0, 0]
    scene = SimpleNamespace(
        images=1,
        ground_truth=as_objects([0] * 4, [0] * 4, cuboids),
        predictions=as_objects([0], [0], cuboids[:1], scores=np.ones(1)),
    )
    assert score(scene).figures["AP50"] == pytest.approx(26 / 101)
    assert score(scene, "cuboid_r40").figures["AP70"] == pytest.approx(10 / 40)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["cuboid", "birds_eye_r40"]))
@settings(max_examples=15, deadline=None)
def test_what_must_hold(seed, name):
    scene = a_scene(seed, objects=12, images=2)
    figures = score(scene, name).figures
    assert all(np.isnan(value) or 0 <= value <= 1 for value in figures.values())
    monotone = replace(scene.predictions, scores=scene.predictions.scores**3 - 2)
    assert score(SimpleNamespace(**{**vars(scene), "predictions": monotone}), name).figures == pytest.approx(figures)
    perfect = SimpleNamespace(
        images=2, ground_truth=scene.ground_truth, predictions=replace(scene.ground_truth, scores=np.ones(12))
    )
    assert score(perfect, name).figures["AP50"] == pytest.approx(1)


def test_crowds_need_no_cuboid_and_other_records_are_named():
    scene = a_scene(0)
    cuboids = scene.ground_truth.cuboids.copy()
    cuboids[3] = np.nan
    crowd = np.arange(len(cuboids)) == 3
    result = score(
        SimpleNamespace(**{**vars(scene), "ground_truth": replace(scene.ground_truth, cuboids=cuboids, is_crowd=crowd)})
    )
    assert 0 < result.figures["AP"] < 1
    for broken, words in ((np.nan, "finite"), (-1.0, "sizes of 0 or more")):
        cuboids = scene.predictions.cuboids.copy()
        cuboids[7, 4] = broken
        with pytest.raises(DataError, match=rf"predictions\[7\] \(id \d+\)\.cuboids: expected {words}"):
            score(SimpleNamespace(**{**vars(scene), "predictions": replace(scene.predictions, cuboids=cuboids)}))
    with pytest.raises(UsageError, match="cuboids: the ground truth has none"):
        score(SimpleNamespace(**{**vars(scene), "ground_truth": replace(scene.ground_truth, cuboids=None)}))
    with pytest.raises(UsageError, match="kind: expected one of 3d, bev"):
        Cuboids("sideways")
