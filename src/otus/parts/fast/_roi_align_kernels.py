"""Compiled: the gradient of RoI align for maps with channels last (see :mod:`otus.parts.regions.roi_features`)."""

import math

import numpy as np
from jaxtyping import Float

from otus._numba import kernel


@kernel
def _taps(
    start: float, size: float, side: int, samples: int, limit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``side * samples`` positions on one axis: the cell below it, the one above, and their weights."""
    low = np.zeros(side * samples, np.int64)
    high = np.zeros(side * samples, np.int64)
    weight_low = np.zeros(side * samples, np.float32)
    weight_high = np.zeros(side * samples, np.float32)
    for k in range(side * samples):
        place = start + (k + 0.5) * size / (side * samples)
        if place < -1.0 or place > limit:
            continue  # outside the map: no weight
        place = max(place, 0.0)
        cell = min(math.floor(place), limit - 1)
        low[k] = cell
        high[k] = min(cell + 1, limit - 1)
        above = place - cell if cell < limit - 1 else 0.0
        weight_low[k] = (1.0 - above) / samples
        weight_high[k] = above / samples
    return low, high, weight_low, weight_high


@kernel
def roi_align_gradient(
    first: int,
    last: int,
    regions: Float[np.ndarray, "r 5"],
    pieces: Float[np.ndarray, "r s s c"],
    scale: float,
    samples: int,
    maps: Float[np.ndarray, "b h w c"],
) -> None:
    """Add the gradient of the pieces of images ``first`` … ``last - 1`` to that of their maps."""
    side, channels = pieces.shape[1], pieces.shape[3]
    height, width = maps.shape[1], maps.shape[2]
    for r in range(len(regions)):
        b = int(regions[r, 0])
        if b < first or b >= last:
            continue
        x, y = regions[r, 1] * scale, regions[r, 2] * scale
        y_low, y_high, wy_low, wy_high = _taps(y, max(regions[r, 4] * scale - y, 1.0), side, samples, height)
        x_low, x_high, wx_low, wx_high = _taps(x, max(regions[r, 3] * scale - x, 1.0), side, samples, width)
        for i in range(side * samples):
            for j in range(side * samples):
                piece = pieces[r, i // samples, j // samples]
                a = wy_low[i] * wx_low[j]
                to = maps[b, y_low[i], x_low[j]]
                for c in range(channels):
                    to[c] += a * piece[c]
                a = wy_low[i] * wx_high[j]
                to = maps[b, y_low[i], x_high[j]]
                for c in range(channels):
                    to[c] += a * piece[c]
                a = wy_high[i] * wx_low[j]
                to = maps[b, y_high[i], x_low[j]]
                for c in range(channels):
                    to[c] += a * piece[c]
                a = wy_high[i] * wx_high[j]
                to = maps[b, y_high[i], x_high[j]]
                for c in range(channels):
                    to[c] += a * piece[c]
