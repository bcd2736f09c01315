"""Colour models of object and background: histograms and Gaussian mixtures.

Shape shorthand: H x W the image, C = 3 channels with values 0..255, N pixels, K components.
"""

import math
from typing import Protocol

import numpy as np
from jaxtyping import Float, Float32

from otus.interactive import _grid_kernels as kernels

BINS = 16
_SMOOTHING_SIGMA = 1.0  # in bins
_UNIFORM_WEIGHT = 0.01  # of a uniform distribution that is added to the histogram, so that no colour has probability 0
COMPONENTS = 5
_MIN_SAMPLES = 2000  # more pixels are subsampled to this number at least, to less than twice that
_EM_ITERATIONS = 3
_MIN_VARIANCE = 4.0
_CELL_SIZE, _CELLS = 4.0, 64  # the mixture's density is computed once per occupied cell of colour space


class ColorModel(Protocol):
    """A model of the colours of one image, which is fitted to weighted pixels."""

    def log_likelihood(self, weights: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Return the log-likelihood of each pixel's colour under the model fitted to pixels with these weights."""
        ...


class HistogramModel:
    """A histogram of 16 x 16 x 16 bins over the range of the image's colours, smoothed by a Gaussian with sigma one bin.

    A uniform distribution of weight 0.01 is added, so that unseen colours are unlikely, not impossible.
    """

    def __init__(self, planes: Float32[np.ndarray, "c h w"]) -> None:
        low = planes.min(axis=(1, 2), keepdims=True)
        step = np.maximum(planes.max(axis=(1, 2), keepdims=True) - low, 1e-3) / BINS
        bins = np.minimum((planes - low) / step, BINS - 1).astype(np.int32)
        self._bins = (bins[0] * BINS + bins[1]) * BINS + bins[2]

    def log_likelihood(self, weights: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Return the log of the smoothed, normalised histogram at each pixel's colour."""
        from scipy.ndimage import gaussian_filter

        counts = kernels.weighted_counts(self._bins, weights, BINS**3)
        smoothed = gaussian_filter(counts.reshape(BINS, BINS, BINS), _SMOOTHING_SIGMA, mode="constant").ravel()
        log_likelihood = np.log(smoothed / max(smoothed.sum(), 1e-9) + _UNIFORM_WEIGHT / BINS**3).astype(np.float32)
        return log_likelihood[self._bins]


class MixtureModel:
    """A mixture of 5 Gaussians with full covariances, as in GrabCut.

    Clusters are initialised by splitting the one of largest variance along its principal axis, until there are 5 ("Color
    Quantization of Images", Orchard and Bouman, 1991). The mixture is then fitted by 3 iterations of expectation
    maximisation to the pixels with positive weight, of which every n-th is taken so that 2,000 to 4,000 remain.
    """

    def __init__(self, planes: Float32[np.ndarray, "c h w"]) -> None:
        self._planes = planes
        cells = np.clip(planes / _CELL_SIZE, 0, _CELLS - 1).astype(np.int32)
        cell_ids = (cells[0] * _CELLS + cells[1]) * _CELLS + cells[2]
        used_ids = np.flatnonzero(np.bincount(cell_ids.ravel(), minlength=_CELLS**3))
        index_of_id = np.zeros(_CELLS**3, np.int32)
        index_of_id[used_ids] = np.arange(len(used_ids))
        self._cell_of_pixel = index_of_id[cell_ids]
        cell_indices = np.stack([used_ids // _CELLS**2, used_ids // _CELLS % _CELLS, used_ids % _CELLS])
        self._cell_colors = ((cell_indices + 0.5) * _CELL_SIZE).astype(np.float32)[:, None]

    def log_likelihood(self, weights: Float[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Return the log of the mixture's density at each pixel's colour, which is quantised to 64 values per channel."""
        samples = np.flatnonzero(weights)
        samples = samples[:: max(1, len(samples) // _MIN_SAMPLES)]
        if not len(samples):  # uniform distribution
            return np.full(self._planes.shape[1:], -math.log(256.0 ** len(self._planes)), np.float32)
        colors = self._planes.reshape(len(self._planes), -1)[:, samples].T.astype(np.float64)
        priors, means, covariances = _fit_mixture(colors, weights.ravel()[samples].astype(np.float64))
        whitenings = np.linalg.inv(np.linalg.cholesky(covariances))
        log_determinants = np.log(np.diagonal(whitenings, axis1=1, axis2=2)).sum(axis=1)
        offsets = np.log(priors) + log_determinants - 0.5 * len(self._planes) * math.log(2 * math.pi)
        parameters = (values.astype(np.float32) for values in (means, whitenings, offsets))
        cell_log_likelihood = kernels.mixture_log_likelihood(self._cell_colors, *parameters)
        return cell_log_likelihood[0][self._cell_of_pixel]


def _fit_mixture(
    colors: Float[np.ndarray, "n c"], weights: Float[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k c"], Float[np.ndarray, "k c c"]]:
    """Fit a mixture to weighted colours and return the prior, mean and covariance of each component."""
    cluster = np.zeros(len(colors), dtype=np.int64)
    responsibilities = weights[:, None]
    for count in range(1, COMPONENTS + 1):
        _, means, covariances = _moments(colors, responsibilities)
        if count == COMPONENTS:
            break
        variances, axes = np.linalg.eigh(covariances)
        widest = int((variances[:, -1] * responsibilities.sum(axis=0)).argmax())
        upper_half = (colors - means[widest]) @ axes[widest, :, -1] > 0
        cluster[(cluster == widest) & upper_half] = count
        responsibilities = weights[:, None] * (cluster[:, None] == np.arange(count + 1))
    for _ in range(_EM_ITERATIONS):
        priors, means, covariances = _moments(colors, responsibilities)
        whitenings = np.linalg.inv(np.linalg.cholesky(covariances))
        log_joint = np.empty_like(responsibilities)
        for k, whitening in enumerate(whitenings):
            squared = np.square((colors - means[k]) @ whitening.T).sum(axis=1)
            log_joint[:, k] = math.log(max(priors[k], 1e-12)) + np.log(np.diagonal(whitening)).sum() - 0.5 * squared
        likelihoods = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
        responsibilities = weights[:, None] * likelihoods / likelihoods.sum(axis=1, keepdims=True)
    priors, means, covariances = _moments(colors, responsibilities)
    return np.maximum(priors, 1e-12), means, covariances


def _moments(
    colors: Float[np.ndarray, "n c"], responsibilities: Float[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k c"], Float[np.ndarray, "k c c"]]:
    """Return the prior, mean and covariance of each component, given the weight of each pixel in it."""
    totals = responsibilities.sum(axis=0)
    normalised = responsibilities / np.maximum(totals, 1e-12)
    means = normalised.T @ colors
    covariances = np.empty((len(totals), colors.shape[1], colors.shape[1]))
    for covariance, weights, mean in zip(covariances, normalised.T, means, strict=True):
        deviation = colors - mean
        covariance[:] = (deviation * weights[:, None]).T @ deviation + _MIN_VARIANCE * np.eye(colors.shape[1])
    return totals / max(totals.sum(), 1e-12), means, covariances
