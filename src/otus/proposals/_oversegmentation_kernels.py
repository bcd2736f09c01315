"""Compiled inner loops of the graph-based over-segmentation.

Shape shorthand: C channels, H x W the image, E edges (4 a pixel), P pixels.
"""

import numpy as np
from jaxtyping import Float, Int

from otus._numba import kernel

STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Row and column steps from a pixel to the neighbours that its four edges lead to: right, down, and the two diagonals."""

OUTSIDE = np.uint16(65535)
"""The weight of an edge that leaves the image."""


@kernel
def filter_rows_and_columns(
    planes: Float[np.ndarray, "c h w"], along_y: Float[np.ndarray, "taps"], along_x: Float[np.ndarray, "taps"]
) -> Float[np.ndarray, "c h w"]:
    """Apply a separable filter (correlation) with centred taps and replicated borders."""
    channels, height, width = planes.shape
    radius = len(along_y) // 2
    out = np.empty_like(planes)
    row = np.empty(width + 2 * radius, np.float32)
    for c in range(channels):
        for y in range(height):
            row[:] = 0.0
            middle = row[radius : radius + width]
            for tap in range(len(along_y)):
                line = planes[c, min(max(y + tap - radius, 0), height - 1)]
                weight = along_y[tap]
                for x in range(width):
                    middle[x] += weight * line[x]
            row[:radius] = middle[0]
            row[radius + width :] = middle[width - 1]
            target = out[c, y]
            target[:] = 0.0
            for tap in range(len(along_x)):
                line = row[tap : tap + width]
                weight = along_x[tap]
                for x in range(width):
                    target[x] += weight * line[x]
    return out


@kernel
def edge_weights(planes: Float[np.ndarray, "c h w"], per_unit: float) -> Int[np.ndarray, "4 h w"]:
    """Return Euclidean colour distances of neighbours as integers, ``per_unit`` steps per unit of the channels."""
    channels, height, width = planes.shape
    weights = np.full((4, height, width), OUTSIDE, np.uint16)
    distance = np.empty(width, np.float32)
    scale = np.float32(per_unit)
    for d in range(4):
        dy, dx = STEPS[d]
        first, last = max(0, -dx), width - max(0, dx)
        count = last - first
        for y in range(height - dy):
            distance[:] = 0.0
            for c in range(channels):
                here, there = planes[c, y, first:last], planes[c, y + dy, first + dx : last + dx]
                for x in range(count):
                    difference = here[x] - there[x]
                    distance[x] += difference * difference
            target = weights[d, y, first:last]
            for x in range(count):
                target[x] = np.uint16(min(np.float32(65534.0), np.sqrt(distance[x]) * scale))
    return weights


@kernel
def sort_edges(weights: Int[np.ndarray, "4 h w"]) -> tuple[Int[np.ndarray, "e"], Int[np.ndarray, "65535"]]:
    """Return the edges by increasing weight (counting sort, stable), and the end of each weight.

    Edge e is the ``e % 4``-th of pixel ``e // 4``; those of weight w end before the w-th end.
    """
    flat = weights.reshape(4, -1)
    start = np.zeros(65537, np.int64)
    for d in range(4):
        for p in range(flat.shape[1]):
            start[np.int64(flat[d, p]) + 1] += 1
    start = np.cumsum(start)
    order = np.empty(start[65535], np.int32)
    for p in range(flat.shape[1]):
        for d in range(4):
            weight = flat[d, p]
            if weight != OUTSIDE:
                order[start[weight]] = 4 * p + d
                start[weight] += 1
    return order, start[:65535]


@kernel
def _find(above: Int[np.ndarray, "p"], node: np.int64) -> np.int64:
    up = above[node]
    while up >= 0:
        upper = above[up]
        if upper < 0:
            return up
        above[node] = upper
        node, up = upper, above[upper]
    return node


@kernel
def segment(
    order: Int[np.ndarray, "e"], ends: Int[np.ndarray, "65535"], size_hw: tuple[int, int], scale: float, min_size: int
) -> tuple[Int[np.ndarray, "h w"], int]:
    """Return the labels, numbered in scan order, and the number of regions; ``scale`` is in weight steps.

    Edges come from all over the image, so what is looked up for each costs most once it is larger than the caches. It is
    six bytes a pixel: the pixel above in the region's tree, or less the region's size at its root, and there the largest
    weight inside.
    """
    height, width = size_hw
    count = height * width
    above = np.full(count, -1, np.int32)
    internal = np.zeros(count, np.uint16)
    offsets = np.empty(4, np.int64)
    for d in range(4):
        offsets[d] = STEPS[d][0] * width + STEPS[d][1]
    left_over = np.empty(len(order), np.int32)
    left_count = 0
    first = 0
    for weight in range(len(ends)):
        for edge in order[first : ends[weight]]:
            p = np.int64(edge >> 2)
            a, b = _find(above, p), _find(above, p + offsets[edge & 3])
            if a == b:
                continue
            size_a, size_b = -above[a], -above[b]
            if weight <= internal[a] + scale / size_a and weight <= internal[b] + scale / size_b:
                if size_a < size_b:
                    a, b = b, a
                above[a] = -(size_a + size_b)
                above[b] = a
                internal[a] = weight
            else:
                left_over[left_count] = edge
                left_count += 1
        first = ends[weight]
    for edge in left_over[:left_count]:
        p = np.int64(edge >> 2)
        a, b = _find(above, p), _find(above, p + offsets[edge & 3])
        if a != b and (-above[a] < min_size or -above[b] < min_size):
            if above[a] > above[b]:
                a, b = b, a
            above[a] += above[b]
            above[b] = a
    label_of = np.full(count, -1, np.int32)
    labels = np.empty(count, np.int32)
    regions = 0
    for pixel in range(count):
        root = _find(above, np.int64(pixel))
        if label_of[root] < 0:
            label_of[root] = regions
            regions += 1
        labels[pixel] = label_of[root]
    return labels.reshape(height, width), regions
