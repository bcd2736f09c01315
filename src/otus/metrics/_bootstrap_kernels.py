"""Compiled: AP of resampled pictures (see :mod:`otus.metrics.bootstrap`)."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from otus._numba import kernel
from otus.metrics._curve_kernels import EPSILON
from otus.metrics._matching_kernels import FALSE, TRUE


@kernel
def resampled_average_precision(
    first: int,
    last: int,
    weights: Int[np.ndarray, "r m"],
    starts: Int[np.ndarray, "k_plus_1"],
    pictures: Int[np.ndarray, "d"],
    verdicts: UInt8[np.ndarray, "d t"],
    truth_labels: Int[np.ndarray, "g"],
    truth_pictures: Int[np.ndarray, "g"],
    recalls: Float[np.ndarray, "q"],
    figures: Float[np.ndarray, "r k t"],
) -> None:
    """Fill ``figures`` of some resamples; a picture counts as often as ``weights`` says.

    Detections are by label (``starts``) and falling score; true objects are those that count. Without ``recalls`` AP is the
    whole area. Categories without objects become NaN.
    """
    labels, thresholds = len(starts) - 1, verdicts.shape[1]
    most = 0
    for k in range(labels):
        most = max(most, starts[k + 1] - starts[k])
    precision = np.empty(most)
    found_at = np.empty(most)
    positives = np.empty(labels)
    for r in range(first, last):
        positives[:] = 0
        for g in range(len(truth_labels)):
            positives[truth_labels[g]] += weights[r, truth_pictures[g]]
        for k in range(labels):
            for t in range(thresholds):
                if positives[k] == 0:
                    figures[r, k, t] = np.nan
                    continue
                found = 0.0
                counted = EPSILON
                points = 0
                for d in range(starts[k], starts[k + 1]):
                    weight = weights[r, pictures[d]]
                    if weight == 0:
                        continue
                    if verdicts[d, t] == FALSE:
                        counted += weight
                    elif verdicts[d, t] == TRUE:
                        counted += weight
                        found += weight
                        precision[points] = found / counted
                        found_at[points] = found
                        points += 1
                for p in range(points - 1, 0, -1):
                    precision[p - 1] = max(precision[p - 1], precision[p])
                area = 0.0
                if len(recalls) == 0:
                    before = 0.0
                    for p in range(points):
                        area += (found_at[p] - before) / positives[k] * precision[p]
                        before = found_at[p]
                else:
                    p = 0
                    for recall in recalls:
                        while p < points and found_at[p] / positives[k] < recall:
                            p += 1
                        if p == points:
                            break
                        area += precision[p] / len(recalls)
                figures[r, k, t] = area
