"""Words on pictures: a font, tags that keep out of one another's way, and legends."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from otus.reports.palette import contrasting

Rectangle = tuple[float, float, float, float]
_LEAST_SIZE = 6


@lru_cache(maxsize=64)
def font(size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, of ``size`` pixels."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), max(size, 1))


def text_size(size_hw: tuple[int, int], *, tags: int = 0) -> float:
    """How large letters are in a picture of that size, in pixels; smaller where more than two dozen tags must find room."""
    crowding = min(1.0, (24 / max(tags, 1)) ** 0.4)
    return float(np.clip(0.023 * crowding * np.sqrt(size_hw[0] * size_hw[1]), 10, 48))


def line_width(size_hw: tuple[int, int]) -> float:
    """How wide lines are in a picture of that size, in pixels."""
    return max(1.25, 0.0036 * float(np.sqrt(size_hw[0] * size_hw[1])))


def printable(text: str) -> str:
    """The text on one line, with a sign for each character that no font can draw."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


@dataclass
class Tags:
    """Labels drawn on one picture, each where it hides least of those before it and of the objects.

    Parameters
    ----------
    canvas
        Drawn on; ``size`` is its width and height.
    letters
        The height of letters, in pixels of the canvas.
    boxes_xyxy
        (N, 4), the objects.
    """

    canvas: ImageDraw.ImageDraw
    size: tuple[int, int]
    letters: float
    boxes_xyxy: Float[np.ndarray, "n 4"]

    def __post_init__(self) -> None:
        self._tags = np.zeros((0, 4))

    def put(self, text: str, box_xyxy: Float[np.ndarray, "4"], colour: UInt8[np.ndarray, "3"]) -> Rectangle:
        """Write ``text`` on a ground of ``colour`` at a box, within the picture; returns where."""
        text, letters, margin = printable(text), self.letters, round(0.25 * self.letters)
        width = self._width(text, letters)
        if width + 2 * margin > self.size[0]:
            letters = max(_LEAST_SIZE, letters * (self.size[0] - 2 * margin) / width)
            width = self._width(text, letters)
        width, height = int(np.ceil(width)) + 2 * margin, round(1.3 * letters)
        place = min(self._places(box_xyxy, width, height), key=self._hidden)
        left, top, right, bottom = place
        self.canvas.rectangle((left, top, right - 1, bottom - 1), fill=tuple(int(c) for c in colour))
        middle = (left + margin, (top + bottom) / 2)
        self.canvas.text(middle, text, fill=contrasting(colour), font=font(letters), anchor="lm")
        self._tags = np.vstack([self._tags, place])
        return place

    def _width(self, text: str, letters: float) -> float:
        return self.canvas.textlength(text, font=font(letters))

    def _places(self, box_xyxy: Float[np.ndarray, "4"], width: float, height: float) -> list[Rectangle]:
        """Where a tag may stand, best first: on top of the box, in its upper corners, down its left side, below it."""
        x1, y1, x2, y2 = box_xyxy
        rows = [y1 - height, y1, y2 - height, y2, *np.arange(y1 + height, y2 - 2 * height, height)]
        corners = [(x, y) for y in rows for x in (x1, x2 - width)]
        limit_x, limit_y = max(self.size[0] - width, 0), max(self.size[1] - height, 0)
        inside = [(float(np.clip(x, 0, limit_x)), float(np.clip(y, 0, limit_y))) for x, y in corners]
        return [(x, y, x + width, y + height) for x, y in map(tuple, np.round(inside))]

    def _hidden(self, place: Rectangle) -> float:
        """How bad a place is: the pixels of other tags that it hides, and a tenth of those of objects."""
        return _overlap(self._tags, place) + 0.1 * _overlap(self.boxes_xyxy, place)


def _overlap(rectangles: Float[np.ndarray, "n 4"], one: Rectangle) -> float:
    """The sum of the areas that ``one`` has in common with each rectangle."""
    sides = np.minimum(rectangles[:, 2:], one[2:]) - np.maximum(rectangles[:, :2], one[:2])
    return float(np.maximum(sides, 0).prod(axis=1).sum())


def legend(entries: Sequence[tuple[str, UInt8[np.ndarray, "3"]]], width: int, letters: float) -> np.ndarray:
    """A white strip of that width, uint8 (h, width, 3), with a swatch and a name for each entry, as many a row as fit."""
    step, gap = round(1.7 * letters), round(0.5 * letters)
    entries = [(printable(name), colour) for name, colour in entries]
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
