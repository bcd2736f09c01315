"""Compiled kernel: the gradient of RoI align, channels last (see :mod:`otus.parts.regions.roi_features`)."""

import math

import numpy as np
from jaxtyping import Float

from otus._numba import kernel


@kernel
def _interpolation(
    start: float, size: float, bins: int, sampling_ratio: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, for each sampling point on one axis, the indices of the pixels below and above it, and their weights."""
    num_points = bins * sampling_ratio
    low = np.zeros(num_points, np.int64)
    high = np.zeros(num_points, np.int64)
    weight_low = np.zeros(num_points, np.float32)
    weight_high = np.zeros(num_points, np.float32)
    for k in range(num_points):
        position = start + (k + 0.5) * size / num_points
        if position < -1.0 or position > length:
            continue  # outside the feature map: weight 0
        position = max(position, 0.0)
        pixel = min(math.floor(position), length - 1)
        low[k] = pixel
        high[k] = min(pixel + 1, length - 1)
        fraction = position - pixel if pixel < length - 1 else 0.0
        weight_low[k] = (1.0 - fraction) / sampling_ratio
        weight_high[k] = fraction / sampling_ratio
    return low, high, weight_low, weight_high


@kernel
def roi_align_gradient(
    first: int,
    last: int,
    rois: Float[np.ndarray, "r 5"],
    roi_grads: Float[np.ndarray, "r s s c"],
    scale: float,
    sampling_ratio: int,
    map_grads: Float[np.ndarray, "b h w c"],
) -> None:
    """Add the gradients of the RoI features of images ``first`` … ``last - 1`` to those of their feature maps."""
    bins, channels = roi_grads.shape[1], roi_grads.shape[3]
    height, width = map_grads.shape[1], map_grads.shape[2]
    for r in range(len(rois)):
        b = int(rois[r, 0])
        if b < first or b >= last:
            continue
        x, y = rois[r, 1] * scale, rois[r, 2] * scale
        roi_height, roi_width = max(rois[r, 4] * scale - y, 1.0), max(rois[r, 3] * scale - x, 1.0)
        y_low, y_high, wy_low, wy_high = _interpolation(y, roi_height, bins, sampling_ratio, height)
        x_low, x_high, wx_low, wx_high = _interpolation(x, roi_width, bins, sampling_ratio, width)
        for i in range(bins * sampling_ratio):
            for j in range(bins * sampling_ratio):
                bin_grad = roi_grads[r, i // sampling_ratio, j // sampling_ratio]
                weight = wy_low[i] * wx_low[j]
                pixel_grad = map_grads[b, y_low[i], x_low[j]]
                for c in range(channels):
                    pixel_grad[c] += weight * bin_grad[c]
                weight = wy_low[i] * wx_high[j]
                pixel_grad = map_grads[b, y_low[i], x_high[j]]
                for c in range(channels):
                    pixel_grad[c] += weight * bin_grad[c]
                weight = wy_high[i] * wx_low[j]
                pixel_grad = map_grads[b, y_high[i], x_low[j]]
                for c in range(channels):
                    pixel_grad[c] += weight * bin_grad[c]
                weight = wy_high[i] * wx_high[j]
                pixel_grad = map_grads[b, y_high[i], x_high[j]]
                for c in range(channels):
                    pixel_grad[c] += weight * bin_grad[c]
