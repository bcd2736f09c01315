"""The objects of synthetic scenes: outlines in a local frame, and their rasterisation.

Shape shorthand: P points of a ring, K keypoints, h x w a window of the image. In the local frame of an object, x and y
run from -1 to 1 over its width and height; y points down.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from otus.structures import KeypointNames

KITE = KeypointNames(
    ("nose", "left_wing", "right_wing", "tail"), skeleton=((0, 1), (0, 2), (1, 3), (2, 3), (0, 3)), flip_pairs=((1, 2),)
)
_SUPERSAMPLING = 4


@dataclass(frozen=True, eq=False)
class Shape:
    """A category of objects.

    Parameters
    ----------
    rings
        (P, 2) each: the outer ring first, then holes.
    aspect
        Minimum and maximum of width / height.
    can_rotate
        Whether objects are rotated (default: True; False for circles, whose angle is undefined).
    keypoints
        (K, 2), slightly inside the outline so that they lie on the object (default: none).
    """

    rings: tuple[Float[np.ndarray, "p 2"], ...]
    aspect: tuple[float, float]
    can_rotate: bool = True
    keypoints: Float[np.ndarray, "k 2"] | None = None


def _circle(radius: float = 1.0) -> Float[np.ndarray, "64 2"]:
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return radius * np.column_stack([np.cos(angle), np.sin(angle)])


def _star() -> Float[np.ndarray, "10 2"]:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return _normalized(radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]))


def _heart() -> Float[np.ndarray, "64 2"]:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _normalized(np.column_stack([16 * np.sin(t) ** 3, -y]))


def _normalized(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
    low, high = points.min(axis=0), points.max(axis=0)
    return (2 * points - low - high) / (high - low)


_ARM = 0.36
_CROSS = np.array(
    [
        *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
        *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
    ]
)
_WING = -0.35  # y of a kite's wings; the nose is at -1

SHAPES: dict[str, Shape] = {
    "circle": Shape((_circle(),), (1.0, 1.0), can_rotate=False),
    "ellipse": Shape((_circle(),), (0.45, 0.7)),
    "ring": Shape((_circle(), _circle(0.55)), (1.0, 1.0), can_rotate=False),
    "rectangle": Shape((np.array([(-1.0, -1), (1, -1), (1, 1), (-1, 1)]),), (0.4, 0.9)),
    "triangle": Shape((np.array([(0.0, -1), (1, 1), (-1, 1)]),), (0.8, 1.2)),
    "star": Shape((_star(),), (1.05, 1.05)),
    "cross": Shape((_CROSS,), (1.0, 1.0)),
    "heart": Shape((_heart(),), (1.0, 1.15)),
    "kite": Shape(
        (np.array([(0, -1), (1, _WING), (0, 1), (-1, _WING)]),),
        (0.6, 0.75),
        keypoints=np.array([(0, -0.85), (-0.8, _WING), (0.8, _WING), (0, 0.8)]),
    ),
}
"""The categories of countable objects, by name."""


@dataclass(frozen=True)
class Pose:
    """Position of an object: centre, width and height in pixels, angle in radians (clockwise on screen)."""

    x: float
    y: float
    width: float
    height: float
    angle: float

    def to_image(self, points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
        """Transform points from the local frame to the image."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        scaled = points * (self.width / 2, self.height / 2)
        return scaled @ np.array([[cos, sin], [-sin, cos]]) + (self.x, self.y)

    def to_local(self, top: int, left: int, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return local x and y of a window's pixels, in units of half the longer side."""
        height, width = size_hw
        dx = np.arange(left, left + width, dtype=np.float32)[None, :] + np.float32(0.5 - self.x)
        dy = np.arange(top, top + height, dtype=np.float32)[:, None] + np.float32(0.5 - self.y)
        cos, sin, half = np.cos(self.angle), np.sin(self.angle), max(self.width, self.height) / 2
        return dx * np.float32(cos / half) + dy * np.float32(sin / half), dy * np.float32(cos / half) - dx * np.float32(
            sin / half
        )


def window(points: Float[np.ndarray, "p 2"], size_hw: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the image that the points span."""
    (left, top), (right, bottom) = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
    rows, columns = np.clip([top, bottom], 0, size_hw[0]), np.clip([left, right], 0, size_hw[1])
    return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))


def coverage(
    rings: list[Float[np.ndarray, "p 2"]], rows: slice, columns: slice, *, rim: float
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Return the fraction of each pixel in a window that is inside the rings, and on a line of width ``rim`` along them."""
    size = ((columns.stop - columns.start) * _SUPERSAMPLING, (rows.stop - rows.start) * _SUPERSAMPLING)
    inside, outline = Image.new("L", size), Image.new("L", size)
    fill, stroke = ImageDraw.Draw(inside), ImageDraw.Draw(outline)
    for index, ring in enumerate(rings):
        # In Pillow, integer coordinates are centres of pixels; in Otus, corners.
        points = ((ring - (columns.start, rows.start)) * _SUPERSAMPLING - 0.5).ravel().tolist()
        fill.polygon(points, fill=0 if index else 255)
        joint = "curve" if len(ring) <= 12 else None  # slow, and visible only at sharp corners
        stroke.line([*points, *points[:4]], fill=255, width=max(1, round(rim * _SUPERSAMPLING)), joint=joint)
    fractions = (np.asarray(drawing.reduce(_SUPERSAMPLING), dtype=np.float32) / 255 for drawing in (inside, outline))
    return next(fractions), next(fractions)


def _plain(x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    return np.zeros(x.shape, dtype=np.float32)


def _stripes(x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    return np.clip(0.5 + 3 * np.sin(np.float32(frequency) * x), 0, 1)


def _checks(x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    return np.clip(0.5 + 4 * np.sin(np.float32(frequency) * x) * np.sin(np.float32(frequency) * y), 0, 1)


def _dots(x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    return np.clip(4 * (np.cos(np.float32(frequency) * x) + np.cos(np.float32(frequency) * y)) - 3.2, 0, 1)


PATTERNS: tuple[Callable[[np.ndarray, np.ndarray, float], np.ndarray], ...] = (_plain, _stripes, _checks, _dots)
"""Functions from local x, y and a frequency to the fraction of the second colour at each pixel, in [0, 1]."""
