"""Write images and label images; a file appears under its name when it is complete."""

from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from otus._files import staged_file
from otus.data.image_files import IMAGE_SUFFIXES
from otus.errors import ImageError, ShapeError


def write_image(path: str | Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write uint8 (H, W, 3) RGB in the format of the path's suffix (JPEG at quality 95). Nothing half-written is left.

    Raises
    ------
    ImageError
        If the suffix is of no format, or the format cannot hold so many pixels: a JPEG has at most 65,500 a side.
    DataError
        If there is no room or no right to write it.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ShapeError(f"image {path}: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
    target = Path(path)
    form = Image.registered_extensions().get(target.suffix.lower())
    if form is None or target.suffix.lower() not in IMAGE_SUFFIXES:
        raise ImageError(
            f"cannot write an image with the suffix {target.suffix!r}", file=target, remedy="name it .jpg or .png"
        )
    with staged_file(target) as stage:
        try:
            Image.fromarray(image).save(stage, format=form, quality=95)
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) is not None:  # of the disk
                raise
            what = f"{image.shape[1]} x {image.shape[0]} pixels cannot be written as {form}: {error}"
            raise ImageError(what, file=target, remedy="name it .png, or scale it down", kind="unwritable") from None


def write_label_image(
    path: str | Path, values: Int[np.ndarray, "h w"], *, palette: UInt8[np.ndarray, "colours 3"] | None = None
) -> None:
    """Write integer labels 0..255 as a PNG, palette-coloured if a palette of up to 256 colours is given, else grey."""
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
