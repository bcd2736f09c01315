"""Colours of categories that are easy to distinguish.

Shape shorthand: C labels, N candidate colours.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

# Simulate vision without L cones (protanopia) or M cones (deuteranopia) in linear RGB: Machado et al., A
# Physiologically-based Model for Simulation of Color Vision Deficiency, IEEE TVCG 2009, severity 1.
_PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
_DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
_RGB_TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
_MAX_COLOURS = 256
_MIN_DISTANCE = 25.0  # in CIELAB, between the colours of two labels in one image
_FIRST_COLOUR = (0, 114, 178)  # the blue of Okabe and Ito's palette


@lru_cache(maxsize=8)
def category_colours(count: int) -> UInt8[np.ndarray, "c 3"]:
    """Return the RGB colours of labels 0 to ``count`` - 1; a label's colour does not depend on ``count``.

    Colours are chosen by farthest-point sampling from saturated ones. Their distance is that in CIELAB, the minimum over
    normal vision, protanopia and deuteranopia. After 256 colours they repeat.
    """
    if count > _MAX_COLOURS:
        return np.resize(category_colours(_MAX_COLOURS), (count, 3))
    colours, lab_by_vision = _candidates()
    chosen = [int(np.abs(colours - np.array(_FIRST_COLOUR)).sum(axis=1).argmin())]
    min_distance = np.full(len(colours), np.inf)
    for _ in range(1, count):
        distance = np.linalg.norm(lab_by_vision - lab_by_vision[:, chosen[-1:]], axis=2).min(axis=0)
        min_distance = np.minimum(min_distance, distance)
        chosen.append(int(min_distance.argmax()))
    result = colours[chosen[:count]].astype(np.uint8)
    result.flags.writeable = False
    return result


def colours_apart(labels: Sequence[int], count: int) -> dict[int, UInt8[np.ndarray, "3"]]:
    """Return easily distinguished colours for the distinct ``labels`` of one image, from a palette of ``count`` colours.

    A label has its colour of :func:`category_colours`, unless that is too similar to the colour of an earlier label (in
    CIELAB, for normal vision), as happens with a hundred categories. It then gets the colour of the palette that is
    farthest from those of the earlier labels, so its colour may differ between images, and each needs a legend.
    """
    palette = category_colours(count)
    lab = _lab(_linear(palette))
    used: list[int] = []
    for label in labels:
        distance = np.linalg.norm(lab[:, None] - lab[used], axis=2).min(axis=1, initial=np.inf)
        used.append(label if distance[label] > _MIN_DISTANCE else int(distance.argmax()))
    return {label: palette[index] for label, index in zip(labels, used, strict=True)}


def contrasting(colour: UInt8[np.ndarray, "3"]) -> tuple[int, int, int]:
    """Return black or white, whichever has the higher contrast ratio (WCAG 2.1) to this colour."""
    luminance = float(_linear(np.asarray(colour)) @ _RGB_TO_XYZ[1])
    # The ratio is (luminance + 0.05) / 0.05 for black, and 1.05 / (luminance + 0.05) for white.
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


@lru_cache(maxsize=1)
def _candidates() -> tuple[np.ndarray, Float[np.ndarray, "3 n 3"]]:
    """Return saturated RGB colours, neither dark nor pale, and their CIELAB values in each kind of vision."""
    levels = np.linspace(0, 255, 14).round()
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(_linear(colours))
    saturated = (np.hypot(lab[:, 1], lab[:, 2]) > 45) & (lab[:, 0] > 40) & (lab[:, 0] < 88)
    colours = colours[saturated]
    linear = _linear(colours)
    visions = (np.eye(3), np.array(_PROTANOPIA), np.array(_DEUTERANOPIA))
    return colours, np.stack([_lab(np.clip(linear @ vision.T, 0, 1)) for vision in visions])


def _linear(rgb: np.ndarray) -> Float[np.ndarray, "... 3"]:
    """Convert sRGB (0..255) to linear RGB (0..1)."""
    value = rgb / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(linear: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Convert linear RGB to CIELAB with white point D65."""
    xyz = linear @ np.array(_RGB_TO_XYZ).T / (0.95047, 1.0, 1.08883)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.column_stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])
