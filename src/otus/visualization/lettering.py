"""Text on images: a font, tags that do not overlap, and legends."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from otus.visualization.palette import contrasting

Rectangle = tuple[float, float, float, float]
_LEAST_SIZE = 6
MOST_HIDDEN, MOST_COVERED = 0.25, 0.25
"""Share of an object, and of an image, that tags may hide."""


@lru_cache(maxsize=64)
def font(size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, of ``size`` pixels."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), max(size, 1))


def text_size(size_hw: tuple[int, int]) -> float:
    """Return the letter size for an image of ``size_hw``, in pixels."""
    return float(np.clip(0.023 * np.sqrt(size_hw[0] * size_hw[1]), 10, 60))


def line_width(size_hw: tuple[int, int], boxes_xyxy: Float[np.ndarray, "n 4"] | None = None) -> float:
    """Return the line width for an image of ``size_hw``, in pixels; finer where most boxes are small."""
    width = max(1.25, 0.0036 * float(np.sqrt(size_hw[0] * size_hw[1])))
    if boxes_xyxy is None or not len(boxes_xyxy):
        return width
    sides = np.nan_to_num(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2])
    return float(np.clip(0.08 * np.median(np.sqrt(np.maximum(sides.prod(axis=1), 0))), 1, width))


def printable(text: str) -> str:
    """Return the text on one line, with a sign for each character that no font can draw."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


@dataclass(frozen=True)
class Tag:
    """A short text on the object's colour: its rectangle (x1, y1, x2, y2) and letter size in pixels."""

    text: str
    place: Rectangle
    letters: float

    def draw(self, canvas: ImageDraw.ImageDraw, colour: UInt8[np.ndarray, "3"]) -> None:
        """Write it."""
        left, top, right, bottom = self.place
        canvas.rectangle((left, top, right - 1, bottom - 1), fill=tuple(int(c) for c in colour))
        middle = (left + _margin(self.letters), (top + bottom) / 2)
        canvas.text(middle, self.text, fill=contrasting(colour), font=font(self.letters), anchor="lm")


def place_tags(
    texts: Sequence[str | None],
    boxes_xyxy: Float[np.ndarray, "n 4"],
    size: tuple[int, int],
    letters: float,
    *,
    most_left_out: int | None = None,
    rings: Sequence[Float[np.ndarray, "4 2"] | None] = (),
) -> list[Tag | None]:
    """Place a tag at each box, in this order, where it hides least; none where it would hide another tag, or too much.

    Parameters
    ----------
    texts
        N of them; None for a box that gets no tag.
    boxes_xyxy
        (N, 4), the objects. The tags together hide at most a share ``MOST_HIDDEN`` of each.
    size
        Width and height of the canvas. Tags lie within it and, if there are several, cover at most ``MOST_COVERED`` of it.
    letters
        Their height in pixels; a text wider than the canvas gets smaller ones.
    most_left_out
        Give up, and place no further ones, when more than that find no room.
    rings
        Corners of the objects whose box is oriented, None for others: the corners of the upright box around it are nowhere
        near what is drawn.
    """
    corners = np.nan_to_num(boxes_xyxy)
    areas = np.maximum((corners[:, 2:] - corners[:, :2]).prod(axis=1), 1)
    hidden, placed, room = np.zeros(len(corners)), np.zeros((0, 4)), MOST_COVERED * size[0] * size[1]
    tags: list[Tag | None] = [None] * len(texts)
    left_out = 0
    for i, (text, box) in enumerate(zip(texts, corners, strict=True)):
        if most_left_out is not None and left_out > most_left_out:
            break
        if text is None:
            continue
        left_out += 1
        text, own, width = _fitted(text, letters, size[0])
        height = round(1.3 * own)
        if len(placed) and width * height > room:
            continue
        ring = rings[i] if rings else None
        corners_xy = _beside_box(box, width, height) if ring is None else _beside_ring(ring, width, height, size)
        limit = np.maximum([size[0] - width, size[1] - height], 0)
        inside = np.round(np.clip(corners_xy, 0, limit))
        places = np.column_stack([inside, inside + np.array([width, height])])
        near = _near(places, corners)
        of_objects = _overlaps(places, corners[near])
        free = ~_overlaps(places, placed[_near(places, placed)]).any(axis=1)
        free &= (hidden[near] + of_objects <= MOST_HIDDEN * areas[near]).all(axis=1)
        if free.any():
            best = int(np.where(free, of_objects.sum(axis=1), np.inf).argmin())
            hidden[near] += of_objects[best]
            room -= width * height
            placed = np.vstack([placed, places[best]])
            tags[i] = Tag(text, tuple(places[best].tolist()), own)
            left_out -= 1
    return tags


