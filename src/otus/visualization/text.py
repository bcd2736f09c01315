"""Text on images: font, label tags that do not overlap, legends."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from otus.visualization.palette import contrasting

Rectangle = tuple[float, float, float, float]
_MIN_SIZE = 6
MAX_HIDDEN, MAX_COVERED = 0.25, 0.25
"""Maximum fraction of an object, and of an image, that tags may hide."""


@lru_cache(maxsize=64)
def font(size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font DejaVu Sans, which comes with matplotlib, at ``size`` pixels."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), max(size, 1))


def text_size(size_hw: tuple[int, int]) -> float:
    """Return the font size for an image of ``size_hw``, in pixels."""
    return float(np.clip(0.023 * np.sqrt(size_hw[0] * size_hw[1]), 10, 60))


def line_width(size_hw: tuple[int, int], boxes_xyxy: Float[np.ndarray, "n 4"] | None = None) -> float:
    """Return the line width for an image of ``size_hw``, in pixels; thinner if most boxes are small."""
    width = max(1.25, 0.0036 * float(np.sqrt(size_hw[0] * size_hw[1])))
    if boxes_xyxy is None or not len(boxes_xyxy):
        return width
    sides = np.nan_to_num(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2])
    return float(np.clip(0.08 * np.median(np.sqrt(np.maximum(sides.prod(axis=1), 0))), 1, width))


def printable(text: str) -> str:
    """Return the text on one line, with a replacement character for each that cannot be drawn."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


@dataclass(frozen=True)
class Tag:
    """A short text on a background of the object's colour, with its rectangle (x1, y1, x2, y2) and font size in pixels."""

    text: str
    rectangle: Rectangle
    font_size: float

    def draw(self, canvas: ImageDraw.ImageDraw, colour: UInt8[np.ndarray, "3"]) -> None:
        """Draw the tag."""
        left, top, right, bottom = self.rectangle
        canvas.rectangle((left, top, right - 1, bottom - 1), fill=tuple(int(c) for c in colour))
        middle = (left + _margin(self.font_size), (top + bottom) / 2)
        canvas.text(middle, self.text, fill=contrasting(colour), font=font(self.font_size), anchor="lm")


def place_tags(
    texts: Sequence[str | None],
    boxes_xyxy: Float[np.ndarray, "n 4"],
    size: tuple[int, int],
    font_size: float,
    *,
    max_skipped: int | None = None,
    rings: Sequence[Float[np.ndarray, "4 2"] | None] = (),
) -> list[Tag | None]:
    """Place a tag at each box, in this order, where it hides least; None if it would hide another tag, or too much.

    Parameters
    ----------
    texts
        N texts; None for a box without a tag.
    boxes_xyxy
        (N, 4) boxes of the objects. The tags together hide at most ``MAX_HIDDEN`` of each.
    size
        Width and height of the canvas. Tags are inside it and, if there are several, cover at most ``MAX_COVERED`` of it.
    font_size
        Font size in pixels; smaller for a text wider than the canvas.
    max_skipped
        Stop when more tags than this have been skipped (default: never).
    rings
        Corners of oriented boxes, None for others.
    """
    corners = np.nan_to_num(boxes_xyxy)
    areas = np.maximum((corners[:, 2:] - corners[:, :2]).prod(axis=1), 1)
    hidden, placed, free_area = np.zeros(len(corners)), np.zeros((0, 4)), MAX_COVERED * size[0] * size[1]
    tags: list[Tag | None] = [None] * len(texts)
    skipped = 0
    for i, (text, box) in enumerate(zip(texts, corners, strict=True)):
        if max_skipped is not None and skipped > max_skipped:
            break
        if text is None:
            continue
        skipped += 1
        text, fitted_size, width = _fit_text(text, font_size, size[0])
        height = round(1.3 * fitted_size)
        if len(placed) and width * height > free_area:
            continue
        ring = rings[i] if rings else None
        corners_xy = _beside_box(box, width, height) if ring is None else _beside_ring(ring, width, height, size)
        limit = np.maximum([size[0] - width, size[1] - height], 0)
        inside = np.round(np.clip(corners_xy, 0, limit))
        candidates = np.column_stack([inside, inside + np.array([width, height])])
        near = _near(candidates, corners)
        overlaps = _overlaps(candidates, corners[near])
        allowed = ~_overlaps(candidates, placed[_near(candidates, placed)]).any(axis=1)
        allowed &= (hidden[near] + overlaps <= MAX_HIDDEN * areas[near]).all(axis=1)
        if allowed.any():
            best = int(np.where(allowed, overlaps.sum(axis=1), np.inf).argmin())
            hidden[near] += overlaps[best]
            free_area -= width * height
            placed = np.vstack([placed, candidates[best]])
            tags[i] = Tag(text, tuple(candidates[best].tolist()), fitted_size)
            skipped -= 1
    return tags


