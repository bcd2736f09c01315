"""Compiled non-maximum suppression over given pairs, used by :func:`otus.metrics.diagnosis.thresholds.nms_mask`."""

import numpy as np
from jaxtyping import Bool, Float, Int

from otus._numba import kernel


@kernel
def nms(
    offsets: Int[np.ndarray, "d_plus_1"],
    others: Int[np.ndarray, "p"],
    ious: Float[np.ndarray, "p"],
    threshold: float,
) -> Bool[np.ndarray, "d"]:
    """Return which detections (in descending order of score) are kept: each suppresses later ones of a higher IoU."""
    kept = np.ones(len(offsets) - 1, np.bool_)
    for d in range(len(kept)):
        if kept[d]:
            for p in range(offsets[d], offsets[d + 1]):
                if others[p] > d and ious[p] > threshold:
                    kept[others[p]] = False
    return kept