def _margin(letters: float) -> int:
    return round(0.25 * letters)


def _fitted(text: str, letters: float, most: float) -> tuple[str, float, int]:
    """A text as it can be drawn, its letters, smaller where it would be wider than ``most``, and the width of its tag."""
    text, margin = printable(text), _margin(letters)
    width = font(letters).getlength(text)
    if width + 2 * margin > most:
        letters = max(_LEAST_SIZE, letters * (most - 2 * margin) / width)
        margin = _margin(letters)
        text = elided(text, letters, most - 2 * margin)
        width = font(letters).getlength(text)
    return text, letters, int(np.ceil(width)) + 2 * margin


def _beside_box(box_xyxy: Float[np.ndarray, "4"], width: float, height: float) -> list[tuple[float, float]]:
    """Where the upper left of a tag may be, best first: on top of the box, in its upper corners, in its lower ones, below
    it, at its sides, down along them."""
    x1, y1, x2, y2 = box_xyxy
    rows = [y1 - height, y1, y2 - height, y2]
    corners = [(x, y) for y in rows for x in (x1, x2 - width)]
    corners += [(x, y) for y in (y1, y2 - height) for x in (x2, x1 - width)]
    corners += [(x, y) for y in np.arange(y1 + height, y2 - 2 * height, height) for x in (x1, x2 - width)]
    return corners


def _beside_ring(
    ring: Float[np.ndarray, "4 2"], width: float, height: float, size: tuple[int, int]
) -> list[tuple[float, float]]:
    """The same around an oriented box: above and below points of its outline that the canvas shows, the upper ones first."""
    shares = np.arange(0, 1, 0.25)[:, None, None]
    points = ((1 - shares) * ring + shares * np.roll(ring, -1, axis=0)).reshape(-1, 2)
    is_shown = ((points >= 0) & (points <= size)).all(axis=1)
    points = points[is_shown] if is_shown.any() else points
    points = points[np.argsort(points[:, 1], kind="stable")]
    return [(left, top) for x, y in points.tolist() for top in (y - height, y) for left in (x, x - width)]


def _near(places: Float[np.ndarray, "p 4"], others: Float[np.ndarray, "n 4"]) -> Int[np.ndarray, "k"]:
    """Which of the others can have anything in common with one of the places."""
    low, high = places[:, :2].min(axis=0), places[:, 2:].max(axis=0)
    return np.flatnonzero((others[:, :2] < high).all(axis=1) & (others[:, 2:] > low).all(axis=1))


def _overlaps(rectangles: Float[np.ndarray, "p 4"], others: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "p n"]:
    """The area that each rectangle has in common with each of the others."""
    sides = np.minimum(rectangles[:, None, 2:], others[:, 2:]) - np.maximum(rectangles[:, None, :2], others[:, :2])
    return np.maximum(sides, 0).prod(axis=2)


def elided(text: str, letters: float, width: float, *, bold: bool = False) -> str:
    """Return the text, with … in place of its middle where it is wider than ``width``."""
    measure = font(letters, bold=bold).getlength
    text = printable(text)
    if measure(text) <= width:
        return text
    kept = next((n for n in range(len(text) - 1, 1, -1) if measure(_without_middle(text, n)) <= width), 1)
    return _without_middle(text, kept)


def _without_middle(text: str, kept: int) -> str:
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"


def legend(entries: Sequence[tuple[str, UInt8[np.ndarray, "3"]]], width: int, letters: float) -> np.ndarray:
    """Draw a white strip of that width, uint8 (h, width, 3), with a swatch and a name for each entry, as many a row as
    fit."""
    step, gap = round(1.7 * letters), round(0.5 * letters)
    entries = [(elided(name, letters, width - letters - 3 * gap), colour) for name, colour in entries]
    measure = font(letters).getlength
    places: list[tuple[float, int]] = []
    x, row = float(gap), 0
    for name, _ in entries:
        needed = letters + gap + measure(name)
        if places and x + needed + gap > width:
            x, row = float(gap), row + 1
        places.append((x, row))
        x += needed + 2 * gap
    strip = Image.new("RGB", (width, (row + 1) * step + gap if entries else 0), "white")
    canvas = ImageDraw.Draw(strip)
    for (name, colour), (x, row) in zip(entries, places, strict=True):
        middle = gap / 2 + (row + 0.5) * step
        swatch = (x, middle - letters / 2, x + letters, middle + letters / 2)
        canvas.rounded_rectangle(swatch, radius=letters / 5, fill=tuple(int(c) for c in colour))
        canvas.text((x + letters + gap, middle), name, fill=(20, 20, 20), font=font(letters), anchor="lm")
    return np.asarray(strip)
