"""Colours of categories: the same label has the same colour in every image, and neighbours are easy to tell apart.

Shape shorthand: C colours.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

# What people without L cones and without M cones see, in linear RGB: Machado et al., A Physiologically-based Model for
# Simulation of Color Vision Deficiency, IEEE TVCG 2009, severity 1.
_PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
_DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
_MOST = 256
_DIFFERENT = 25.0  # in CIELAB
_FIRST = (0, 114, 178)  # the blue of Okabe and Ito's palette


@lru_cache(maxsize=8)
def category_colours(count: int) -> UInt8[np.ndarray, "c 3"]:
    """Return the RGB colours of labels 0 to ``count`` - 1. A longer list begins with the shorter one.

    Each colour is the one, of all strong ones, that differs most from those before it, to the eye that tells them apart
    worst: the usual one, one without red and one without green cones (distance in CIELAB).
    """
    if count > _MOST:  # beyond, they repeat
        return np.resize(category_colours(_MOST), (count, 3))
    colours, views = _candidates()
    chosen = [int(np.abs(colours - np.array(_FIRST)).sum(axis=1).argmin())]
    nearest = np.full(len(colours), np.inf)
    for _ in range(1, count):
        nearest = np.minimum(nearest, np.linalg.norm(views - views[:, chosen[-1:]], axis=2).min(axis=0))
        chosen.append(int(nearest.argmax()))
    result = colours[chosen[:count]].astype(np.uint8)
    result.flags.writeable = False
    return result


def colours_apart(labels: Sequence[int], count: int) -> dict[int, UInt8[np.ndarray, "3"]]:
    """Return the colours of the labels that occur in one image, out of ``count``.

    As :func:`category_colours`, but where two would hardly differ, as happens among a hundred categories, the later label
    gets that colour of the palette which is furthest from the others: such an image needs a legend.
    """
    palette = category_colours(count)
    lab = _lab(_linear(palette))
    taken: list[int] = []
    for label in labels:
        distance = np.linalg.norm(lab[:, None] - lab[taken], axis=2).min(axis=1, initial=np.inf)
        taken.append(label if distance[label] > _DIFFERENT else int(distance.argmax()))
    return {label: palette[place] for label, place in zip(labels, taken, strict=True)}


def contrasting(colour: UInt8[np.ndarray, "3"]) -> tuple[int, int, int]:
    """Return black or white, whichever is more readable on this colour (WCAG 2.1, relative luminance)."""
    luminance = float(_linear(np.asarray(colour)) @ _XYZ[1])
    return (0, 0, 0) if (luminance + 0.05) ** 2 > 1.05 * 0.05 else (255, 255, 255)


@lru_cache(maxsize=1)
def _candidates() -> tuple[np.ndarray, Float[np.ndarray, "3 n 3"]]:
    """Strong colours, neither dark nor pale, and how three kinds of eyes see them."""
    levels = np.linspace(0, 255, 14).round()
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(_linear(colours))
    strong = (np.hypot(lab[:, 1], lab[:, 2]) > 45) & (lab[:, 0] > 40) & (lab[:, 0] < 88)
    colours = colours[strong]
    linear = _linear(colours)
    eyes = (np.eye(3), np.array(_PROTANOPIA), np.array(_DEUTERANOPIA))
    return colours, np.stack([_lab(np.clip(linear @ eye.T, 0, 1)) for eye in eyes])


def _linear(rgb: np.ndarray) -> Float[np.ndarray, "... 3"]:
    share = rgb / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def _lab(linear: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """CIELAB under D65."""
    xyz = linear @ np.array(_XYZ).T / (0.95047, 1.0, 1.08883)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.column_stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])
