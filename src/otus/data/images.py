"""Read images of any type as uint8 (H, W, 3) RGB, upright, as a viewer shows them.

Converts transparency, 16-bit and float images; :mod:`otus.data.image_decoding` opens and decodes the files. Label
images are read as their integer labels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFile

from otus.data.image_decoding import (
    check_pixel_count,
    decoding,
    open_image,
    source_name,
    upright_size_hw,
    upright_transposition,
)
from otus.errors import ImageError, ShapeError

MAX_PIXELS = 180_000_000
"""Default limit of an image's pixels: 540 MB as RGB. A file of a few bytes can claim any size."""

REDUCED_FROM = 25_000_000
"""Images of more pixels than most cameras take may be decoded at a fraction of their size."""

TargetSize = Callable[[tuple[int, int]], tuple[int, int]]
"""A function from an image's height and width to the height and width that it will be resized to."""

_STRIP_ROWS = 512
_COLOUR_WEIGHTS = np.array([1, 256, 256**2])  # of red, green and blue in one number
_NO_COLOUR = 255
_MAX_12_BITS = 4095

ImageSource = str | Path | bytes | Image.Image | np.ndarray


def read_image(
    source: ImageSource, *, expected_size_hw: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image as uint8 (H, W, 3) RGB, upright.

    EXIF orientation is applied, also to a PIL image. Transparent pixels are blended with white, as in a browser. 16
    bits are scaled to 8 (65535 becomes 255). Floats are scaled from [0, 1], or from [0, 255] if any exceeds 1, or else
    from their minimum and maximum; so are 32-bit integers above 65535. Of several pages or frames the first is read;
    :func:`image_notes` reports the others.

    Parameters
    ----------
    source
        A path, an encoded image (bytes), a PIL image, or uint8 of shape (H, W), (H, W, 1), (H, W, 3) RGB or
        (H, W, 4) RGBA.
    expected_size_hw
        Height and width that the labels state; raise if the image has others (default: any).
    max_pixels
        Maximum number of pixels; larger images are rejected before they are decoded (default: 180 million).

    Raises
    ------
    ImageError
        If it is missing, unreadable, truncated, not an image, too large, or not of the expected size.
    ShapeError
        If an array has another shape or type.
    """
    return read_reduced_image(source, expected_size_hw=expected_size_hw, max_pixels=max_pixels)[0]


def read_reduced_image(
    source: ImageSource,
    target_size: TargetSize | None = None,
    *,
    expected_size_hw: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """Read an image, a huge one at a fraction of its size, and return it with its full height and width.

    An image of more than :data:`REDUCED_FROM` pixels is downscaled by 2, 4 or 8, as long as it stays at least twice as
    large as ``target_size``. A JPEG is decoded directly at that size.

    Parameters
    ----------
    target_size
        A function from the image's height and width to those that it will be resized to (default: the full size).
    expected_size_hw, max_pixels
        As in :func:`read_image`; the size is that of the full image.

    Raises
    ------
    ImageError, ShapeError
        As in :func:`read_image`.
    """
    if isinstance(source, np.ndarray):
        source = _image_of_array(source)
    name = source_name(source)
    with open_image(source, name) as image:
        check_pixel_count(image.size, name, max_pixels)
        transposition = upright_transposition(image)
        size_hw = upright_size_hw(image, transposition)
        factor = 1 if target_size is None else _reduction(size_hw, target_size(size_hw))
        if factor > 1:
            width, height = image.size
            image.draft(None, (width // factor, height // factor))
            factor = round(factor * image.width / width)  # 1 for a JPEG: draft mode has reduced it
        with decoding(image, name):
            pixels = _as_rgb(image, factor)
            if transposition is not None:
                pixels = np.asarray(Image.fromarray(pixels).transpose(transposition))
    check_image_size(size_hw, expected_size_hw, name)
    return pixels, size_hw


def reduce_image(image: UInt8[np.ndarray, "h w 3"], target_size: TargetSize) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Downscale a huge image by the factor that :func:`read_reduced_image` would use; return others unchanged."""
    size_hw = (image.shape[0], image.shape[1])
    factor = _reduction(size_hw, target_size(size_hw))
    return image if factor == 1 else np.array(Image.fromarray(image).reduce(factor))


def _reduction(size_hw: tuple[int, int], target_hw: tuple[int, int]) -> int:
    """Return the integer factor by which an image may be downscaled."""
    if size_hw[0] * size_hw[1] <= REDUCED_FROM:
        return 1
    max_factor = min(size // (2 * target) for size, target in zip(size_hw, target_hw, strict=True))
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(max_factor, 1))


def image_size_hw(path: str | Path) -> tuple[int, int]:
    """Return the height and width that :func:`read_image` would give, reading the header only.

    Raises
    ------
    ImageError
        If it is missing or not an image.
    """
    with open_image(path, str(path)) as image:
        return upright_size_hw(image, upright_transposition(image))


def image_notes(source: str | Path | bytes) -> dict[str, str]:
    """Return warnings about an image as a dict from kind to message.

    ``further_pages``: the file has pages or frames after the first (the second image of a phone's MPO does not count).
    ``dark_image``: it has 16 bits per pixel of which at most 12 are used, as microscopes and medical devices write
    them.

    Raises
    ------
    ImageError
        If it is missing, or not an image.
    """
    name, notes = source_name(source), {}
    with open_image(source, name) as image:
        if (pages := _page_count(image)) > 1:
            notes["further_pages"] = f"has {pages} pages or frames, of which the first is used; save each as a file"
        if image.mode == "I" or image.mode.startswith("I;16"):
            with decoding(image, name):
                image.load()
            brightest = int(np.asarray(image).max())
            if 0 < brightest <= _MAX_12_BITS:
                notes["dark_image"] = (
                    f"has 16 bits per pixel, but the largest value is {brightest}: the image is read as nearly black; "
                    f"save it with values up to 65535, or as 8 bits"
                )
    return notes


def _page_count(image: Image.Image) -> int:
    if image.format in ("JPEG", "MPO"):
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except Exception:  # only a page after the first is broken, and it is not used
        return 1


def read_thumbnail(path: str | Path, *, side: int) -> tuple[UInt8[np.ndarray, "side side"], tuple[int, int]]:
    """Return a grey thumbnail of ``side`` x ``side`` pixels (aspect ratio not kept) and the image's height and width.

    The whole file is read, so a truncated one raises, but a large JPEG is decoded at a fraction of its size.

    Raises
    ------
    ImageError
        As in :func:`read_image`.
    """
    name = str(path)
    with open_image(path, name) as image:
        check_pixel_count(image.size, name, MAX_PIXELS)
        transposition = upright_transposition(image)
        size_hw = upright_size_hw(image, transposition)
        with decoding(image, name):
            # Draft sizes are rounded to whole pixels, which is invisible from 8 times the thumbnail's side on.
            image.draft("L", (8 * side, 8 * side))
            grey = image if image.mode == "L" else Image.fromarray(_as_rgb(image)).convert("L")
            small = grey.resize((side, side), Image.Resampling.BOX)
            upright = small if transposition is None else small.transpose(transposition)
            return np.array(upright), size_hw


def read_label_image(path: str | Path, *, expected_size_hw: tuple[int, int] | None = None) -> UInt8[np.ndarray, "h w"]:
    """Read an image of integer labels: palette indices (not colours), grey values, or 0 and 1 of a 1-bit image.

    Raises
    ------
    ImageError
        As in :func:`read_image`; also if the image is RGB, has more than 8 bits, or is a JPEG, which changes values.
    """
    name = str(path)
    with open_image(path, name) as image:
        check_pixel_count(image.size, name, MAX_PIXELS)
        remedy = "save the labels as a palette or grey PNG"
        if image.format in ("JPEG", "MPO"):
            raise ImageError("expected labels, got a JPEG, which changes values", file=name, remedy=remedy)
        if image.mode not in ("1", "L", "P"):
            raise ImageError(
                f"expected one label of 8 bits per pixel (mode P, L or 1), got mode {image.mode}",
                file=name,
                remedy=remedy,
            )
        # Pillow scales grey of 2 and 4 bits to 0..255.
        tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
        step = {"L;2": 85, "L;4": 17}.get(str(tiles[0].args) if tiles else "", 1)
        transposition = upright_transposition(image)
        with decoding(image, name):
            image.load()
            upright = image if transposition is None else image.transpose(transposition)
            values = np.array(upright).astype(np.uint8) // np.uint8(step)
    _check_label_size(values.shape, expected_size_hw, name)
    return values


def read_colour_labels(
    path: str | Path, colours: Sequence[tuple[int, int, int]], *, expected_size_hw: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "h w"]:
    """Read an RGB label image: the index of each pixel's colour in a list of at most 255 colours.

    Raises
    ------
    ImageError
        As in :func:`read_image`; also if a colour is not in the list.
    """
    name = str(path)
    pixels = read_image(path)
    _check_label_size(pixels.shape[:2], expected_size_hw, name)
    colour_codes = np.array(colours, dtype=np.int64) @ _COLOUR_WEIGHTS
    order = np.argsort(colour_codes)
    labels = np.empty(pixels.shape[:2], dtype=np.uint8)
    for row, row_labels in zip(pixels, labels, strict=True):  # by rows: only one row of int64 codes at a time
        codes = row @ _COLOUR_WEIGHTS
        nearest = order[np.searchsorted(colour_codes, codes, sorter=order).clip(max=len(colour_codes) - 1)]
        row_labels[:] = nearest
        row_labels[colour_codes[nearest] != codes] = _NO_COLOUR
    unknown = np.argwhere(labels == _NO_COLOUR)
    if len(unknown):
        y, x = unknown[0].tolist()
        example = f"{tuple(pixels[y, x].tolist())} at x = {x}, y = {y}"
        raise ImageError(
            f"has {len(unknown)} pixels of colours that are no category, e.g. {example}",
            file=name,
            remedy="name the colour in classes.txt, or correct the pixels (smoothing and JPEG mix colours)",
            kind="unknown_colour",
        )
    return labels


def palette_colours(path: str | Path) -> list[tuple[int, int, int]]:
    """Return the palette of an image without decoding its pixels; empty if it has none."""
    with open_image(path, str(path)) as image:
        values = image.getpalette() if image.mode == "P" else None
    return list(zip(*[iter(values or [])] * 3, strict=True))


def _check_label_size(actual: tuple[int, ...], expected: tuple[int, int] | None, name: str) -> None:
    if expected is not None and tuple(actual) != tuple(expected):
        raise ImageError(
            f"expected labels of {expected[1]} x {expected[0]} pixels, the size of the image, got {actual[1]} x {actual[0]}",
            file=name,
            remedy="resize them to the image's size by nearest-neighbour interpolation, which mixes no labels",
            kind="mis_sized_image",
        )


def check_image_size(actual: tuple[int, ...], expected: tuple[int, int] | None, name: str) -> None:
    """Raise if an image's size is not the one that its labels state.

    Raises
    ------
    ImageError
        If they differ; of the kind ``mis_sized_image``.
    """
    if expected is None or tuple(actual) == tuple(expected):
        return
    transposed = tuple(actual) == (expected[1], expected[0])
    raise ImageError(
        f"expected {expected[1]} x {expected[0]} pixels as its labels state, got {actual[1]} x {actual[0]}",
        file=name,
        remedy="height and width are exchanged: were the labels made without the EXIF orientation?"
        if transposed
        else "resize the image or correct the size in the labels",
        kind="mis_sized_image",
    )


def _as_rgb(image: Image.Image, factor: int = 1) -> UInt8[np.ndarray, "h w 3"]:
    """Decode, convert any mode to RGB, and downscale by an integer factor."""
    image.load()
    if factor > 1 and image.mode in ("RGB", "L"):
        image, factor = image.reduce(factor), 1
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _to_8_bits(np.asarray(image))
        pixels = np.repeat(grey[..., None], 3, axis=2)
    else:
        if image.has_transparency_data:
            opaque = Image.new("RGBA", image.size, "white")
            opaque.alpha_composite(image.convert("RGBA"))
            image = opaque
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, _STRIP_ROWS):  # at once, Pillow would make two more copies of the image
            strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
            pixels[top : top + _STRIP_ROWS] = strip.convert("RGB")
    return pixels if factor == 1 else np.array(Image.fromarray(pixels).reduce(factor))


def _to_8_bits(values: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    strips = [slice(top, top + _STRIP_ROWS) for top in range(0, len(values), _STRIP_ROWS)]  # not all in float64 at once
    limits = [(strip.min(), strip.max()) for strip in (_finite(values[rows]) for rows in strips)]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    scales = ((0.0, 1.0), (0.0, 255.0)) if values.dtype.kind == "f" else ((0.0, 65535.0),)
    bottom, top = next(((b, t) for b, t in scales if b <= low and high <= t), (low, high))
    grey = np.empty(values.shape, np.uint8)
    for rows in strips:
        grey[rows] = np.round((_finite(values[rows]) - bottom) * (255 / ((top - bottom) or 1)))
    return grey


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _image_of_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if (
        array.dtype != np.uint8
        or not array.size
        or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    ):
        raise ShapeError(f"image: expected uint8 (H, W), (H, W, 3) or (H, W, 4), got {array.dtype} {array.shape}")
    return Image.fromarray(array)
