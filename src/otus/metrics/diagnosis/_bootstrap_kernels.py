"""Compiled: AP of resampled images (see :mod:`otus.metrics.diagnosis.bootstrap`)."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from otus._numba import kernel
from otus.metrics.detection._curve_kernels import EPSILON
from otus.metrics.detection._matching_kernels import TRUE_POSITIVE


@kernel
def resampled_average_precision(
    first: int,
    last: int,
    weights: Int[np.ndarray, "r m"],
    starts: Int[np.ndarray, "k_plus_1"],
    image_index: Int[np.ndarray, "d"],
    outcomes: UInt8[np.ndarray, "d t"],
    special_starts: Int[np.ndarray, "kt_plus_1"],
    special: Int[np.ndarray, "s"],
    gt_labels: Int[np.ndarray, "g"],
    truth_image_index: Int[np.ndarray, "g"],
    recalls: Float[np.ndarray, "q"],
    figures: Float[np.ndarray, "r k t"],
) -> None:
    """Fill ``figures`` of some resamples; an image counts ``weights`` times.

    Detections are by label (``starts``) and falling score; those of label k that are not false at threshold t are
    ``special[special_starts[k * T + t]:]`` up to the next start. True objects are those that count. Without ``recalls`` AP
    is the whole area. Categories without objects become NaN.
    """
    labels, thresholds = len(starts) - 1, outcomes.shape[1]
    most = 0
    for k in range(labels):
        most = max(most, starts[k + 1] - starts[k])
    passed = np.empty(most)
    precision = np.empty(most)
    found_at = np.empty(most)
    positives = np.empty(labels)
    for r in range(first, last):
        positives[:] = 0
        for g in range(len(gt_labels)):
            positives[gt_labels[g]] += weights[r, truth_image_index[g]]
        for k in range(labels):
            if positives[k] == 0:
                figures[r, k] = np.nan
                continue
            total = 0.0
            for d in range(starts[k], starts[k + 1]):
                total += weights[r, image_index[d]]
                passed[d - starts[k]] = total
            for t in range(thresholds):
                found = 0.0
                ignored = 0.0
                points = 0
                for s in range(special_starts[k * thresholds + t], special_starts[k * thresholds + t + 1]):
                    d = special[s]
                    weight = weights[r, image_index[d]]
                    if weight == 0:
                        continue
                    if outcomes[d, t] == TRUE_POSITIVE:
                        found += weight
                        precision[points] = found / (passed[d - starts[k]] - ignored + EPSILON)
                        found_at[points] = found
                        points += 1
                    else:
                        ignored += weight
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
