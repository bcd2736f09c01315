"""Geodesic distances on an image: lengths of shortest paths to a seed, where steps across colour edges are long.

Shape shorthand: H x W the image, four planes of edges (:mod:`otus.interactive._grid_kernels`).

Papers: "Geodesic Matting" (Bai and Sapiro, IJCV 2009) for the distance; "Geodesic Image and Video Editing" (Criminisi,
Sharp, Rother and Pérez, TOG 2010), section 3, for the raster sweeps. Departures: sweeps are repeated until nothing changes,
at most ``MAX_SWEEPS`` times; lengths in the image are relative to its longer side, so that they do not depend on its
resolution.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32

from otus.interactive import _grid_kernels as kernels

MAX_SWEEPS = 4
FAR = np.float32(1e9)
"""Distance where no seed can be reached."""


def edge_lengths(
    squared_differences: Float32[np.ndarray, "4 h w"], *, color_weight: float
) -> Float32[np.ndarray, "4 h w"]:
    """Return the length of each edge: sqrt(d^2 + (color_weight * difference in colour)^2), d in 1/256 of the longer side."""
    scale = 256 / max(squared_differences.shape[1:])
    squared = np.array([1, 1, 2, 2], np.float32) * np.float32(scale**2)
    return np.sqrt(squared[:, None, None] + np.float32(color_weight**2) * squared_differences)


def geodesic_distances(
    seeds: Bool[np.ndarray, "h w"], lengths: Float32[np.ndarray, "4 h w"]
) -> Float32[np.ndarray, "h w"]:
    """Return the length of the shortest path from each pixel to a seed.

    >>> lengths = edge_lengths(np.zeros((4, 1, 4), np.float32), color_weight=1)
    >>> geodesic_distances(np.array([[True, False, False, False]]), lengths).tolist()
    [[0.0, 64.0, 128.0, 192.0]]
    """
    distances = np.where(seeds, np.float32(0), FAR)
    kernels.spread_distances(distances, lengths, MAX_SWEEPS)
    return distances


def reference_geodesic_distances(
    seeds: Bool[np.ndarray, "h w"], lengths: Float32[np.ndarray, "4 h w"]
) -> Float[np.ndarray, "h w"]:
    """Return the same by Dijkstra's algorithm, exactly; the sweeps converge to it."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    height, width = seeds.shape
    pixel = np.arange(seeds.size).reshape(seeds.shape)
    edges = (
        (pixel[:, :-1], pixel[:, 1:], lengths[0, :, :-1]),
        (pixel[:-1], pixel[1:], lengths[1, :-1]),
        (pixel[:-1, :-1], pixel[1:, 1:], lengths[2, :-1, :-1]),
        (pixel[:-1, 1:], pixel[1:, :-1], lengths[3, :-1, 1:]),
    )
    tails, heads, weights = (np.concatenate([edge[i].ravel() for edge in edges]) for i in range(3))
    graph = coo_array((weights, (tails, heads)), shape=(seeds.size, seeds.size)).tocsr()
    sources = np.flatnonzero(seeds)
    return dijkstra(graph, directed=False, indices=sources, min_only=True).reshape(height, width)
