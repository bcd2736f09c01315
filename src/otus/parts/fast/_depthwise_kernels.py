"""Compiled: the gradient of depthwise convolutions, channels last (see :mod:`otus.parts.fast.depthwise`)."""

import numpy as np
from jaxtyping import Float

from otus._numba import kernel

BLOCK = 64
"""Channels at a time: weights and their gradient then stay in the first cache."""


@kernel
def depthwise_gradient(
    first: int,
    last: int,
    maps: Float[np.ndarray, "b h w c"],
    of_output: Float[np.ndarray, "b i j c"],
    weight: Float[np.ndarray, "k k c"],
    stride: int,
    padding: int,
    dilation: int,
    of_maps: Float[np.ndarray, "b h w c"],
    of_weight: Float[np.ndarray, "k k c"],
) -> None:
    """Add the gradients of channels ``first`` … ``last - 1`` of the maps and of the weights."""
    height, width = maps.shape[1], maps.shape[2]
    for a in range(first, last, BLOCK):
        b = min(a + BLOCK, last)
        for image in range(len(maps)):
            for i in range(of_output.shape[1]):
                for j in range(of_output.shape[2]):
                    gradient = of_output[image, i, j, a:b]
                    for row in range(len(weight)):
                        y = i * stride - padding + row * dilation
                        if y < 0 or y >= height:
                            continue
                        for column in range(len(weight)):
                            x = j * stride - padding + column * dilation
                            if x < 0 or x >= width:
                                continue
                            seen, to_map = maps[image, y, x, a:b], of_maps[image, y, x, a:b]
                            by, to_weight = weight[row, column, a:b], of_weight[row, column, a:b]
                            for c in range(b - a):
                                to_map[c] += gradient[c] * by[c]
                                to_weight[c] += gradient[c] * seen[c]
