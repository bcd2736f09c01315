"""Compiled: boundary pixels of categories, and those near the other map's boundary (:mod:`otus.metrics.semantic`)."""

import numpy as np
from jaxtyping import Int

from otus._numba import kernel


@kernel
def _is_boundary(labels: Int[np.ndarray, "h w"], y: int, x: int, label: int) -> bool:
    """Return whether a category contains some but not all of a pixel and its right, lower and lower right neighbours."""
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
            here = (labels[y, x], labels[y, right], labels[below, x], labels[below, right])
            if here[0] == here[1] == here[2] == here[3]:
                continue
            for i in range(4):
                label = here[i]
                seen = label >= category_count
                for j in range(i):
                    seen = seen or here[j] == label
                if seen:
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
    """Count by category: true boundary pixels, those near a predicted one, predicted ones, those near a true one.

    Near means at one of the offsets, which should be sorted by distance. Labels from ``category_count`` are no category.
    """
    counts = np.zeros((4, category_count), np.int64)
    _count_near(ground_truth, prediction, offsets_yx, category_count, counts[0], counts[1])
    _count_near(prediction, ground_truth, offsets_yx, category_count, counts[2], counts[3])
    return counts
