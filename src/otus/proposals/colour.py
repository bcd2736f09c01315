"""Colour spaces of classical methods.

Every channel is scaled to 0..255, so that the same thresholds suit all of them.
"""

from enum import Enum
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from otus.proposals import _colour_kernels as kernels

_CURVE_STEPS = 1 << 14  # of a lookup table with linear interpolation: errors of L, a and b are below 0.01


class ColourSpace(Enum):
    """Colour spaces."""

    RGB = "rgb"
    """Red, green, blue."""
    GREY = "grey"
    """Intensity, with the weights of ITU-R BT.601."""
    RGI = "rgi"
    """Normalised red and green, r / (r + g + b) and g / (r + g + b), which do not depend on shading, and intensity."""
    HSV = "hsv"
    """Hue, saturation, value."""
    HUE = "hue"
    """The hue of HSV."""
    LAB = "lab"
    """CIE L*a*b* of sRGB under D65, in which equal distances look about equally different."""


def colour_planes(image: UInt8[np.ndarray, "h w 3"], space: ColourSpace) -> Float[np.ndarray, "c h w"]:
    """Convert an RGB image to a colour space: float32 (C, H, W), 0..255.

    >>> colour_planes(np.array([[[0, 255, 0]]], dtype=np.uint8), ColourSpace.HSV).ravel().tolist()
    [85.0, 255.0, 255.0]
    """
    match space:
        case ColourSpace.RGB:
            return image.transpose(2, 0, 1).astype(np.float32)
        case ColourSpace.GREY:
            return (image @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[None]
        case ColourSpace.RGI:
            planes = image.transpose(2, 0, 1).astype(np.float32)
            chromaticity = planes[:2] * (255 / np.maximum(planes.sum(axis=0), 1))
            return np.concatenate([chromaticity, colour_planes(image, ColourSpace.GREY)])
        case ColourSpace.HSV:
            return kernels.hsv(image)
        case ColourSpace.HUE:
            return kernels.hsv(image)[:1]
        case ColourSpace.LAB:
            return kernels.lab(image, *_lab_tables())


@cache
def _lab_tables() -> tuple[Float[np.ndarray, "256"], Float[np.ndarray, "3 3"], Float[np.ndarray, "steps_plus_1"]]:
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    to_xyz /= to_xyz.sum(axis=1, keepdims=True)  # white is 1, 1, 1
    t = np.linspace(0, 1, _CURVE_STEPS + 1)
    delta = 6 / 29
    curve = np.where(t > delta**3, np.cbrt(t), t / (3 * delta**2) + 4 / 29)
    return linear.astype(np.float32), to_xyz.astype(np.float32), curve.astype(np.float32)
