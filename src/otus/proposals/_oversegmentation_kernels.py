"""Compiled kernels: the inner loops of graph-based over-segmentation.

Shape shorthand: C channels, H x W the image, E edges (4 per pixel), P pixels.
"""

import numpy as np
from jaxtyping import Float, Int

from otus._numba import kernel

STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Row and column offsets from a pixel to the neighbours of its four edges: right, down, down-right, down-left."""

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
    """Return the edges sorted by weight (stable counting sort), and for each weight the end of its edges in that order.

    Edge e is edge ``e % 4`` of pixel ``e // 4``.
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
def _find(parent: Int[np.ndarray, "p"], node: np.int64) -> np.int64:
    """Return the root of a node's tree (union-find with path halving)."""
    above = parent[node]
    while above >= 0:
        grandparent = parent[above]
        if grandparent < 0:
            return above
        parent[node] = grandparent
        node, above = grandparent, parent[grandparent]
    return node


@kernel
def segment(
    order: Int[np.ndarray, "e"], ends: Int[np.ndarray, "65535"], size_hw: tuple[int, int], scale: float, min_size: int
) -> tuple[Int[np.ndarray, "h w"], int]:
    """Return the region of each pixel, numbered in scan order, and the number of regions; ``scale`` is in weight steps.

    Sorted edges access the image at random, so memory per pixel is kept small for the caches, at six bytes: the parent in
    the region's tree (for a root, minus the region's size), and for a root the largest weight inside the region.
    """
    height, width = size_hw
    count = height * width
    parent = np.full(count, -1, np.int32)
    internal = np.zeros(count, np.uint16)
    offsets = np.empty(4, np.int64)
    for d in range(4):
        offsets[d] = STEPS[d][0] * width + STEPS[d][1]
    deferred = np.empty(len(order), np.int32)
    num_deferred = 0
    first = 0
    for weight in range(len(ends)):
        for edge in order[first : ends[weight]]:
            p = np.int64(edge >> 2)
            a, b = _find(parent, p), _find(parent, p + offsets[edge & 3])
            if a == b:
                continue
            size_a, size_b = -parent[a], -parent[b]
            if weight <= internal[a] + scale / size_a and weight <= internal[b] + scale / size_b:
                if size_a < size_b:
                    a, b = b, a
                parent[a] = -(size_a + size_b)
                parent[b] = a
                internal[a] = weight
            else:
                deferred[num_deferred] = edge
                num_deferred += 1
        first = ends[weight]
    for edge in deferred[:num_deferred]:
        p = np.int64(edge >> 2)
        a, b = _find(parent, p), _find(parent, p + offsets[edge & 3])
        if a != b and (-parent[a] < min_size or -parent[b] < min_size):
            if parent[a] > parent[b]:
                a, b = b, a
            parent[a] += parent[b]
            parent[b] = a
    label_of = np.full(count, -1, np.int32)
    labels = np.empty(count, np.int32)
    regions = 0
    for pixel in range(count):
        root = _find(parent, np.int64(pixel))
        if label_of[root] < 0:
            label_of[root] = regions
            regions += 1
        labels[pixel] = label_of[root]
    return labels.reshape(height, width), regions
