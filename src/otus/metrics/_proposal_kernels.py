"""Compiled inner loop of the recall of proposals.

Shape shorthand: P proposals, G ground truths, C numbers of proposals.
"""

import numpy as np
from jaxtyping import Float, Int

from otus._numba import kernel


@kernel
def best_overlaps(
    proposals: Float[np.ndarray, "p 4"],
    spans: Int[np.ndarray, "m 2"],
    ground_truths: Float[np.ndarray, "g 4"],
    images: Int[np.ndarray, "g"],
    counts: Int[np.ndarray, "c"],
) -> Float[np.ndarray, "g c"]:
    """Return the highest IoU of each ground truth (xyxy) with the first proposals of its image; ``counts`` ascend."""
    best = np.zeros((len(ground_truths), len(counts)))
    for g in range(len(ground_truths)):
        first, last = spans[images[g]]
        box = ground_truths[g]
        area = (box[2] - box[0]) * (box[3] - box[1])
        largest = 0.0
        p = first
        for c in range(len(counts)):
            while p < last and p - first < counts[c]:
                other = proposals[p]
                width = min(box[2], other[2]) - max(box[0], other[0])
                height = min(box[3], other[3]) - max(box[1], other[1])
                if width > 0 and height > 0:
                    intersection = width * height
                    union = area + (other[2] - other[0]) * (other[3] - other[1]) - intersection
                    largest = max(largest, intersection / union)
                p += 1
            best[g, c] = largest
    return best
