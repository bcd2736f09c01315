"""Iterate over the images of a source for ``predict``: an image, a folder, a glob pattern, a video, or several.

Images are read lazily, so a folder of a million images or a long video needs the memory of a single frame.
"""

import glob
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from otus.data.image_files import IMAGE_SUFFIXES, list_images
from otus.data.images import MAX_PIXELS, TargetSize, image_notes, read_reduced_image
from otus.data.video import VIDEO_SUFFIXES, Video
from otus.errors import DataError, ImageError, stop_at_first

Source = str | Path | bytes | Image.Image | np.ndarray | Iterable["Source"]
"""The path of an image, a folder or a video; a glob pattern such as ``photos/*.jpg``; an encoded image as bytes; a PIL
image; an array; or an iterable of these."""
_LABEL_SUFFIXES = frozenset((".json", ".xml", ".yaml", ".yml", ".txt", ".csv"))


@dataclass(frozen=True, eq=False)
class SourceImage:
    """An image of a source.

    Parameters
    ----------
    name
        Its path, or ``image I`` for an image in memory at the 0-based position I of the source.
    image
        uint8 (H, W, 3) RGB, possibly read at reduced size.
    size_hw
        Height and width of the original.
    frame
        Index of the frame, if the source is a video.
    time_s
        Time of the frame in seconds from the start of the video.
    notes
        Messages of :func:`~otus.data.images.image_notes`.
    """

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    size_hw: tuple[int, int]
    frame: int | None = None
    time_s: float | None = None
    notes: tuple[str, ...] = ()


def is_video(source: object) -> bool:
    """Return whether a source is a path with the suffix of a video."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in VIDEO_SUFFIXES


def source_files(source: str | Path, *, report: Callable[[DataError], None] = stop_at_first) -> list[Path]:
    """Return the image and video files of a path, folder (searched recursively) or glob pattern.

    Parameters
    ----------
    report
        Called with an error for each unreadable folder (default: raise the first).

    Raises
    ------
    ImageError
        If the folder contains no image or video, no file matches the pattern, or the path is a URL or a label file.
    """
    if re.match(r"[a-z0-9+.-]+://", str(source), re.IGNORECASE):
        raise ImageError(
            "is a URL, and Otus does not download images", file=source, remedy="download it and give the file"
        )
    path = Path(source)
    if path.suffix.lower() in _LABEL_SUFFIXES and path.is_file():
        problem = "is not an image but seems to be a label file"
        raise ImageError(problem, file=path, remedy="name the images or their folder: otus predict FOLDER")
    if path.is_dir():
        known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
        files = list_images(path, recursive=True, suffixes=known, report=report)
        if not files:
            raise ImageError("holds no image or video", file=path, remedy=f"known suffixes: {', '.join(sorted(known))}")
        return files
    if path.exists() or not glob.has_magic(str(source)):
        return [path]
    files = sorted(Path(name) for name in glob.glob(str(source), recursive=True) if Path(name).is_file())
    if not files:
        raise ImageError("no file matches this pattern", file=path, remedy="check it; quote it in a shell")
    return files


def read_source(
    source: Source,
    *,
    stride: int = 1,
    report: Callable[[DataError], None] | None = None,
    target_size: TargetSize | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[SourceImage]:
    """Yield all images of a source, in order.

    Parameters
    ----------
    stride
        Use every ``stride``-th frame of a video.
    report
        Called with the error of each unreadable file and of each folder or pattern without images, which are skipped,
        and of each damaged video, after its last frame (default: raise the first error).
    target_size, max_pixels
        As in :func:`~otus.data.images.read_reduced_image`; images in memory are not reduced.
    """
    for position, item in enumerate(_items(source, report)):
        try:
            if not isinstance(item, Path):
                notes = tuple(image_notes(item).values()) if isinstance(item, bytes) else ()
                image, size_hw = read_reduced_image(item, max_pixels=max_pixels)
                yield SourceImage(f"image {position}", image, size_hw, notes=notes)
            elif is_video(item):
                for frame in Video(item).frames(stride=stride):
                    size_hw = (frame.image.shape[0], frame.image.shape[1])
                    yield SourceImage(str(item), frame.image, size_hw, frame.index, frame.time_s)
            else:
                image, size_hw = read_reduced_image(item, target_size, max_pixels=max_pixels)
                yield SourceImage(str(item), image, size_hw, notes=tuple(image_notes(item).values()))
        except DataError as error:
            if report is None:
                raise
            report(error)


def _items(
    source: Source, report: Callable[[DataError], None] | None
) -> Iterator[Path | bytes | Image.Image | np.ndarray]:
    if isinstance(source, str | Path):
        files: list[Path] = []
        try:
            files = source_files(source, report=report or stop_at_first)
        except DataError as error:
            if report is None:
                raise
            report(error)
        yield from files
    elif isinstance(source, bytes | Image.Image | np.ndarray):
        yield source
    else:
        for item in source:
            yield from _items(item, report)
