"""Paired bootstrap over images: is the difference in AP between two models significant?

Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13: draw M of the M images with replacement,
evaluate both models on this resample, and repeat; percentiles of the difference are its confidence interval. Detections
are matched once; an image that is drawn twice has weight 2.

Shape shorthand: R resamples, M images, K categories, T IoU thresholds.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from otus.errors import UsageError
from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.precision_recall import WORKERS
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis import _bootstrap_kernels as kernels
from otus.metrics.diagnosis.assignment import Assignment, DetectionMatcher

RESAMPLES, CONFIDENCE, SEED = 1000, 0.95, 0
_NAN = float("nan")


@dataclass(frozen=True)
class Difference:
    """A figure of two models: ``b - a`` with its confidence interval.

    Parameters
    ----------
    name
        Name of the figure, or the category whose AP it is.
    a, b
        Values on all images; NaN without positives.
    low, high
        Confidence interval of the difference.
    a_better, b_better
        Fraction of the resamples in which each is higher; the rest are ties.
    """

    name: str
    a: float
    b: float
    low: float
    high: float
    a_better: float
    b_better: float

    @property
    def difference(self) -> float:
        """``b - a``."""
        return self.b - self.a


def resample_images(images: int, *, resamples: int, seed: int) -> Int[np.ndarray, "r m"]:
    """Return how often each image is drawn in each resample, (R, M)."""
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, images, (resamples, images)) if images else np.zeros((resamples, 0), dtype=np.int64)
    offsets = np.arange(resamples)[:, None] * images
    return np.bincount((indices + offsets).ravel(), minlength=resamples * images).reshape(resamples, images)


def resampled_average_precision(
    matcher: DetectionMatcher, matches: Assignment, weights: Int[np.ndarray, "r m"]
) -> Float[np.ndarray, "r k t"]:
    """Compute AP of each category and threshold in each resample; NaN without positives."""
    labels = len(matches.positives)
    order = np.concatenate([matches.by_score(label) for label in range(labels)]) if labels else np.zeros(0, np.int64)
    starts = np.searchsorted(matches.labels, np.arange(labels + 1))
    figures = np.empty((len(weights), labels, matches.matched.shape[1]))
    ground_truth, outcomes = matcher.ground_truth, matches.outcomes[order]
    special, thresholds = np.nonzero(outcomes != Outcome.FALSE_POSITIVE)
    cell = matches.labels[order][special] * outcomes.shape[1] + thresholds
    by_cell = np.argsort(cell, kind="stable")
    special_starts = np.searchsorted(cell[by_cell], np.arange(labels * outcomes.shape[1] + 1))
    inputs = (
        weights, starts, matches.image_index[order], outcomes, special_starts, special[by_cell],
        ground_truth.labels[matches.is_positive], ground_truth.image_index[matches.is_positive],
        matches.rules.recalls, figures,
    )  # fmt: skip
    bounds = np.linspace(0, len(weights), WORKERS + 1).astype(np.int64).tolist()
    with ThreadPoolExecutor(WORKERS) as pool:
        parts = [pool.submit(kernels.resampled_average_precision, a, b, *inputs) for a, b in pairwise(bounds)]
        for part in parts:
            part.result()
    return figures


def paired_bootstrap(
    a: DetectionMatcher,
    b: DetectionMatcher,
    rules: Rules,
    *,
    masks: bool = False,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> list[Difference]:
    """Compute the difference of each figure with its confidence interval.

    The figures are AP, AP50 and AP75 (if the rules have these thresholds), and AP by category.

    Parameters
    ----------
    a, b
        Predictions of the models for the same labels.
    rules, masks
        See :meth:`~otus.metrics.diagnosis.assignment.DetectionMatcher.match`.
    confidence
        Confidence of the percentile intervals.

    Raises
    ------
    UsageError
        If the labels differ, or an option is out of its range.
    """
    if a.ground_truth is not b.ground_truth and not np.array_equal(
        a.ground_truth.boxes_xyxy, b.ground_truth.boxes_xyxy
    ):
        raise UsageError("expected the same ground truth for both models")
    if resamples < 1 or not 0 < confidence < 1:
        raise UsageError(
            f"expected 1 or more resamples and a confidence between 0 and 1, got {resamples} and {confidence}"
        )
    images = len(a.image_ids)
    weights = resample_images(images, resamples=resamples, seed=seed)
    matches = [matcher.match(rules, masks=masks) for matcher in (a, b)]
    resampled = [resampled_average_precision(matcher, m, weights) for matcher, m in zip((a, b), matches, strict=True)]
    on_all_images = [assignment.average_precision()[None] for assignment in matches]
    thresholds = np.array(rules.iou_thresholds)
    columns = {"AP": np.ones(len(thresholds), dtype=bool)}
    for name, iou in (("AP50", 0.5), ("AP75", 0.75)):
        is_averaged = np.abs(thresholds - iou) < 1e-9
        if is_averaged.any():
            columns[name] = is_averaged
    rows = [(name, slice(None), is_averaged) for name, is_averaged in columns.items()]
    rows += [(name, slice(k, k + 1), columns["AP"]) for k, name in enumerate(a.categories)]
    differences = []
    for name, labels, is_averaged in rows:
        resampled_means = [_mean(figures[:, labels][:, :, is_averaged]) for figures in resampled]
        means = [float(_mean(figures[:, labels][:, :, is_averaged])[0]) for figures in on_all_images]
        change = resampled_means[1] - resampled_means[0]
        change = change[~np.isnan(change)]
        if not len(change):
            differences.append(Difference(name, means[0], means[1], low=_NAN, high=_NAN, a_better=_NAN, b_better=_NAN))
            continue
        tail = (1 - confidence) / 2
        low, high = np.quantile(change, [tail, 1 - tail])
        a_better, b_better = float((change < 0).mean()), float((change > 0).mean())
        differences.append(Difference(name, means[0], means[1], float(low), float(high), a_better, b_better))
    return differences


def _mean(figures: Float[np.ndarray, "r k t"]) -> Float[np.ndarray, "r"]:
    """Return the mean over defined categories and thresholds; NaN if none is defined."""
    defined = ~np.isnan(figures)
    sums, counts = np.where(defined, figures, 0).sum(axis=(1, 2)), defined.sum(axis=(1, 2))
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
