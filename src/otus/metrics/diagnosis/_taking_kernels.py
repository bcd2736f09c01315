"""Compiled: which true object each detection takes (see :mod:`otus.metrics.diagnosis.comparison`)."""

import numpy as np
from jaxtyping import Bool, Float, Int

from otus._numba import kernel


@kernel
def assign_greedily(
    offsets: Int[np.ndarray, "d_plus_1"],
    truths: Int[np.ndarray, "p"],
    similarities: Float[np.ndarray, "p"],
    thresholds: Float[np.ndarray, "t"],
    ignored: Bool[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
) -> tuple[Int[np.ndarray, "d t"], Float[np.ndarray, "d t"]]:
    """What each detection takes at each threshold by the rule of :func:`otus.metrics.detection.matching.match_image`, and how
    similar it is; -1 and 0 for nothing."""
    count = len(offsets) - 1
    used = np.zeros((len(ignored), len(thresholds)), np.bool_)
    taken = np.full((count, len(thresholds)), -1, np.int64)
    overlaps = np.zeros((count, len(thresholds)))
    for d in range(count):
        for t in range(len(thresholds)):
            for ignored_turn in (False, True):
                best = min(thresholds[t], 1 - 1e-10)
                for p in range(offsets[d], offsets[d + 1]):
                    g = truths[p]
                    if ignored[g] == ignored_turn and (crowd[g] or not used[g, t]) and similarities[p] >= best:
                        best = similarities[p]
                        taken[d, t] = g
                        overlaps[d, t] = best
                if taken[d, t] >= 0:
                    used[taken[d, t], t] = True
                    break
    return taken, overlaps


@kernel
def suppress(
    offsets: Int[np.ndarray, "d_plus_1"],
    others: Int[np.ndarray, "p"],
    similarities: Float[np.ndarray, "p"],
    threshold: float,
) -> Bool[np.ndarray, "d"]:
    """Which detections stay when, from the first on, each takes away the later ones more similar than ``threshold``."""
    kept = np.ones(len(offsets) - 1, np.bool_)
    for d in range(len(kept)):
        if kept[d]:
            for p in range(offsets[d], offsets[d + 1]):
                if others[p] > d and similarities[p] > threshold:
                    kept[others[p]] = False
    return kept
