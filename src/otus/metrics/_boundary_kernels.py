"""Compiled kernels for boundary F (:mod:`otus.metrics.semantic`): count boundary pixels, and those near another's."""

import numpy as np
from jaxtyping import Int

from otus._numba import kernel


@kernel
def _is_boundary(labels: Int[np.ndarray, "h w"], y: int, x: int, label: int) -> bool:
    """Return whether some but not all of a pixel and its right, lower and lower right neighbours are of a category."""
    height, width = labels.shape
    right, below = min(x + 1, width - 1), min(y + 1, height - 1)
    inside = labels[y, x] == label
    return (
        (labels[y, right] == label) != inside
        or (labels[below, x] == label) != inside
        or (labels[below, right] == label) != inside
    )


@kernel
def _count_near(
    labels: Int[np.ndarray, "h w"],
    others: Int[np.ndarray, "h w"],
    offsets_yx: Int[np.ndarray, "o 2"],
    category_count: int,
    total: Int[np.ndarray, "k"],
    near: Int[np.ndarray, "k"],
) -> None:
    height, width = labels.shape
    for y in range(height):
        for x in range(width):
            right, below = min(x + 1, width - 1), min(y + 1, height - 1)
            window = (labels[y, x], labels[y, right], labels[below, x], labels[below, right])
            if window[0] == window[1] == window[2] == window[3]:
                continue
            for i in range(4):
                label = window[i]
                is_counted = label >= category_count
                for j in range(i):
                    is_counted = is_counted or window[j] == label
                if is_counted:
                    continue
                total[label] += 1
                for o in range(len(offsets_yx)):
                    other_y, other_x = y + offsets_yx[o, 0], x + offsets_yx[o, 1]
                    if 0 <= other_y < height and 0 <= other_x < width and _is_boundary(others, other_y, other_x, label):
                        near[label] += 1
                        break


@kernel
def boundary_counts(
    ground_truth: Int[np.ndarray, "h w"],
    prediction: Int[np.ndarray, "h w"],
    offsets_yx: Int[np.ndarray, "o 2"],
    category_count: int,
) -> Int[np.ndarray, "4 k"]:
    """Count boundary pixels per category (columns).

    Rows: pixels of the ground truth, those of them near the prediction's boundary, pixels of the prediction, those of
    them near the ground truth's. Near means at one of the offsets, which should be sorted by distance. Labels from
    ``category_count`` on are no category.
    """
    counts = np.zeros((4, category_count), np.int64)
    _count_near(ground_truth, prediction, offsets_yx, category_count, counts[0], counts[1])
    _count_near(prediction, ground_truth, offsets_yx, category_count, counts[2], counts[3])
    return counts
