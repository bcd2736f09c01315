"""Images side by side as one image: titled panels, and mosaics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from otus.visualization.text import elided, font, legend, printable

_INK, _FAINT = (25, 25, 25), (110, 110, 110)
_DARK, _PALE = (40, 42, 46), (225, 225, 225)
_TALLEST = 480  # pixels of a mosaic's rows
_PAGE_ASPECT = 1.4
_LONGEST = 4.0  # sides' ratio of an image that is shown as it is in a mosaic


@dataclass(frozen=True, eq=False)
class Panel:
    """An image, uint8 (H, W, 3), with a title and a line or more about it."""

    title: str
    text: str
    image: UInt8[np.ndarray, "h w 3"]


def grid(panels: Sequence[Panel], *, columns: int, width: int = 480) -> UInt8[np.ndarray, "h w 3"]:
    """Draw panels in rows of ``columns``, on white; each image is resized to ``width`` pixels."""
    gap, font_size = width // 24, width / 30
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    images = [[_fitted(panel.image, width) for panel in row] for row in rows]
    texts = [[_wrapped(panel.text, width, font_size) for panel in row] for row in rows]
    heads = [round(font_size * (2.2 + 1.35 * max(map(len, row)))) for row in texts]
    heights = [head + max(one.height for one in row) for head, row in zip(heads, images, strict=True)]
    size = (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    y = gap
    for row, row_images, row_texts, head, height in zip(rows, images, texts, heads, heights, strict=True):
        for column, (panel, image, lines) in enumerate(zip(row, row_images, row_texts, strict=True)):
            x = gap + column * (width + gap)
            title = elided(panel.title, 1.25 * font_size, width, bold=True)
            pen.text((x, y), title, fill=_INK, font=font(1.25 * font_size, bold=True))
            for number, line in enumerate(lines):
                position = (x, y + font_size * (1.75 + 1.35 * number))
                pen.text(position, line, fill=_FAINT, font=font(font_size))
            page.paste(image, (x, y + head))
        y += height + gap
    return np.asarray(page)


Group = tuple[str, Sequence[UInt8[np.ndarray, "h w 3"]]]


def mosaic(
    groups: Sequence[Group], entries: Sequence[tuple[str, UInt8[np.ndarray, "3"]]] = (), *, width: int = 1440
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw images in rows that they fill from edge to edge, whatever their shapes, on dark ground; a legend below.

    Parameters
    ----------
    groups
        A caption, or none, and the images under it: of one height, side by side.
    entries
        Of the legend, see :func:`~otus.visualization.text.legend`.
    width
        In pixels.
    """
    rows = _even_rows(groups)
    shapes = [[_aspect(image) for _, images in row for image in images] for row in rows]
    width = min(width, round(_TALLEST * max(sum(row) for row in shapes)))
    font_size, line = max(width / 110, 10), 3
    head = round(1.8 * font_size) if any(caption for caption, _ in groups) else 0
    heights = [round((width - line * (len(row) - 1)) / sum(row)) for row in shapes]
    strip = legend(entries, width, 1.2 * font_size)
    page = Image.new("RGB", (width, sum(heights) + (head + line) * len(rows) - line + len(strip)), _DARK)
    pen = ImageDraw.Draw(page)
    y = 0
    for row, row_shapes, height in zip(rows, shapes, heights, strict=True):
        gaps = line * np.arange(len(row_shapes) + 1)
        edges = np.cumsum([0, *row_shapes]) / sum(row_shapes) * (width + line - gaps[-1]) + gaps  # of images with gaps
        places = iter(np.round(edges).astype(int).tolist())
        left = next(places)
        for caption, images in row:
            start = left
            for image in images:
                right = next(places)
                page.paste(_within(image, (right - line - left, height)), (left, y + head))
                left = right
            text = elided(caption, font_size, left - line - start - font_size)
            pen.text((start + font_size / 2, y + head / 2), text, fill=_PALE, font=font(font_size), anchor="lm")
        y += head + height + line
    page.paste(Image.fromarray(strip), (0, y - line))
    return np.asarray(page)


def _even_rows(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups in rows of about the same width at one height, as many as make a page a little broader than high."""
    widths = np.array([sum(_aspect(image) for image in images) for _, images in groups])
    count = max(1, round(float(np.sqrt(widths.sum() / _PAGE_ASPECT))))
    middles = np.cumsum(widths) - widths / 2
    rows: dict[int, list[Group]] = {}
    for group, row in zip(groups, (middles / widths.sum() * count).astype(int).tolist(), strict=True):
        rows.setdefault(row, []).append(group)
    return list(rows.values())


def _aspect(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Width by height of an image's place in a mosaic: its own, unless it is a strip."""
    return float(np.clip(image.shape[1] / image.shape[0], 1 / _LONGEST, _LONGEST))


def _within(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Image.Image:
    """The image at that size; a strip in the middle of it."""
    scale = min(size[0] / image.shape[1], size[1] / image.shape[0])
    own = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    own = (size[0], size[1]) if abs(own[0] - size[0]) <= 3 and abs(own[1] - size[1]) <= 3 else own
    position = Image.new("RGB", size, _DARK)
    scaled = Image.fromarray(image).resize(own, Image.Resampling.LANCZOS)
    position.paste(scaled, ((size[0] - own[0]) // 2, (size[1] - own[1]) // 2))
    return position


def _fitted(image: UInt8[np.ndarray, "h w 3"], width: int) -> Image.Image:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)


def _wrapped(text: str, width: int, font_size: float) -> list[str]:
    lines: list[str] = []
    for word in printable(text).split():
        word = elided(word, font_size, width)
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(font_size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
