"""Precision-recall curves, their interpolation, and the area under them.

Shape shorthand: D detections, T IoU thresholds, R recall thresholds, K categories, A area ranges, M limits on detections.

In descending order of score, recall = TP / positives and precision = TP / (TP + FP). The interpolated precision at a
recall is the highest precision at that recall or a higher one.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from otus.metrics.detection import _curve_kernels as kernels
from otus.metrics.detection.matching import MatchResults

WORKERS = min(os.cpu_count() or 1, 8)
"""Number of threads; the kernels release the GIL."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Interpolated curves in the layout of pycocotools' ``eval``: -1 where there are no positives.

    Parameters
    ----------
    precision
        (T, R, K, A, M) interpolated precision at each recall threshold.
    recall
        (T, K, A, M) maximum recall.
    scores
        (T, R, K, A, M) score at which each recall threshold is reached, 0 if it is not.
    """

    precision: Float[np.ndarray, "t r k a m"]
    recall: Float[np.ndarray, "t k a m"]
    scores: Float[np.ndarray, "t r k a m"]


def interpolated_curves(
    matches: MatchResults, *, recall_thresholds: Float[np.ndarray, "r"], max_dets: tuple[int, ...]
) -> Curves:
    """Compute the curves of all categories from matches ordered by label; equal scores keep their order.

    ``recall_thresholds`` and ``max_dets`` must ascend.
    """
    label_count, ranges = matches.positives.shape
    shape = (label_count, ranges, len(max_dets), matches.outcomes.shape[2])
    precision = np.full((*shape, len(recall_thresholds)), -1.0)
    recall = np.full(shape, -1.0)
    scores = np.full((*shape, len(recall_thresholds)), -1.0)
    starts = np.searchsorted(matches.labels, np.arange(label_count + 1))
    inputs = (
        starts, matches.ranks, matches.scores, matches.ignored_unmatched, matches.rows, matches.outcomes,
        matches.positives, np.asarray(recall_thresholds, dtype=np.float64), np.array(max_dets, dtype=np.int64),
        precision, recall, scores,
    )  # fmt: skip
    cuts = np.searchsorted(starts, np.linspace(0, starts[-1], WORKERS + 1)[1:-1])
    bounds = [0, *cuts.tolist(), label_count]
    with ThreadPoolExecutor(WORKERS) as pool:
        parts = [pool.submit(kernels.interpolated_curves, a, b, *inputs) for a, b in pairwise(bounds)]
        for part in parts:
            part.result()
    return Curves(precision.transpose(3, 4, 0, 1, 2), recall.transpose(3, 0, 1, 2), scores.transpose(3, 4, 0, 1, 2))


def curve(
    is_true: Bool[np.ndarray, "d"], is_false: Bool[np.ndarray, "d"], positives: int
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    """Return precision and recall after each detection, in descending order of score; ignored ones change neither."""
    true_positives = np.cumsum(is_true).astype(np.float64)
    counted = np.cumsum(is_false) + true_positives
    return true_positives / (counted + np.spacing(1)), true_positives / positives


def envelope(precision: Float[np.ndarray, "d"]) -> Float[np.ndarray, "d"]:
    """Return the precision envelope: at each position, the highest precision from there on."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def interpolate(
    precision: Float[np.ndarray, "d"], recall: Float[np.ndarray, "d"], recall_thresholds: Float[np.ndarray, "r"]
) -> Float[np.ndarray, "r"]:
    """Return the interpolated precision at each recall threshold, 0 if it is not reached."""
    positions = np.searchsorted(recall, recall_thresholds, side="left")
    return np.append(envelope(precision), 0.0)[positions]
