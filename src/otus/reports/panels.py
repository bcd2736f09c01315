"""Pictures side by side, each with a title, as one picture."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from otus.reports.lettering import font, printable

_INK, _FAINT = (25, 25, 25), (110, 110, 110)


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture, uint8 (H, W, 3), with a title and a line or more about it."""

    title: str
    text: str
    picture: UInt8[np.ndarray, "h w 3"]


def grid(panels: Sequence[Panel], *, columns: int, width: int = 480) -> UInt8[np.ndarray, "h w 3"]:
    """The panels in rows of ``columns``, on white; each picture becomes ``width`` wide."""
    gap, letters = width // 24, width / 30
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    pictures = [[_fitted(panel.picture, width) for panel in row] for row in rows]
    texts = [[_wrapped(panel.text, width, letters) for panel in row] for row in rows]
    heads = [round(letters * (2.2 + 1.35 * max(map(len, row)))) for row in texts]
    heights = [head + max(one.height for one in row) for head, row in zip(heads, pictures, strict=True)]
    size = (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    y = gap
    for row, row_pictures, row_texts, head, height in zip(rows, pictures, texts, heads, heights, strict=True):
        for column, (panel, picture, lines) in enumerate(zip(row, row_pictures, row_texts, strict=True)):
            x = gap + column * (width + gap)
            pen.text((x, y), printable(panel.title), fill=_INK, font=font(1.25 * letters, bold=True))
            for number, line in enumerate(lines):
                place = (x, y + letters * (1.75 + 1.35 * number))
                pen.text(place, line, fill=_FAINT, font=font(letters))
            page.paste(picture, (x, y + head))
        y += height + gap
    return np.asarray(page)


def _fitted(picture: UInt8[np.ndarray, "h w 3"], width: int) -> Image.Image:
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    return Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)


def _wrapped(text: str, width: int, letters: float) -> list[str]:
    lines: list[str] = []
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(letters).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
