"""Compiled kernels: conversions to colour spaces, with all channels in 0..255."""

import numpy as np
from jaxtyping import Float, UInt8

from otus._numba import kernel


@kernel
def hsv(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3 h w"]:
    """Convert RGB to hue (0 red, 85 green, 170 blue), saturation, value."""
    height, width, _ = image.shape
    out = np.empty((3, height, width), np.float32)
    for y in range(height):
        for x in range(width):
            r, g, b = np.float32(image[y, x, 0]), np.float32(image[y, x, 1]), np.float32(image[y, x, 2])
            high, low = max(r, g, b), min(r, g, b)
            span = high - low
            sixths = np.float32(0)
            if span > 0:
                if high == r:
                    sixths = (g - b) / span
                    if sixths < 0:
                        sixths += np.float32(6)
                elif high == g:
                    sixths = (b - r) / span + np.float32(2)
                else:
                    sixths = (r - g) / span + np.float32(4)
            out[0, y, x] = sixths * np.float32(255 / 6)
            out[1, y, x] = span / high * np.float32(255) if high > 0 else np.float32(0)
            out[2, y, x] = high
    return out


@kernel
def lab(
    image: UInt8[np.ndarray, "h w 3"],
    linear: Float[np.ndarray, "256"],
    to_xyz: Float[np.ndarray, "3 3"],
    curve: Float[np.ndarray, "steps_plus_1"],
) -> Float[np.ndarray, "3 h w"]:
    """Convert sRGB to CIE L*a*b*: L scaled from 0..100 to 0..255, a + 128, b + 128.

    ``linear`` is the linear intensity of each sRGB value, ``to_xyz`` converts it to XYZ relative to white, and ``curve``
    tabulates CIE's f over 0..1.
    """
    height, width, _ = image.shape
    out = np.empty((3, height, width), np.float32)
    f = np.empty(3, np.float32)
    last = len(curve) - 2
    for y in range(height):
        for x in range(width):
            r, g, b = linear[image[y, x, 0]], linear[image[y, x, 1]], linear[image[y, x, 2]]
            for k in range(3):
                position = (to_xyz[k, 0] * r + to_xyz[k, 1] * g + to_xyz[k, 2] * b) * np.float32(last + 1)
                step = min(last, int(position))
                f[k] = curve[step] + (position - np.float32(step)) * (curve[step + 1] - curve[step])
            out[0, y, x] = (np.float32(116) * f[1] - np.float32(16)) * np.float32(2.55)
            out[1, y, x] = np.float32(500) * (f[0] - f[1]) + np.float32(128)
            out[2, y, x] = np.float32(200) * (f[1] - f[2]) + np.float32(128)
    return out
