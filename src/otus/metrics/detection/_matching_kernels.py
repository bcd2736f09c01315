"""Compiled: what becomes of each detection (see :mod:`otus.metrics.detection.matching`)."""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus._numba import kernel

FALSE, TRUE, IGNORED = 0, 1, 2


@kernel
def match_greedily(
    offsets: Int[np.ndarray, "d_plus_1"],
    truths: Int[np.ndarray, "p"],
    similarities: Float[np.ndarray, "p"],
    thresholds: Float[np.ndarray, "t"],
    ignored: Bool[np.ndarray, "g a"],
    crowd: Bool[np.ndarray, "g"],
    ignored_unmatched: Bool[np.ndarray, "d a"],
) -> UInt8[np.ndarray, "d a t"]:
    """Verdicts by the rule of :func:`otus.metrics.detection.matching.match_image`, at every threshold and area range."""
    ranges = ignored.shape[1]
    taken = np.zeros((len(ignored), ranges, len(thresholds)), np.bool_)
    verdicts = np.empty((len(offsets) - 1, ranges, len(thresholds)), np.uint8)
    for d in range(len(offsets) - 1):
        for a in range(ranges):
            for t in range(len(thresholds)):
                match = -1
                for ignored_turn in (False, True):
                    best = min(thresholds[t], 1 - 1e-10)
                    for p in range(offsets[d], offsets[d + 1]):
                        g = truths[p]
                        if ignored[g, a] != ignored_turn or (taken[g, a, t] and not crowd[g]) or similarities[p] < best:
                            continue
                        best = similarities[p]
                        match = g
                    if match >= 0:
                        break
                if match >= 0:
                    taken[match, a, t] = True
                    verdicts[d, a, t] = IGNORED if ignored[match, a] else TRUE
                else:
                    verdicts[d, a, t] = IGNORED if ignored_unmatched[d, a] else FALSE
    return verdicts


@kernel
def judge_by_best_overlap(
    offsets: Int[np.ndarray, "d_plus_1"],
    truths: Int[np.ndarray, "p"],
    similarities: Float[np.ndarray, "p"],
    threshold: float,
    ignored: Bool[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
) -> UInt8[np.ndarray, "d 1 1"]:
    """Verdicts by Pascal VOC's rule: a detection is about the object that it overlaps most, taken already or not.

    One that would be false is ignored if it lies in a crowd.
    """
    taken = np.zeros(len(ignored), np.bool_)
    verdicts = np.full((len(offsets) - 1, 1, 1), FALSE, np.uint8)
    for d in range(len(offsets) - 1):
        match = -1
        best = threshold
        in_crowd = False
        for p in range(offsets[d], offsets[d + 1]):
            if crowd[truths[p]]:
                in_crowd = in_crowd or similarities[p] >= threshold
            elif similarities[p] > best or (match < 0 and similarities[p] == best):
                best = similarities[p]
                match = truths[p]
        if match >= 0 and ignored[match]:
            verdicts[d, 0, 0] = IGNORED
        elif match >= 0 and not taken[match]:
            taken[match] = True
            verdicts[d, 0, 0] = TRUE
        elif in_crowd:
            verdicts[d, 0, 0] = IGNORED
    return verdicts
