"""Image crops with labelled boxes, for pages about single detections and objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from otus.data.dataset import Dataset
from otus.errors import ImageError
from otus.structures import Categories, Instances
from otus.structures.boxes import as_boxes
from otus.visualization.drawing import draw

TRUTH, TRUE, FALSE, IGNORED = (86, 180, 233), (0, 158, 115), (213, 94, 0), (140, 140, 140)
"""Colours of ground truth, and of true, false and ignored detections."""


@dataclass(frozen=True)
class Mark:
    """A box in a colour (RGB), with a short text, or ``""``."""

    text: str
    box_xyxy: Sequence[float] | Float[np.ndarray, "4"]
    colour: tuple[int, int, int]


def image_or_placeholder(dataset: Dataset, index: int) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
    """Return an image and its name for a caption; if it cannot be read, a grey placeholder and a name that says so."""
    name = dataset.images.files[index]
    try:
        return dataset.image(index), name
    except ImageError:
        return np.full((*dataset.images.size_hw(index), 3), 190, dtype=np.uint8), f"{name} (cannot be read)"


def draw_marks(image: UInt8[np.ndarray, "h w 3"], marks: Sequence[Mark]) -> UInt8[np.ndarray, "h w 3"]:
    """Draw marks on a copy of the image, those without text first."""
    for labels in (False, True):
        image = _draw_boxes(image, [mark for mark in marks if bool(mark.text) == labels], labels=labels)
    return image


def _draw_boxes(
    image: UInt8[np.ndarray, "h w 3"], marks: Sequence[Mark], *, labels: bool
) -> UInt8[np.ndarray, "h w 3"]:
    if not marks:
        return image
    colours: dict[str, tuple[int, int, int]] = {}
    texts = []
    for mark in marks:
        text = mark.text
        while colours.setdefault(text, mark.colour) != mark.colour:  # make texts unique per colour
            text += " "
        texts.append(text)
    names = tuple(colours)
    box_labels = np.array([names.index(text) for text in texts], dtype=np.int64)
    boxes = as_boxes([mark.box_xyxy for mark in marks])
    objects = Instances(boxes, box_labels, (image.shape[0], image.shape[1]), Categories(names))
    category_colours = {name: np.array(colour, dtype=np.uint8) for name, colour in colours.items()}
    return draw(image, objects, labels=labels, colours=category_colours)


def crop_around_marks(
    image: UInt8[np.ndarray, "h w 3"], marks: Sequence[Mark], *, side: int = 240, margin: float = 0.35
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Crop the image around the marks, resize the crop so that its longer side has ``side`` pixels, and draw the marks.

    The crop has a margin of at least ``margin`` times the size of the marks, and is square if the image is large enough.
    """
    boxes = as_boxes([mark.box_xyxy for mark in marks])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    limit = np.array([image.shape[1], image.shape[0]])
    padding = np.maximum((high - low) * margin, 12)
    padding = np.maximum(padding, ((high - low + 2 * padding).max() - (high - low)) / 2)
    left, top = np.clip(np.floor(low - padding), 0, limit - 1).astype(np.int64)
    right, bottom = np.clip(np.ceil(high + padding), [left + 1, top + 1], limit).astype(np.int64)
    scale = side / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    crop = np.asarray(Image.fromarray(image[top:bottom, left:right]).resize(size, Image.Resampling.LANCZOS))
    origin = np.array([left, top, left, top])
    crop_marks = [Mark(mark.text, (box - origin) * scale, mark.colour) for mark, box in zip(marks, boxes, strict=True)]
    return draw_marks(crop, crop_marks)
