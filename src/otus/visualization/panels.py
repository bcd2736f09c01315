"""Images side by side as one image: titled panels, and mosaics."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from otus.visualization.text import elided, font, legend, printable

_TITLE_COLOUR, _TEXT_COLOUR = (25, 25, 25), (110, 110, 110)
_MOSAIC_BACKGROUND, _CAPTION_COLOUR = (40, 42, 46), (225, 225, 225)
_MAX_ROW_HEIGHT = 480  # of a mosaic, in pixels
_PAGE_ASPECT = 1.4
_MAX_ASPECT = 4.0  # of an image in a mosaic; longer strips are padded


@dataclass(frozen=True, eq=False)
class Panel:
    """An image, uint8 (H, W, 3), with a title and a text, which may take several lines."""

    title: str
    text: str
    image: UInt8[np.ndarray, "h w 3"]


def grid(panels: Sequence[Panel], *, columns: int, width: int = 480) -> UInt8[np.ndarray, "h w 3"]:
    """Draw panels in rows of ``columns`` on white; each image is resized to a width of ``width`` pixels."""
    gap, font_size = width // 24, width / 30
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    images = [[_resize_to_width(panel.image, width) for panel in row] for row in rows]
    texts = [[_wrap(panel.text, width, font_size) for panel in row] for row in rows]
    heads = [round(font_size * (2.2 + 1.35 * max(map(len, row)))) for row in texts]
    heights = [head + max(image.height for image in row) for head, row in zip(heads, images, strict=True)]
    size = (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    y = gap
    for row, row_images, row_texts, head, height in zip(rows, images, texts, heads, heights, strict=True):
        for column, (panel, image, lines) in enumerate(zip(row, row_images, row_texts, strict=True)):
            x = gap + column * (width + gap)
            title = elided(panel.title, 1.25 * font_size, width, bold=True)
            pen.text((x, y), title, fill=_TITLE_COLOUR, font=font(1.25 * font_size, bold=True))
            for number, line in enumerate(lines):
                position = (x, y + font_size * (1.75 + 1.35 * number))
                pen.text(position, line, fill=_TEXT_COLOUR, font=font(font_size))
            page.paste(image, (x, y + head))
        y += height + gap
    return np.asarray(page)


Group = tuple[str, Sequence[UInt8[np.ndarray, "h w 3"]]]


def mosaic(
    groups: Sequence[Group], entries: Sequence[tuple[str, UInt8[np.ndarray, "3"]]] = (), *, width: int = 1440
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw images of any aspect ratios in rows of equal width, on a dark background, with a legend below.

    Parameters
    ----------
    groups
        Pairs of a caption, which may be empty, and images that are shown under it side by side, at the same height.
    entries
        Entries of the legend, see :func:`~otus.visualization.text.legend` (default: no legend).
    width
        Maximum width of the mosaic in pixels.
    """
    rows = _even_rows(groups)
    aspects = [[_aspect(image) for _, images in row for image in images] for row in rows]
    width = min(width, round(_MAX_ROW_HEIGHT * max(sum(row) for row in aspects)))
    font_size, line = max(width / 110, 10), 3
    head = round(1.8 * font_size) if any(caption for caption, _ in groups) else 0
    heights = [round((width - line * (len(row) - 1)) / sum(row)) for row in aspects]
    strip = legend(entries, width, 1.2 * font_size)
    page = Image.new("RGB", (width, sum(heights) + (head + line) * len(rows) - line + len(strip)), _MOSAIC_BACKGROUND)
    pen = ImageDraw.Draw(page)
    y = 0
    for row, row_aspects, height in zip(rows, aspects, heights, strict=True):
        gaps = line * np.arange(len(row_aspects) + 1)
        edges = np.cumsum([0, *row_aspects]) / sum(row_aspects) * (width + line - gaps[-1]) + gaps
        left_edges = iter(np.round(edges).astype(int).tolist())
        left = next(left_edges)
        for caption, images in row:
            start = left
            for image in images:
                right = next(left_edges)
                page.paste(_resize_and_pad(image, (right - line - left, height)), (left, y + head))
                left = right
            text = elided(caption, font_size, left - line - start - font_size)
            pen.text(
                (start + font_size / 2, y + head / 2), text, fill=_CAPTION_COLOUR, font=font(font_size), anchor="lm"
            )
        y += head + height + line
    page.paste(Image.fromarray(strip), (0, y - line))
    return np.asarray(page)


def _even_rows(groups: Sequence[Group]) -> list[list[Group]]:
    """Split groups into rows of about equal width, as many as give a page of aspect ratio ``_PAGE_ASPECT``."""
    widths = np.array([sum(_aspect(image) for image in images) for _, images in groups])
    count = max(1, round(float(np.sqrt(widths.sum() / _PAGE_ASPECT))))
    middles = np.cumsum(widths) - widths / 2
    rows: dict[int, list[Group]] = {}
    for group, row in zip(groups, (middles / widths.sum() * count).astype(int).tolist(), strict=True):
        rows.setdefault(row, []).append(group)
    return list(rows.values())


def _aspect(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """Return width / height of an image in a mosaic: that of the image, limited for strips."""
    return float(np.clip(image.shape[1] / image.shape[0], 1 / _MAX_ASPECT, _MAX_ASPECT))


def _resize_and_pad(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> Image.Image:
    """Resize an image to fit into a size (width, height), and centre it there if its aspect ratio differs."""
    scale = min(size[0] / image.shape[1], size[1] / image.shape[0])
    scaled_wh = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    if abs(scaled_wh[0] - size[0]) <= 3 and abs(scaled_wh[1] - size[1]) <= 3:
        scaled_wh = size
    padded = Image.new("RGB", size, _MOSAIC_BACKGROUND)
    scaled = Image.fromarray(image).resize(scaled_wh, Image.Resampling.LANCZOS)
    padded.paste(scaled, ((size[0] - scaled_wh[0]) // 2, (size[1] - scaled_wh[1]) // 2))
    return padded


def _resize_to_width(image: UInt8[np.ndarray, "h w 3"], width: int) -> Image.Image:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)


def _wrap(text: str, width: int, font_size: float) -> list[str]:
    """Break a text into lines of at most ``width`` pixels."""
    lines: list[str] = []
    for word in printable(text).split():
        word = elided(word, font_size, width)
        extended = f"{lines[-1]} {word}" if lines else word
        if lines and font(font_size).getlength(extended) <= width:
            lines[-1] = extended
        else:
            lines.append(word)
    return lines
