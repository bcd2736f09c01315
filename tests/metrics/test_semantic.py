"""Semantic segmentation: the figures of hotcoco and torchmetrics, DAVIS' boundary measure in its words, what must hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otus.errors import ShapeError, UsageError
from otus.metrics.semantic import SemanticQuality, SemanticResult
from otus.structures import IGNORE, Categories, SemanticMap

CATEGORIES = Categories(("sky", "tree", "owl", "mouse", "moon"))


def some_pairs(
    seed: int, count: int = 4, *, categories: int = 5, ignore: bool = True
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of a coarse map and the same with errors."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        height, width = rng.integers(6, 40, 2)
        blocks = rng.integers(0, categories, (height // 5 + 1, width // 5 + 1))
        ground_truth = np.kron(blocks, np.ones((5, 5), dtype=int))[:height, :width]
        predictions = np.roll(ground_truth, rng.integers(-2, 3, 2), axis=(0, 1))
        wrong = rng.random(ground_truth.shape) < 0.05
        predictions = np.where(wrong, rng.integers(0, categories, ground_truth.shape), predictions)
        if ignore:
            ground_truth = np.where(rng.random(ground_truth.shape) < 0.1, IGNORE, ground_truth)
        pairs.append((ground_truth, predictions))
    return pairs


def compute(
    pairs: list[tuple[np.ndarray, np.ndarray]], categories: Categories = CATEGORIES, **options
) -> SemanticResult:
    metric = SemanticQuality(categories, **options)
    for ground_truth, predictions in pairs:
        metric.update(SemanticMap(ground_truth, categories), SemanticMap(predictions, categories))
    return metric.compute()


@pytest.mark.parametrize("seed", range(6))
def test_hotcoco_says_the_same(seed):
    semantic = pytest.importorskip("hotcoco.semantic", reason="hotcoco is a reference")
    pairs = some_pairs(seed, categories=5 - seed % 2)  # a category on neither side
    theirs = semantic.SemanticEval(list(CATEGORIES))
    for ground_truth, predictions in pairs:
        theirs.update(ground_truth.astype(np.uint8), predictions.astype(np.uint8))
    result = compute(pairs)
    for name, value in theirs.results().items():
        if name in result.figures:
            assert result.figures[name] == pytest.approx(value, abs=1e-12)
    np.testing.assert_array_equal(result.confusion[:, :5], theirs.confusion())
    assert np.isnan(result.per_category["moon"]["IoU"]) == bool(seed % 2)
    assert np.isnan(result.per_category["moon"]["BF"]) == bool(seed % 2)


def test_torchmetrics_says_the_same():
    classification = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is a reference")
    import torch

    pairs = some_pairs(3)
    per_class = classification.MulticlassJaccardIndex(5, average="none", ignore_index=IGNORE)
    accuracy = classification.MulticlassAccuracy(5, average="micro", ignore_index=IGNORE)
    for ground_truth, predictions in pairs:
        for metric in (per_class, accuracy):
            metric.update(torch.from_numpy(predictions.ravel()), torch.from_numpy(ground_truth.ravel()))
    result = compute(pairs)
    ours = [figures["IoU"] for figures in result.per_category.values()]
    assert ours == pytest.approx(per_class.compute().tolist(), abs=1e-6)
    assert result.figures["mIoU"] == pytest.approx(float(per_class.compute().mean()), abs=1e-6)
    assert result.figures["aAcc"] == pytest.approx(float(accuracy.compute()), abs=1e-6)


def davis_contour(mask: np.ndarray) -> np.ndarray:
    """Return where a pixel differs from its right, lower or lower right neighbour (at the border: those that exist)."""
    right, below, both = mask.copy(), mask.copy(), mask.copy()
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    both[:-1, :-1] = mask[1:, 1:]
    contour = (mask ^ right) | (mask ^ below) | (mask ^ both)
    contour[-1] = mask[-1] ^ right[-1]
    contour[:, -1] = mask[:, -1] ^ below[:, -1]
    contour[-1, -1] = False
    return contour


def davis_f(ground_truth: np.ndarray, predictions: np.ndarray, tolerance: float) -> float:
    """Return F of one mask, by dilating contours with a disk."""
    from scipy.ndimage import binary_dilation

    radius = int(np.ceil(tolerance * np.hypot(*ground_truth.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    a, b = davis_contour(ground_truth), davis_contour(predictions)
    if not a.any() or not b.any():
        return float(not a.any() and not b.any())
    recall = (a & binary_dilation(b, disk)).sum() / a.sum()
    precision = (b & binary_dilation(a, disk)).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("tolerance", [0.0, 0.008, 0.08, 0.2])
def test_boundary_f_is_that_of_davis(tolerance):
    pairs = [*some_pairs(1, 3), *some_pairs(2, 3, categories=2, ignore=False)]
    pairs.append((np.zeros((9, 9), int), np.zeros((9, 9), int)))  # no boundaries
    pairs.append((np.zeros((9, 9), int), np.ones((9, 9), int)))
    expected = []
    for label in range(5):
        scores = []
        for ground_truth, predictions in pairs:
            seen = np.where(ground_truth == IGNORE, IGNORE, predictions)
            if (ground_truth == label).any() or (seen == label).any():
                scores.append(davis_f(ground_truth == label, seen == label, tolerance))
        expected.append(np.mean(scores))
    result = compute(pairs, tolerance=tolerance)
    assert result.boundary_f == pytest.approx(expected)
    assert result.figures["BF"] == pytest.approx(np.mean(expected))


def test_what_is_on_neither_side_and_what_is_not_said():
    ground_truth, predictions = np.array([[0, 0, 1, IGNORE]]), np.array([[0, IGNORE, 2, 3]])
    result = compute([(ground_truth, predictions)])
    iou = [figures["IoU"] for figures in result.per_category.values()]
    assert iou == pytest.approx([0.5, 0, 0, np.nan, np.nan], nan_ok=True)
    accuracy = [figures["Acc"] for figures in result.per_category.values()]
    assert accuracy == pytest.approx([0.5, 0, np.nan, np.nan, np.nan], nan_ok=True)
    assert result.figures["mIoU"] == pytest.approx(0.5 / 3)
    assert result.figures["mAcc"] == pytest.approx(0.25)
    assert result.figures["aAcc"] == pytest.approx(1 / 3)
    assert result.confusion.sum() == 3
    assert np.isnan(list(SemanticQuality(CATEGORIES).compute().figures.values())).all()
    unjudged = np.full((3, 3), IGNORE)
    assert np.isnan(list(compute([(unjudged, np.zeros((3, 3), int))]).figures.values())).all()
    assert compute([(np.zeros((3, 3), int), unjudged)]).figures["mIoU"] == 0


seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_perfect_maps_give_1_and_figures_lie_between_0_and_1(seed):
    pairs = some_pairs(seed)
    perfect = compute([(ground_truth, ground_truth) for ground_truth, _ in pairs])
    assert list(perfect.figures.values()) == pytest.approx([1] * 5)
    values = np.array(list(compute(pairs).figures.values()))
    assert ((values >= 0) & (values <= 1)).all()


@given(seeds, st.permutations(range(5)), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_orders_and_shards_do_not_matter(seed, labels, random):
    pairs = some_pairs(seed)
    whole = compute(pairs)
    random.shuffle(pairs)
    lookup = np.append(labels, np.full(256 - 5, IGNORE))
    moved = [(lookup[ground_truth], lookup[predictions]) for ground_truth, predictions in pairs]
    parts = [SemanticQuality(CATEGORIES), SemanticQuality(CATEGORIES)]
    for index, pair in enumerate(moved):
        parts[index >= 2].update(*(SemanticMap(one, CATEGORIES) for one in pair))
    merged = parts[0].merge(parts[1]).compute()
    assert merged.figures == pytest.approx(whole.figures, abs=1e-12, nan_ok=True)
    np.testing.assert_array_equal(merged.confusion[:, :5][labels][:, labels], whole.confusion[:, :5])
    assert merged.boundary_f[labels] == pytest.approx(whole.boundary_f, nan_ok=True)


def test_what_does_not_fit_is_refused():
    metric = SemanticQuality(CATEGORIES)
    one, other = SemanticMap(np.zeros((4, 4), int), CATEGORIES), SemanticMap(np.zeros((4, 5), int), CATEGORIES)
    with pytest.raises(ShapeError, match=r"\(4, 4\), got \(4, 5\)"):
        metric.update(one, other)
    with pytest.raises(UsageError, match="the ground truth has other categories"):
        metric.update(SemanticMap(np.zeros((4, 4), int), Categories(("x",))), one)
    with pytest.raises(UsageError, match="tolerance"):
        metric.merge(SemanticQuality(CATEGORIES, tolerance=0.1))
    with pytest.raises(UsageError, match="tolerance"):
        SemanticQuality(CATEGORIES, tolerance=2)
