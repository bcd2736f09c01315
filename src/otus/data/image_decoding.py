"""Open and decode images with Pillow safely.

Added to Pillow: errors that name the file, EXIF orientation, and a limit of the size that is checked before decoding.
Only raster formats are opened, never those that Pillow hands to another program (EPS, WMF).
"""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from otus.data.git_lfs import LFS_PROBLEM, LFS_REMEDY, is_lfs_pointer
from otus.errors import ImageError

_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "AVIF", "JPEG2000")
_UNREADABLE = "unreadable_image"
_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_AXES = frozenset(_TRANSPOSITIONS[orientation] for orientation in (5, 6, 7, 8))
_pillow_lock = threading.Lock()


def source_name(source: str | Path | bytes | Image.Image) -> str:
    """Return the name of an image for error messages: its path, or a description."""
    if isinstance(source, str | Path):
        return str(source)
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else "image in memory"


@contextmanager
def open_image(source: str | Path | bytes | Image.Image, name: str) -> Iterator[Image.Image]:
    """Yield the PIL image with only its header read.

    Raises
    ------
    ImageError
        If the file is missing, empty, not readable, or not an image of a known format.
    """
    if isinstance(source, Image.Image):
        yield source
        return
    if not isinstance(source, bytes):
        path = Path(source)
        if not os.path.isfile(path):  # Path.is_file raises for names that are too long
            raise _why_not_a_file(path)
        if path.stat().st_size == 0:
            raise ImageError("is empty (0 bytes)", file=name, remedy="restore it or leave it out", kind=_UNREADABLE)
    try:
        with _unlimited_pillow():
            image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except Exception as error:  # Pillow's readers raise nearly anything on broken files
        if not isinstance(source, bytes) and is_lfs_pointer(source):
            raise ImageError(LFS_PROBLEM, file=name, remedy=LFS_REMEDY, kind=_UNREADABLE) from None
        raise _unreadable(error, name) from error
    with image:
        yield image


def _why_not_a_file(path: Path) -> ImageError:
    if os.path.isdir(path):
        return ImageError("expected an image, got a folder", file=path, remedy="name a file", kind=_UNREADABLE)
    if os.path.exists(path):
        return ImageError("is not a regular file", file=path, remedy="name an image", kind=_UNREADABLE)
    return ImageError("there is no such file", file=path, remedy="check the path", kind="missing_image")


def _unreadable(error: Exception, name: str) -> ImageError:
    if isinstance(error, UnidentifiedImageError):
        problem, remedy = "is not an image of a known format", "convert it to JPEG or PNG, or leave it out"
    elif isinstance(error, PermissionError):
        problem, remedy = "cannot be read: permission denied", "change its permissions"
    else:
        problem, remedy = f"cannot be decoded: {error or type(error).__name__}", "restore it or leave it out"
    return ImageError(problem, file=name, remedy=remedy, kind=_UNREADABLE)


@contextmanager
def _unlimited_pillow() -> Iterator[None]:
    """Silence Pillow's warnings and disable its pixel limit; both are global, hence the lock."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def decoding(image: Image.Image, name: str) -> Iterator[None]:
    """Convert errors in the block, which decodes the image, to an ImageError.

    Threads decode in parallel unless an image exceeds Pillow's own pixel limit.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        if limit is not None and image.width * image.height > limit:
            with _unlimited_pillow():
                image.load()
        yield
    except Exception as error:
        raise _unreadable(error, name) from error


def upright_transposition(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition that makes the image upright, None if it is upright."""
    if image.format == "TIFF":  # Pillow applies the orientation of TIFFs itself
        return None
    try:
        with _unlimited_pillow():
            # Not PngImageFile.getexif: it decodes the whole image to look for EXIF behind it.
            return _TRANSPOSITIONS.get(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # broken EXIF: the pixels may be fine
        return None


def upright_size_hw(image: Image.Image, transposition: Image.Transpose | None) -> tuple[int, int]:
    """Return the height and width of an image after a transposition."""
    width, height = image.size
    return (width, height) if transposition in _SWAP_AXES else (height, width)


def check_pixel_count(size_wh: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raise an ImageError if an image has more than ``max_pixels``."""
    width, height = size_wh
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} = {width * height / 1e6:.0f} megapixels, the limit is {max_pixels / 1e6:.0f}",
            file=name,
            remedy="scale it down or raise the limit: --max-pixels of otus predict, max_pixels of predict and read_image",
            kind=_UNREADABLE,
        )
