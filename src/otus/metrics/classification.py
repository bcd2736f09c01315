"""Classification: top-k accuracy.

Top-1 and top-5 as in ImageNet (Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015,
section 4), over all images and per category. Departure: ties are ranked by label, so that figures do not depend on a
sort.

Shape shorthand: M images, K categories.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from otus.errors import DataError, ShapeError, UsageError
from otus.metrics._ratios import mean_of_defined, ratio
from otus.structures import Categories


class ClassificationAccuracy:
    """Top-k accuracy over any number of images, in the memory of a few counts per category.

    Parameters
    ----------
    categories
        The K categories.
    top
        Values of k, ascending; one figure each.

    Examples
    --------
    >>> metric = ClassificationAccuracy(Categories(("owl", "mouse", "cat")), top=(1, 2))
    >>> scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    >>> metric.update(np.array([0, 1]), scores).compute().figures
    {'top1': 0.5, 'top2': 1.0, 'mAcc': 0.5}
    """

    def __init__(self, categories: Categories, *, top: tuple[int, ...] = (1, 5)) -> None:
        if not top or min(top) < 1 or sorted(set(top)) != list(top):
            raise UsageError(f"top: expected ascending integers from 1, got {top}")
        self.categories = categories
        self.top = top
        self._images = np.zeros(len(categories), dtype=np.int64)
        self._hits = np.zeros((len(top), len(categories)), dtype=np.int64)

    def update(self, labels: Int[np.ndarray, "m"], scores: Float[np.ndarray, "m k"]) -> Self:
        """Add the scores of M more images.

        Parameters
        ----------
        labels
            (M,) true class index of each image.
        scores
            (M, K) score of each category; -inf for a category that is not predicted.

        Raises
        ------
        ShapeError
            If the shapes do not match.
        DataError
            If a label is out of range, or a score is NaN or inf.
        """
        labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
        count = len(self.categories)
        if labels.ndim != 1 or scores.shape != (len(labels), count):
            raise ShapeError(f"scores: expected shape ({len(labels)}, {count}) for these labels, got {scores.shape}")
        for name, is_valid, values, expected in (
            ("labels", (labels >= 0) & (labels < count), labels, f"0..{count - 1}"),
            ("scores", ~(np.isnan(scores) | np.isposinf(scores)).any(axis=1), scores, "numbers"),
        ):
            for record in np.flatnonzero(~is_valid)[:1].tolist():
                raise DataError(
                    f"expected {expected}, got {values[record].tolist()}",
                    where=f"{name}[{record}]",
                    remedy="correct or remove this record",
                    kind=f"bad_{name}",
                )
        true_scores = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)
        has_lower_label = np.arange(count) < labels[:, None]
        num_better = np.greater(scores, true_scores).sum(axis=1) + (
            np.equal(scores, true_scores) & has_lower_label
        ).sum(axis=1)
        is_predicted = np.isfinite(true_scores[:, 0])
        self._images += np.bincount(labels, minlength=count)
        for row, k in enumerate(self.top):
            self._hits[row] += np.bincount(labels[is_predicted & (num_better < k)], minlength=count)
        return self

    def merge(self, other: "ClassificationAccuracy") -> Self:
        """Add the counts of another metric, of other images and the same categories."""
        if other.categories != self.categories or other.top != self.top:
            raise UsageError("only metrics of the same categories and k can be merged")
        self._images += other._images
        self._hits += other._hits
        return self

    def compute(self) -> "ClassificationResult":
        """Compute the figures of all images so far."""
        return ClassificationResult(self.categories, self.top, self._images.copy(), self._hits.copy())


@dataclass(frozen=True, eq=False)
class ClassificationResult:
    """Counts by category, and their figures.

    Parameters
    ----------
    categories, top
        The K categories, and the values of k.
    images
        (K,) images of each category.
    hits
        (len(top), K) images whose category is among the k highest scores.
    """

    categories: Categories
    top: tuple[int, ...]
    images: Int[np.ndarray, "k"]
    hits: Int[np.ndarray, "t k"]
    figures: Mapping[str, float] = field(init=False)
    """top1, top5, and mAcc: the mean over categories of the first of these."""
    per_category: Mapping[str, Mapping[str, float]] = field(init=False)
    """top1 and top5 by category name; NaN for a category without images."""

    def __post_init__(self) -> None:
        by_category = {f"top{k}": ratio(hits, self.images) for k, hits in zip(self.top, self.hits, strict=True)}
        total = int(self.images.sum())
        figures = {
            f"top{k}": int(hits.sum()) / total if total else float("nan")
            for k, hits in zip(self.top, self.hits, strict=True)
        }
        figures["mAcc"] = mean_of_defined(by_category[f"top{self.top[0]}"])
        per_category = {
            category: {name: float(values[label]) for name, values in by_category.items()}
            for label, category in enumerate(self.categories)
        }
        object.__setattr__(self, "figures", figures)
        object.__setattr__(self, "per_category", per_category)