def _margin(font_size: float) -> int:
    return round(0.25 * font_size)


def _fit_text(text: str, font_size: float, max_width: float) -> tuple[str, float, int]:
    """Return the printable text, its font size, reduced if it is wider than ``max_width``, and the width of its tag."""
    text, margin = printable(text), _margin(font_size)
    width = font(font_size).getlength(text)
    if width + 2 * margin > max_width:
        font_size = max(_MIN_SIZE, font_size * (max_width - 2 * margin) / width)
        margin = _margin(font_size)
        text = elided(text, font_size, max_width - 2 * margin)
        width = font(font_size).getlength(text)
    return text, font_size, int(np.ceil(width)) + 2 * margin


def _beside_box(box_xyxy: Float[np.ndarray, "4"], width: float, height: float) -> list[tuple[float, float]]:
    """Return candidate upper left corners of a tag, best first: above the box, in its upper corners, in its lower
    ones, below it, beside it, along its sides."""
    x1, y1, x2, y2 = box_xyxy
    rows = [y1 - height, y1, y2 - height, y2]
    corners = [(x, y) for y in rows for x in (x1, x2 - width)]
    corners += [(x, y) for y in (y1, y2 - height) for x in (x2, x1 - width)]
    corners += [(x, y) for y in np.arange(y1 + height, y2 - 2 * height, height) for x in (x1, x2 - width)]
    return corners


def _beside_ring(
    ring: Float[np.ndarray, "4 2"], width: float, height: float, size: tuple[int, int]
) -> list[tuple[float, float]]:
    """Return the same for an oriented box: above and below points of its outline inside the canvas, upper ones first."""
    fractions = np.arange(0, 1, 0.25)[:, None, None]
    points = ((1 - fractions) * ring + fractions * np.roll(ring, -1, axis=0)).reshape(-1, 2)
    inside = ((points >= 0) & (points <= size)).all(axis=1)
    points = points[inside] if inside.any() else points
    points = points[np.argsort(points[:, 1], kind="stable")]
    return [(left, top) for x, y in points.tolist() for top in (y - height, y) for left in (x, x - width)]


def _near(rectangles: Float[np.ndarray, "p 4"], others: Float[np.ndarray, "n 4"]) -> Int[np.ndarray, "k"]:
    """Return the indices of the others that may intersect one of the rectangles."""
    low, high = rectangles[:, :2].min(axis=0), rectangles[:, 2:].max(axis=0)
    return np.flatnonzero((others[:, :2] < high).all(axis=1) & (others[:, 2:] > low).all(axis=1))


def _overlaps(rectangles: Float[np.ndarray, "p 4"], others: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "p n"]:
    """Return the intersection areas of rectangles and others."""
    sides = np.minimum(rectangles[:, None, 2:], others[:, 2:]) - np.maximum(rectangles[:, None, :2], others[:, :2])
    return np.maximum(sides, 0).prod(axis=2)


def elided(text: str, font_size: float, width: float, *, bold: bool = False) -> str:
    """Return the text, its middle replaced by … if it is wider than ``width``."""
    measure = font(font_size, bold=bold).getlength
    text = printable(text)
    if measure(text) <= width:
        return text
    count = next((n for n in range(len(text) - 1, 1, -1) if measure(_without_middle(text, n)) <= width), 1)
    return _without_middle(text, count)


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"


def legend(entries: Sequence[tuple[str, UInt8[np.ndarray, "3"]]], width: int, font_size: float) -> np.ndarray:
    """Draw a legend on white, uint8 (h, width, 3): a colour swatch and a name for each entry, in as many rows as needed."""
    step, gap = round(1.7 * font_size), round(0.5 * font_size)
    entries = [(elided(name, font_size, width - font_size - 3 * gap), colour) for name, colour in entries]
    measure = font(font_size).getlength
    positions: list[tuple[float, int]] = []
    x, row = float(gap), 0
    for name, _ in entries:
        entry_width = font_size + gap + measure(name)
        if positions and x + entry_width + gap > width:
            x, row = float(gap), row + 1
        positions.append((x, row))
        x += entry_width + 2 * gap
    strip = Image.new("RGB", (width, (row + 1) * step + gap if entries else 0), "white")
    canvas = ImageDraw.Draw(strip)
    for (name, colour), (x, row) in zip(entries, positions, strict=True):
        middle = gap / 2 + (row + 0.5) * step
        swatch = (x, middle - font_size / 2, x + font_size, middle + font_size / 2)
        canvas.rounded_rectangle(swatch, radius=font_size / 5, fill=tuple(int(c) for c in colour))
        canvas.text((x + font_size + gap, middle), name, fill=(20, 20, 20), font=font(font_size), anchor="lm")
    return np.asarray(strip)
