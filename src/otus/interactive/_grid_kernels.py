"""Compiled passes over the edges between neighbouring pixels.

Shape shorthand: C channels, H x W the image; four planes of edges, those of the first half of 8 neighbours: to the right,
down, down right, down left.
"""

import numpy as np
from jaxtyping import Float, Float32

from otus._numba import kernel


@kernel
def squared_differences(planes: Float32[np.ndarray, "c h w"]) -> Float32[np.ndarray, "4 h w"]:
    """Return the squared colour difference of both ends of each edge, 0 for edges that lead out of the image."""
    channels, height, width = planes.shape
    squared = np.zeros((4, height, width), np.float32)
    for k, (down, right) in enumerate(((0, 1), (1, 0), (1, 1), (1, -1))):
        for y in range(height - down):
            for x in range(max(0, -right), min(width, width - right)):
                total = np.float32(0)
                for c in range(channels):
                    step = planes[c, y, x] - planes[c, y + down, x + right]
                    total += step * step
                squared[k, y, x] = total
    return squared


@kernel
def spread_distances(
    distances: Float32[np.ndarray, "h w"], lengths: Float32[np.ndarray, "4 h w"], max_sweeps: int
) -> None:
    """Relax the distances in place, by forward and backward raster sweeps until nothing changes."""
    height, width = distances.shape
    for _ in range(max_sweeps):
        changed = False
        for y in range(height):
            for x in range(width):
                best = distances[y, x]
                if x > 0:
                    best = min(best, distances[y, x - 1] + lengths[0, y, x - 1])
                if y > 0:
                    best = min(best, distances[y - 1, x] + lengths[1, y - 1, x])
                    if x > 0:
                        best = min(best, distances[y - 1, x - 1] + lengths[2, y - 1, x - 1])
                    if x + 1 < width:
                        best = min(best, distances[y - 1, x + 1] + lengths[3, y - 1, x + 1])
                if best < distances[y, x]:
                    distances[y, x] = best
                    changed = True
        for y in range(height - 1, -1, -1):
            for x in range(width - 1, -1, -1):
                best = distances[y, x]
                if x + 1 < width:
                    best = min(best, distances[y, x + 1] + lengths[0, y, x])
                if y + 1 < height:
                    best = min(best, distances[y + 1, x] + lengths[1, y, x])
                    if x + 1 < width:
                        best = min(best, distances[y + 1, x + 1] + lengths[2, y, x])
                    if x > 0:
                        best = min(best, distances[y + 1, x - 1] + lengths[3, y, x])
                if best < distances[y, x]:
                    distances[y, x] = best
                    changed = True
        if not changed:
            return


@kernel
def weighted_counts(bins: np.ndarray, weights: Float[np.ndarray, "h w"], count: int) -> Float[np.ndarray, "bins"]:
    """Return the sum of the weights in each bin."""
    counts = np.zeros(count)
    for y in range(bins.shape[0]):
        for x in range(bins.shape[1]):
            counts[bins[y, x]] += weights[y, x]
    return counts


@kernel
def mixture_log_likelihood(
    planes: Float32[np.ndarray, "c h w"],
    means: Float32[np.ndarray, "k c"],
    whitenings: Float32[np.ndarray, "k c c"],
    offsets: Float32[np.ndarray, "k"],
) -> Float32[np.ndarray, "h w"]:
    """Return log sum_k exp(offset_k - |whitening_k (colour - mean_k)|^2 / 2); whitenings are lower triangular."""
    channels, height, width = planes.shape
    count = len(means)
    logs = np.empty(count, np.float32)
    out = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            highest = np.float32(-np.inf)
            for k in range(count):
                squared = np.float32(0)
                for i in range(channels):
                    whitened = np.float32(0)
                    for j in range(i + 1):
                        whitened += whitenings[k, i, j] * (planes[j, y, x] - means[k, j])
                    squared += whitened * whitened
                logs[k] = offsets[k] - np.float32(0.5) * squared
                highest = max(highest, logs[k])
            total = np.float32(0)
            for k in range(count):
                if logs[k] > highest - np.float32(12):
                    total += np.exp(logs[k] - highest)
            out[y, x] = highest + np.log(total)
    return out
