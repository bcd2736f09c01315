"""Compiled matching of detections to ground truth (see :mod:`otus.metrics.detection.matching`).

Shape shorthand: D detections by descending score, G ground truths, P pairs, A area ranges, T thresholds.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus._numba import kernel

FALSE_POSITIVE, TRUE_POSITIVE, IGNORED = 0, 1, 2


@kernel
def match_greedily(
    offsets: Int[np.ndarray, "d_plus_1"],
    ground_truths: Int[np.ndarray, "p"],
    similarities: Float[np.ndarray, "p"],
    thresholds: Float[np.ndarray, "t"],
    ignored: Bool[np.ndarray, "g a"],
    crowd: Bool[np.ndarray, "g"],
    ignored_unmatched: Bool[np.ndarray, "d a"],
    matched_pairs: Int[np.ndarray, "_ _ _"],
) -> UInt8[np.ndarray, "d a t"]:
    """Return the outcomes by the rule of :func:`otus.metrics.detection.matching.match_image`.

    ``matched_pairs`` (D, A, T), initially -1, is filled with the index of the pair that matches each detection; it is
    an empty array (0, 0, 0) if only the outcomes are needed.
    """
    ranges = ignored.shape[1]
    used = np.zeros((len(ignored), ranges, len(thresholds)), np.bool_)
    outcomes = np.empty((len(offsets) - 1, ranges, len(thresholds)), np.uint8)
    for d in range(len(offsets) - 1):
        for a in range(ranges):
            for t in range(len(thresholds)):
                match = -1
                for want_ignored in (False, True):
                    best = min(thresholds[t], 1 - 1e-10)
                    for p in range(offsets[d], offsets[d + 1]):
                        g = ground_truths[p]
                        if ignored[g, a] != want_ignored or (used[g, a, t] and not crowd[g]) or similarities[p] < best:
                            continue
                        best = similarities[p]
                        match = p
                    if match >= 0:
                        break
                if match >= 0:
                    g = ground_truths[match]
                    used[g, a, t] = True
                    outcomes[d, a, t] = IGNORED if ignored[g, a] else TRUE_POSITIVE
                    if len(matched_pairs) > 0:
                        matched_pairs[d, a, t] = match
                else:
                    outcomes[d, a, t] = IGNORED if ignored_unmatched[d, a] else FALSE_POSITIVE
    return outcomes


@kernel
def match_by_best_overlap(
    offsets: Int[np.ndarray, "d_plus_1"],
    ground_truths: Int[np.ndarray, "p"],
    similarities: Float[np.ndarray, "p"],
    threshold: float,
    ignored: Bool[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
) -> UInt8[np.ndarray, "d 1 1"]:
    """Return the outcomes by Pascal VOC's rule: a detection is compared with the ground truth of highest IoU only.

    A detection that would be a false positive is ignored if it lies in a crowd.
    """
    used = np.zeros(len(ignored), np.bool_)
    outcomes = np.full((len(offsets) - 1, 1, 1), FALSE_POSITIVE, np.uint8)
    for d in range(len(offsets) - 1):
        match = -1
        best = threshold
        in_crowd = False
        for p in range(offsets[d], offsets[d + 1]):
            if crowd[ground_truths[p]]:
                in_crowd = in_crowd or similarities[p] >= threshold
            elif similarities[p] > best or (match < 0 and similarities[p] == best):
                best = similarities[p]
                match = ground_truths[p]
        if match >= 0 and ignored[match]:
            outcomes[d, 0, 0] = IGNORED
        elif match >= 0 and not used[match]:
            used[match] = True
            outcomes[d, 0, 0] = TRUE_POSITIVE
        elif in_crowd:
            outcomes[d, 0, 0] = IGNORED
    return outcomes
