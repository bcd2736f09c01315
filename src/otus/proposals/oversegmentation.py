"""Graph-based over-segmentation: regions whose boundaries are stronger than their internal variation.

Shape shorthand: C channels, H x W the image, R regions.

Paper: "Efficient Graph-Based Image Segmentation" (Felzenszwalb and Huttenlocher, IJCV 2004), sections 3 and 5.
Departures: edge weights are integers, in sixteenths of a unit, so that they can be sorted by counting; equal ones are in the
order of their pixels. Small regions are merged in a second pass over the edges, as in the authors' code (the paper does not
mention it).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from otus.errors import ShapeError, UsageError
from otus.proposals import _oversegmentation_kernels as kernels

STEPS_PER_UNIT = 16


def oversegment(
    image: Float[np.ndarray, "h w c"], *, scale: float = 150, min_size: int = 100, sigma: float = 0.8
) -> Int[np.ndarray, "h w"]:
    """Return the region of every pixel, numbered from 0 in scan order.

    Parameters
    ----------
    image
        (H, W, C) or (H, W), values 0..255.
    scale
        The paper's k: larger values give larger regions.
    min_size
        Minimum region size in pixels.
    sigma
        Standard deviation of the initial Gaussian smoothing, in pixels.

    Raises
    ------
    ShapeError
        If the array is not an image.

    Examples
    --------
    >>> halves = np.repeat([[10, 10, 200, 200]], 4, axis=0)
    >>> oversegment(halves, sigma=0, min_size=1)[0].tolist()
    [0, 0, 1, 1]
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or not image.size:
        raise ShapeError(f"image: expected (H, W, C) or (H, W) with pixels, got {image.shape}")
    planes = np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1), dtype=np.float32)
    return PixelGraph(planes, sigma=sigma).regions(scale=scale, min_size=min_size)


@dataclass(frozen=True, eq=False)
class PixelGraph:
    """The 8-connected pixel graph, weighted by colour difference.

    Several segmentations of one image share it.

    Parameters
    ----------
    planes
        float32 (C, H, W), values 0..255.
    sigma
        Standard deviation of the initial Gaussian smoothing, in pixels.
    """

    planes: Float[np.ndarray, "c h w"]
    sigma: float = 0.8

    @cached_property
    def weights(self) -> Int[np.ndarray, "4 h w"]:
        """Weights of each pixel's edges to the right, down, down-right and down-left, in sixteenths; 65535 if no edge."""
        return kernels.edge_weights(gaussian_smooth(self.planes, self.sigma), STEPS_PER_UNIT)

    @cached_property
    def _sorted(self) -> tuple[Int[np.ndarray, "e"], Int[np.ndarray, "weights"]]:
        return kernels.sort_edges(self.weights)

    def regions(self, *, scale: float, min_size: int) -> Int[np.ndarray, "h w"]:
        """Return the region of every pixel, see :func:`oversegment`."""
        if not scale >= 0 or min_size < 0:
            raise UsageError(f"scale, min_size: expected numbers >= 0, got {scale} and {min_size}")
        size_hw = self.planes.shape[1:]
        labels, _ = kernels.segment(*self._sorted, size_hw, float(scale * STEPS_PER_UNIT), int(min_size))
        return labels


def gaussian_smooth(planes: Float[np.ndarray, "c h w"], sigma: float) -> Float[np.ndarray, "c h w"]:
    """Smooth by a Gaussian truncated at four sigma, as the authors' code does."""
    if not sigma >= 0:
        raise UsageError(f"sigma: expected a number >= 0, got {sigma}")
    taps = _gaussian(sigma)
    return kernels.filter_rows_and_columns(planes, taps, taps)


def gaussian_derivatives(
    planes: Float[np.ndarray, "c h w"], sigma: float
) -> tuple[Float[np.ndarray, "c h w"], Float[np.ndarray, "c h w"]]:
    """Return the derivatives of a Gaussian along x and y."""
    taps = _gaussian(sigma)
    slope = taps * np.arange(-(len(taps) // 2), len(taps) // 2 + 1, dtype=np.float32) / np.float32(sigma**2)
    return kernels.filter_rows_and_columns(planes, taps, slope), kernels.filter_rows_and_columns(planes, slope, taps)


def _gaussian(sigma: float) -> Float[np.ndarray, "taps"]:
    """Return a normalised sampled Gaussian, float32, truncated at four sigma; a single 1 if sigma is 0."""
    radius = math.ceil(4 * sigma)
    x = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (x / (sigma or 1)) ** 2)
    return (taps / taps.sum()).astype(np.float32)


def reference_regions(weights: Int[np.ndarray, "4 h w"], *, scale: float, min_size: int) -> Int[np.ndarray, "h w"]:
    """Compute :meth:`PixelGraph.regions` slowly and readably, as the reference for tests."""
    _, height, width = weights.shape
    edges = []
    for y in range(height):
        for x in range(width):
            for d, (dy, dx) in enumerate(kernels.STEPS):
                if weights[d, y, x] != kernels.OUTSIDE:
                    edges.append((weights[d, y, x] / STEPS_PER_UNIT, (y, x), (y + dy, x + dx)))
    edges.sort(key=lambda edge: edge[0])
    region = {(y, x): {(y, x)} for y in range(height) for x in range(width)}
    internal = dict.fromkeys(region, 0.0)  # the largest weight in the region's spanning tree, by any of its pixels

    def merge(p: tuple[int, int], q: tuple[int, int], weight: float) -> None:
        merged = region[p] | region[q]
        for pixel in merged:
            region[pixel] = merged
            internal[pixel] = weight

    for weight, p, q in edges:
        if region[p] is not region[q] and all(weight <= internal[r] + scale / len(region[r]) for r in (p, q)):
            merge(p, q, weight)
    for weight, p, q in edges:
        if region[p] is not region[q] and min(len(region[p]), len(region[q])) < min_size:
            merge(p, q, weight)
    numbers: dict[int, int] = {}
    labels = [numbers.setdefault(id(region[y, x]), len(numbers)) for y in range(height) for x in range(width)]
    return np.array(labels, dtype=np.int32).reshape(height, width)
