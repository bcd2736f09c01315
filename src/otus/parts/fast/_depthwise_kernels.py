"""Compiled kernel: the gradient of depthwise convolutions, channels last (see :mod:`otus.parts.fast.depthwise`)."""

import numpy as np
from jaxtyping import Float

from otus._numba import kernel

BLOCK = 64
"""Channels per block, so that weights and their gradient stay in the L1 cache."""


@kernel
def depthwise_gradient(
    first: int,
    last: int,
    maps: Float[np.ndarray, "b h w c"],
    output_grad: Float[np.ndarray, "b i j c"],
    weight: Float[np.ndarray, "k k c"],
    stride: int,
    padding: int,
    dilation: int,
    maps_grad: Float[np.ndarray, "b h w c"],
    weight_grad: Float[np.ndarray, "k k c"],
) -> None:
    """Add the gradients of channels ``first`` … ``last - 1`` to ``maps_grad`` and ``weight_grad``."""
    height, width = maps.shape[1], maps.shape[2]
    for a in range(first, last, BLOCK):
        b = min(a + BLOCK, last)
        for image in range(len(maps)):
            for i in range(output_grad.shape[1]):
                for j in range(output_grad.shape[2]):
                    gradient = output_grad[image, i, j, a:b]
                    for row in range(len(weight)):
                        y = i * stride - padding + row * dilation
                        if y < 0 or y >= height:
                            continue
                        for column in range(len(weight)):
                            x = j * stride - padding + column * dilation
                            if x < 0 or x >= width:
                                continue
                            pixel, pixel_grad = maps[image, y, x, a:b], maps_grad[image, y, x, a:b]
                            tap, tap_grad = weight[row, column, a:b], weight_grad[row, column, a:b]
                            for c in range(b - a):
                                pixel_grad[c] += gradient[c] * tap[c]
                                tap_grad[c] += gradient[c] * pixel[c]
