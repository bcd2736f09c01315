"""Compiled kernel of :mod:`otus.metrics.detection.precision_recall`: the curves of a range of categories."""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus._numba import kernel
from otus.metrics.detection._pair_kernels import order_by_descending_score

# numpy.spacing(1): pycocotools adds it so that the precision of 0 detections is defined.
EPSILON = 2.220446049250313e-16


@kernel
def interpolated_curves(
    first_label: int,
    last_label: int,
    starts: Int[np.ndarray, "k_plus_1"],
    ranks: Int[np.ndarray, "d"],
    scores: Float[np.ndarray, "d"],
    ignored_unmatched: Bool[np.ndarray, "d a"],
    rows: Int[np.ndarray, "d"],
    outcomes: UInt8[np.ndarray, "c a t"],
    positives: Int[np.ndarray, "k a"],
    recalls: Float[np.ndarray, "r"],
    max_dets: Int[np.ndarray, "m"],
    precision: Float[np.ndarray, "k a m t r"],
    recall: Float[np.ndarray, "k a m t"],
    scores_at: Float[np.ndarray, "k a m t r"],
) -> None:
    """Fill ``precision``, ``recall`` and ``scores_at`` of some labels.

    Detections are ordered by label; those of label k are ``starts[k]`` to ``starts[k + 1]``; equal scores keep their
    order. Labels and area ranges without positives are not written. ``recalls`` and ``max_dets`` must ascend.
    """
    ranges, thresholds, limits = positives.shape[1], outcomes.shape[2], len(max_dets)
    for k in range(first_label, last_label):
        max_positives = 0
        for a in range(ranges):
            max_positives = max(max_positives, positives[k, a])
        if max_positives == 0:
            continue
        order = starts[k] + order_by_descending_score(scores[starts[k] : starts[k + 1]])
        precision_at_true = np.empty((limits, thresholds, max_positives))
        score_at_true = np.empty((limits, thresholds, max_positives))
        for a in range(ranges):
            if positives[k, a] == 0:
                continue
            num_detections = np.zeros(limits, np.int64)
            top_score = np.zeros(limits)
            false_everywhere = np.zeros(limits, np.int64)
            true_positives = np.zeros((limits, thresholds), np.int64)
            false_positives = np.zeros((limits, thresholds), np.int64)
            for i in order:
                first_limit = 0
                while first_limit < limits and ranks[i] >= max_dets[first_limit]:
                    first_limit += 1
                row = rows[i]
                for m in range(first_limit, limits):
                    if num_detections[m] == 0:
                        top_score[m] = scores[i]
                    num_detections[m] += 1
                    if row < 0:
                        false_everywhere[m] += not ignored_unmatched[i, a]
                        continue
                    for t in range(thresholds):
                        if outcomes[row, a, t] == 0:
                            false_positives[m, t] += 1
                        elif outcomes[row, a, t] == 1:
                            n = true_positives[m, t]
                            true_positives[m, t] = n + 1
                            counted = float(false_everywhere[m] + false_positives[m, t] + n + 1) + EPSILON
                            precision_at_true[m, t, n] = (n + 1) / counted
                            score_at_true[m, t, n] = scores[i]
            for m in range(limits):
                for t in range(thresholds):
                    num_true = true_positives[m, t]
                    envelope = precision_at_true[m, t]
                    for n in range(num_true - 1, 0, -1):
                        envelope[n - 1] = max(envelope[n - 1], envelope[n])
                    recall[k, a, m, t] = num_true / positives[k, a]
                    n = 0
                    for r in range(len(recalls)):
                        # Recall increases only at true positives, so the curve is read there (and at the start).
                        while n < num_true and (n + 1) / positives[k, a] < recalls[r]:
                            n += 1
                        at_start = recalls[r] <= 0 and num_detections[m] > 0
                        precision[k, a, m, t, r] = envelope[n] if n < num_true else 0.0
                        if at_start:
                            scores_at[k, a, m, t, r] = top_score[m]
                        else:
                            scores_at[k, a, m, t, r] = score_at_true[m, t, n] if n < num_true else 0.0
