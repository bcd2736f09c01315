"""Compiled inner loops of the graph-based over-segmentation.

Shape shorthand: C channels, H x W the picture, E edges (4 a pixel), P pixels.
"""

import numpy as np
from jaxtyping import Float, Int

from otus._numba import kernel

STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Row and column steps from a pixel to the neighbours that its four edges lead to: right, down, and the two diagonals."""

OUTSIDE = np.uint16(65535)
"""The weight of an edge that leaves the picture."""


@kernel
def filter_rows_and_columns(
    planes: Float[np.ndarray, "c h w"], along_y: Float[np.ndarray, "taps"], along_x: Float[np.ndarray, "taps"]
) -> Float[np.ndarray, "c h w"]:
    """A separable filter (correlation) whose taps are centred; beyond the border its pixels repeat."""
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
    """Euclidean distances of neighbouring pixels in whole steps, ``per_unit`` of them a unit of the channels."""
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
def sort_edges(weights: Int[np.ndarray, "4 h w"]) -> Int[np.ndarray, "e"]:
    """The edges inside the picture by rising weight, equal ones in their order (counting sort).

    Edge e is the ``e % 4``-th of pixel ``e // 4``.
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
    return order


@kernel
def _find(parent: Int[np.ndarray, "p"], node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def segment(
    weights: Int[np.ndarray, "4 h w"], order: Int[np.ndarray, "e"], scale: float, min_size: int
) -> tuple[Int[np.ndarray, "h w"], int]:
    """Labels from 0 in the order of the regions' first pixels, and how many; ``scale`` is in steps of the weights."""
    _, height, width = weights.shape
    flat = weights.reshape(4, -1)
    count = height * width
    parent = np.arange(count).astype(np.int32)
    sizes = np.ones(count, np.int32)
    limits = np.full(count, scale, np.float64)
    offsets = np.empty(4, np.int64)
    for d in range(4):
        offsets[d] = STEPS[d][0] * width + STEPS[d][1]
    left_over = np.empty(len(order), np.int32)
    left_count = 0
    for edge in order:
        p, d = edge >> 2, edge & 3
        a, b = _find(parent, p), _find(parent, p + offsets[d])
        if a == b:
            continue
        weight = np.float64(flat[d, p])
        if weight <= limits[a] and weight <= limits[b]:
            if sizes[a] < sizes[b]:
                a, b = b, a
            parent[b] = a
            sizes[a] += sizes[b]
            limits[a] = weight + scale / sizes[a]
        else:
            left_over[left_count] = edge
            left_count += 1
    for edge in left_over[:left_count]:
        p, d = edge >> 2, edge & 3
        a, b = _find(parent, p), _find(parent, p + offsets[d])
        if a != b and (sizes[a] < min_size or sizes[b] < min_size):
            if sizes[a] < sizes[b]:
                a, b = b, a
            parent[b] = a
            sizes[a] += sizes[b]
    label_of = np.full(count, -1, np.int32)
    labels = np.empty(count, np.int32)
    regions = 0
    for p in range(count):
        root = _find(parent, p)
        if label_of[root] < 0:
            label_of[root] = regions
            regions += 1
        labels[p] = label_of[root]
    return labels.reshape(height, width), regions
