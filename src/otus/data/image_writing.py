"""Write images and label images atomically: a file appears under its name only when it is complete."""

from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from otus._files import staged_file
from otus.data.image_files import IMAGE_SUFFIXES
from otus.errors import ImageError, ShapeError


def write_image(path: str | Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write uint8 (H, W, 3) RGB in the format of the path's suffix (JPEG at quality 95).

    Raises
    ------
    ImageError
        If the suffix is of no known format, or the image is too large for it (a JPEG has at most 65,500 pixels a side).
    DataError
        If the disk is full or the file may not be written.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"image {path}: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    target = Path(path)
    pillow_format = Image.registered_extensions().get(target.suffix.lower())
    if pillow_format is None or target.suffix.lower() not in IMAGE_SUFFIXES:
        raise ImageError(
            f"cannot write an image with the suffix {target.suffix!r}", file=target, remedy="name it .jpg or .png"
        )
    with staged_file(target) as stage:
        try:
            Image.fromarray(image).save(stage, format=pillow_format, quality=95)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) is not None:  # an error of the disk
                raise
            message = f"{image.shape[1]} x {image.shape[0]} pixels cannot be written as {pillow_format}: {error}"
            raise ImageError(
                message, file=target, remedy="write a .png, or scale the image down", kind="unwritable"
            ) from None


def write_label_image(
    path: str | Path, values: Int[np.ndarray, "h w"], *, palette: UInt8[np.ndarray, "colours 3"] | None = None
) -> None:
    """Write integer labels 0..255 as a PNG, with a palette of up to 256 colours or in grey (default)."""
    values = np.asarray(values)
    if (
        values.ndim != 2
        or values.dtype.kind not in "biu"
        or (values.size and not 0 <= values.min() <= values.max() < 256)
    ):
        raise ShapeError(f"label image {path}: expected integers 0..255 (H, W), got {values.dtype} {values.shape}")
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8))
    if palette is not None:
        image.putpalette(np.asarray(palette, dtype=np.uint8).reshape(-1, 3).tobytes())
    with staged_file(path) as stage:
        image.save(stage, format="PNG")
