"""Top-k accuracy: torchmetrics' figures, ties, and what must hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otus.errors import DataError, ShapeError, UsageError
from otus.metrics.classification import ClassificationAccuracy, ClassificationResult
from otus.structures import Categories

CATEGORIES = Categories(tuple("abcdefgh"))


def labels_and_scores(seed: int, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 7, count)  # none of h
    scores = rng.random((count, 8))
    scores[np.arange(count), labels] += rng.random(count) * 0.5
    return labels, scores


def compute(labels: np.ndarray, scores: np.ndarray, **options) -> ClassificationResult:
    return ClassificationAccuracy(CATEGORIES, **options).update(labels, scores).compute()


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_torchmetrics_says_the_same(k):
    classification = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is a reference")
    import torch

    labels, scores = labels_and_scores(k)
    theirs = {
        average: classification.MulticlassAccuracy(8, top_k=k, average=average)(
            torch.from_numpy(scores), torch.from_numpy(labels)
        )
        for average in ("micro", "none")
    }
    result = compute(labels, scores, top=(k,))
    assert result.figures[f"top{k}"] == pytest.approx(float(theirs["micro"]), abs=1e-6)
    ours = [figures[f"top{k}"] for figures in result.per_category.values()]
    assert np.isnan(ours[7])
    assert ours[:7] == pytest.approx(theirs["none"][:7].tolist(), abs=1e-6)
    assert result.figures["mAcc"] == pytest.approx(np.mean(ours[:7]))


def test_ties_and_answers_that_were_not_given():
    scores = np.array([[0.5, 0.5, 0.5] + [-np.inf] * 5] * 4)
    result = compute(np.array([0, 1, 2, 3]), scores, top=(1, 2, 8))
    assert result.figures == {"top1": 0.25, "top2": 0.5, "top8": 0.75, "mAcc": 0.25}
    nothing = compute(np.zeros(0, int), np.zeros((0, 8)))
    assert np.isnan(list(nothing.figures.values())).all()


@given(st.integers(0, 2**32 - 1), st.permutations(range(40)), st.permutations(range(8)), st.integers(0, 40))
def test_orders_shards_and_rising_maps_do_not_matter(seed, images, categories, cut):
    labels, scores = labels_and_scores(seed)
    whole = compute(labels, scores)
    place = np.argsort(categories)
    moved = 1 / (1 + np.exp(-3 * scores[images][:, categories])), place[labels[images]]
    parts = [
        ClassificationAccuracy(CATEGORIES).update(moved[1][s], moved[0][s]) for s in (slice(cut), slice(cut, None))
    ]
    merged = parts[0].merge(parts[1]).compute()
    assert merged.figures == pytest.approx(whole.figures)
    np.testing.assert_array_equal(merged.hits[:, place], whole.hits)
    assert all(0 <= value <= 1 for value in whole.figures.values())
    assert whole.figures["top1"] <= whole.figures["top5"]
    perfect = compute(labels, np.eye(8)[labels])
    assert set(perfect.figures.values()) == {1}


def test_what_does_not_fit_is_refused():
    labels, scores = labels_and_scores(0, 3)
    for changed, words in (
        ((np.array([0, 8, 1]), scores), r"labels\[1\].*0..7, got 8"),
        ((labels, np.where(np.arange(3)[:, None] == 2, np.nan, scores)), r"scores\[2\]"),
        ((labels, np.where(np.arange(3)[:, None] == 2, np.inf, scores)), r"scores\[2\]"),
    ):
        with pytest.raises(DataError, match=words):
            compute(*changed)
    with pytest.raises(ShapeError, match=r"\(3, 8\).*\(3, 7\)"):
        compute(labels, scores[:, :7])
    with pytest.raises(UsageError, match="top"):
        ClassificationAccuracy(CATEGORIES, top=(5, 1))
    with pytest.raises(UsageError, match="same categories"):
        ClassificationAccuracy(CATEGORIES).merge(ClassificationAccuracy(CATEGORIES, top=(1,)))
