"""How likely the colours of an image are on an object or on background: histograms and Gaussian mixtures.

Shape shorthand: H x W the image, C channels, K components.
"""

import math
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32

from otus.interactive import _grid_kernels as kernels

BINS = 16
_SMOOTHING_BINS = 1.0
_FLOOR = 0.01
COMPONENTS = 5
_SAMPLES = 2000
_EM_ROUNDS = 3
_LEAST_VARIANCE = 4.0
_CELL, _CELLS = 4.0, 64


class ColorModel(Protocol):
    """Colours of one image; what it fits are weights of its pixels."""

    def log_likelihood(self, weights: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Return the log of how likely each pixel's colour is where pixels have these weights."""
        ...


class HistogramModel:
    """A histogram of 16 x 16 x 16 bins over the range of the image's colours, smoothed by a Gaussian of one bin.

    A share of 1 in 100 is spread evenly over all bins, so that a colour never seen is unlikely, not impossible.
    """

    def __init__(self, planes: Float32[np.ndarray, "c h w"]) -> None:
        low = planes.min(axis=(1, 2), keepdims=True)
        step = np.maximum(planes.max(axis=(1, 2), keepdims=True) - low, 1e-3) / BINS
        bins = np.minimum((planes - low) / step, BINS - 1).astype(np.int32)
        self._bins = (bins[0] * BINS + bins[1]) * BINS + bins[2]

    def log_likelihood(self, weights: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Return the log of the smoothed histogram at each pixel's colour."""
        from scipy.ndimage import gaussian_filter

        counts = kernels.weighted_counts(self._bins, weights, BINS**3)
        smoothed = gaussian_filter(counts.reshape(BINS, BINS, BINS), _SMOOTHING_BINS, mode="constant").ravel()
        table = np.log(smoothed / max(smoothed.sum(), 1e-9) + _FLOOR / BINS**3).astype(np.float32)
        return table[self._bins]


class MixtureModel:
    """A mixture of 5 Gaussians with full covariances, as GrabCut has it.

    Clusters are split along the axis in which they spread most (Orchard and Bouman, Color Quantization of Images,
    1991), then fitted by expectation maximisation to about 2,000 of the pixels that have a weight.
    """

    def __init__(self, planes: Float32[np.ndarray, "c h w"]) -> None:
        self._planes = planes
        cells = np.clip(planes / _CELL, 0, _CELLS - 1).astype(np.int32)
        number = (cells[0] * _CELLS + cells[1]) * _CELLS + cells[2]
        there = np.flatnonzero(np.bincount(number.ravel(), minlength=_CELLS**3))
        compact = np.zeros(_CELLS**3, np.int32)
        compact[there] = np.arange(len(there))
        self._cell_of_pixel = compact[number]
        corners = np.stack([there // _CELLS**2, there // _CELLS % _CELLS, there % _CELLS])
        self._cell_colors = ((corners + 0.5) * _CELL).astype(np.float32)[:, None]

    def log_likelihood(self, weights: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Return the log of the mixture's density at each pixel's colour, in steps of 4 of 256 a channel."""
        chosen = np.flatnonzero(weights)
        chosen = chosen[:: max(1, len(chosen) // _SAMPLES)]
        if not len(chosen):  # nothing is known
            return np.full(self._planes.shape[1:], -math.log(256.0 ** len(self._planes)), np.float32)
        colors = self._planes.reshape(len(self._planes), -1)[:, chosen].T.astype(np.float64)
        sizes, means, covariances = _fitted_mixture(colors, weights.ravel()[chosen].astype(np.float64))
        whitenings = np.linalg.inv(np.linalg.cholesky(covariances))
        log_scales = np.log(np.diagonal(whitenings, axis1=1, axis2=2)).sum(axis=1)
        offsets = np.log(sizes) + log_scales - 0.5 * len(self._planes) * math.log(2 * math.pi)
        values = (means, whitenings, offsets)
        of_cells = kernels.mixture_log_likelihood(self._cell_colors, *(one.astype(np.float32) for one in values))
        return of_cells[0][self._cell_of_pixel]


def _fitted_mixture(
    colors: Float[np.ndarray, "n c"], weights: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k c"], Float[np.ndarray, "k c c"]]:
    """The share, mean and covariance of each component."""
    cluster = np.zeros(len(colors), dtype=np.int64)
    shares = weights[:, None]
    for count in range(1, COMPONENTS + 1):
        _, means, covariances = _moments(colors, shares)
        if count == COMPONENTS:
            break
        spreads, axes = np.linalg.eigh(covariances)
        widest = int((spreads[:, -1] * shares.sum(axis=0)).argmax())
        beyond = (colors - means[widest]) @ axes[widest, :, -1] > 0
        cluster[(cluster == widest) & beyond] = count
        shares = weights[:, None] * (cluster[:, None] == np.arange(count + 1))
    for _ in range(_EM_ROUNDS):
        sizes, means, covariances = _moments(colors, shares)
        whitenings = np.linalg.inv(np.linalg.cholesky(covariances))
        logs = np.empty_like(shares)
        for k, whitening in enumerate(whitenings):
            squared = np.square((colors - means[k]) @ whitening.T).sum(axis=1)
            logs[:, k] = math.log(max(sizes[k], 1e-12)) + np.log(np.diagonal(whitening)).sum() - 0.5 * squared
        likely = np.exp(logs - logs.max(axis=1, keepdims=True))
        shares = weights[:, None] * likely / likely.sum(axis=1, keepdims=True)
    sizes, means, covariances = _moments(colors, shares)
    return np.maximum(sizes, 1e-12), means, covariances


def _moments(
    colors: Float[np.ndarray, "n c"], shares: Float[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k c"], Float[np.ndarray, "k c c"]]:
    sizes = shares.sum(axis=0)
    normed = shares / np.maximum(sizes, 1e-12)
    means = normed.T @ colors
    covariances = np.empty((len(sizes), colors.shape[1], colors.shape[1]))
    for covariance, share, mean in zip(covariances, normed.T, means, strict=True):
        offset = colors - mean
        covariance[:] = (offset * share[:, None]).T @ offset + _LEAST_VARIANCE * np.eye(colors.shape[1])
    return sizes / max(sizes.sum(), 1e-12), means, covariances
