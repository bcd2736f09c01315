"""Compiled kernel of :mod:`otus.metrics.diagnosis.bootstrap`: AP of resampled images."""

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
    gt_image_index: Int[np.ndarray, "g"],
    recalls: Float[np.ndarray, "q"],
    figures: Float[np.ndarray, "r k t"],
) -> None:
    """Fill ``figures`` for resamples ``first`` to ``last``; ``weights`` says how often each image is in a resample.

    Detections are ordered by label (``starts``) and descending score; those of label k that are not false positives at
    threshold t are ``special[special_starts[k * T + t] : special_starts[k * T + t + 1]]``. Ground truths are the
    positives. With empty ``recalls``, AP is the area under the curve. Categories without positives become NaN.
    """
    labels, thresholds = len(starts) - 1, outcomes.shape[1]
    max_detections = 0
    for k in range(labels):
        max_detections = max(max_detections, starts[k + 1] - starts[k])
    cumulative_weights = np.empty(max_detections)
    precision = np.empty(max_detections)
    true_positives_at = np.empty(max_detections)
    positives = np.empty(labels)
    for r in range(first, last):
        positives[:] = 0
        for g in range(len(gt_labels)):
            positives[gt_labels[g]] += weights[r, gt_image_index[g]]
        for k in range(labels):
            if positives[k] == 0:
                figures[r, k] = np.nan
                continue
            total = 0.0
            for d in range(starts[k], starts[k + 1]):
                total += weights[r, image_index[d]]
                cumulative_weights[d - starts[k]] = total
            for t in range(thresholds):
                true_positives = 0.0
                ignored = 0.0
                points = 0
                for s in range(special_starts[k * thresholds + t], special_starts[k * thresholds + t + 1]):
                    d = special[s]
                    weight = weights[r, image_index[d]]
                    if weight == 0:
                        continue
                    if outcomes[d, t] == TRUE_POSITIVE:
                        true_positives += weight
                        precision[points] = true_positives / (cumulative_weights[d - starts[k]] - ignored + EPSILON)
                        true_positives_at[points] = true_positives
                        points += 1
                    else:
                        ignored += weight
                for p in range(points - 1, 0, -1):
                    precision[p - 1] = max(precision[p - 1], precision[p])
                area = 0.0
                if len(recalls) == 0:
                    previous = 0.0
                    for p in range(points):
                        area += (true_positives_at[p] - previous) / positives[k] * precision[p]
                        previous = true_positives_at[p]
                else:
                    p = 0
                    for recall in recalls:
                        while p < points and true_positives_at[p] / positives[k] < recall:
                            p += 1
                        if p == points:
                            break
                        area += precision[p] / len(recalls)
                figures[r, k, t] = area
