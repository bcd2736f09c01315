"""Compiled kernels for :mod:`otus.structures.maps`: class scores interpolated to another size, their argmax or sum."""

import numpy as np
from jaxtyping import Float, Int

from otus._numba import kernel


@kernel
def _neighbours(
    output: int, source: int
) -> tuple[Int[np.ndarray, "output"], Int[np.ndarray, "output"], Float[np.ndarray, "output"]]:
    """Return the source pixels before and after the centre of each output pixel, and the weight of the latter."""
    before, after = np.empty(output, np.int64), np.empty(output, np.int64)
    weights = np.empty(output, np.float32)
    for i in range(output):
        centre = max((i + 0.5) * source / output - 0.5, 0.0)
        before[i] = int(centre)
        after[i] = min(before[i] + 1, source - 1)
        weights[i] = centre - before[i]
    return before, after, weights


@kernel
def argmax_of_interpolated(scores: Float[np.ndarray, "k h w"], labels: Int[np.ndarray, "h2 w2"]) -> None:
    """Interpolate scores bilinearly to the size of ``labels`` and write their argmax over classes (ties: the first).

    Only one row of one class is interpolated at a time, so memory does not grow with the output.
    """
    top, bottom, weights_y = _neighbours(labels.shape[0], scores.shape[1])
    left, right, weights_x = _neighbours(labels.shape[1], scores.shape[2])
    row = np.empty(scores.shape[2], np.float32)
    best = np.empty(labels.shape[1], np.float32)
    for y in range(labels.shape[0]):
        labels[y] = 0
        for label in range(scores.shape[0]):
            for x in range(len(row)):
                above = scores[label, top[y], x]
                row[x] = above + weights_y[y] * (scores[label, bottom[y], x] - above)
            for x in range(len(best)):
                before = row[left[x]]
                score = before + weights_x[x] * (row[right[x]] - before)
                if label == 0:
                    best[x] = score
                elif score > best[x]:
                    best[x] = score
                    labels[y, x] = label


@kernel
def add_interpolated(
    total: Float[np.ndarray, "k rows w2"],
    scores: Float[np.ndarray, "k h w"],
    size_hw: tuple[int, int],
    first_row: int,
    row_weights: Float[np.ndarray, "rows"],
    column_weights: Float[np.ndarray, "w2"],
) -> None:
    """Interpolate scores bilinearly to ``size_hw`` and add the weighted rows from ``first_row`` on to ``total``."""
    top, bottom, weights_y = _neighbours(size_hw[0], scores.shape[1])
    left, right, weights_x = _neighbours(size_hw[1], scores.shape[2])
    row = np.empty(scores.shape[2], np.float32)
    for label in range(scores.shape[0]):
        for i in range(total.shape[1]):
            y = first_row + i
            for x in range(len(row)):
                above = scores[label, top[y], x]
                row[x] = (above + weights_y[y] * (scores[label, bottom[y], x] - above)) * row_weights[i]
            for x in range(total.shape[2]):
                before = row[left[x]]
                total[label, i, x] += (before + weights_x[x] * (row[right[x]] - before)) * column_weights[x]
