"""CVAT's XML, "CVAT for images 1.1": boxes, polygons, ellipses and masks of all images in one file. Read only.

docs.cvat.ai/docs/dataset_management/formats/format-cvat. ::

    annotations.xml   images/NAME.jpg

Coordinates are continuous pixels. A box with a ``rotation`` (degrees, clockwise) is an oriented box; an ellipse becomes a
polygon of 64 points. ``occluded`` is a column. Points, polylines, cuboids, skeletons, tags and attributes are counted, not
kept. The tracks of "CVAT for video" are not read.
"""

import re
from math import radians
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool

from otus.data.dataset import Dataset, Images
from otus.data.formats.coco import find_image_folder, is_outside_folder, split_from_name
from otus.data.formats.drawn_shapes import (
    DrawnShape,
    box_shape,
    ellipse_shape,
    mask_shape,
    oriented_shape,
    polygon_shape,
    shapes_to_objects,
)
from otus.data.formats.interface import Layout
from otus.data.formats.paths import OUTSIDE_REMEDY, list_files
from otus.data.formats.text_files import MAX_NUMBER, read_head
from otus.data.formats.unread_fields import UnreadFields
from otus.data.formats.voc_xml import parse
from otus.data.images import MAX_PIXELS
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Categories

_SHAPES = frozenset(("box", "polygon", "ellipse", "mask"))
_VIDEO_REMEDY = "export it from CVAT as 'CVAT for images 1.1', 'COCO 1.0' or 'YOLO 1.1'"


def find(path: Path) -> list[Layout]:
    """Find CVAT files at a path."""
    files = list_files(path, "*.xml") if path.is_dir() else [path]
    cvat_files = [
        file for file in files if file.suffix == ".xml" and re.search(rb"<annotations[\s>]", read_head(file, 2000))
    ]
    return [Layout("cvat", file, split_from_name(file)) for file in cvat_files]


def read(layout: Layout, *, report: Report = stop_at_first, allow_outside: bool = False) -> Dataset:
    """Read the images of a file and their objects.

    Parameters
    ----------
    allow_outside
        Whether an image name may lead outside the folder (default: False).

    Raises
    ------
    DataError
        Through ``report``, with the image and the shape. Raised directly: a file of another format, or of a video.
    """
    file = layout.source
    root = parse(file)
    if root.tag != "annotations":
        raise DataError(f"expected <annotations>, got <{root.tag}>", file=file, remedy="leave this file out")
    if root.find("track") is not None:
        raise DataError("has tracks of a video, which cannot be read", file=file, remedy=_VIDEO_REMEDY)
    unread = UnreadFields()
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    shapes: list[DrawnShape] = []
    occluded: list[bool] = []
    for index, image in enumerate(root.iterfind("image")):
        where = f"image[{index}]"
        try:
            name = _text(image, "name").replace("\\", "/")
            if not allow_outside and is_outside_folder(name):
                problem = f"{name!r} leads outside the folder of the images"
                raise DataError(problem, file=file, where=where, remedy=OUTSIDE_REMEDY, kind="path_outside")
            size_hw = _size_hw(image)
        except ValueError as error:
            report(_fault(error, file, where))
            continue
        names.append(name)
        sizes.append(size_hw)
        for position, node in enumerate(image):
            if node.tag not in _SHAPES:
                unread.note(f"image/{node.tag}", [node.get("label") or node.tag])
                continue
            try:
                shapes.append(_shape(node, len(names) - 1, size_hw))
            except ValueError as error:
                report(_fault(error, file, f"{where}.{node.tag}[{position}]"))
                continue
            occluded.append(node.get("occluded") == "1")
            unread.note(
                "image/attribute",
                [f"{attribute.get('name')}: {attribute.text}" for attribute in node.iterfind("attribute")],
            )
    categories = _categories(root, {shape.label for shape in shapes})
    folder = find_image_folder(file, tuple(names))
    return Dataset(
        source=file,
        format="cvat",
        split=layout.split,
        images=Images(
            root=folder,
            files=tuple(names),
            sizes_hw=np.array(sizes, dtype=np.int64),
            ids=tuple(Path(name).with_suffix("").as_posix() for name in names),
        ),
        categories=categories,
        objects=shapes_to_objects(shapes, categories, {"occluded": np.array(occluded, dtype=bool)}),
        unread=unread.finish(),
    )


def _fault(error: ValueError, file: Path, where: str) -> DataError:
    if isinstance(error, DataError):
        return error
    return DataError(str(error), file=file, where=where, remedy="correct it, or redraw it and export again")


def _categories(root: ElementTree.Element, used: set[str]) -> Categories:
    """Return the labels of the task in order, without those of skeleton points; then others in use."""
    labels = [node for node in root.iterfind("meta//label") if not (node.findtext("parent") or "").strip()]
    names = dict.fromkeys((node.findtext("name") or "").strip() for node in labels)
    return Categories(tuple(name for name in (*names, *sorted(used - names.keys())) if name))


def _text(node: ElementTree.Element, name: str) -> str:
    text = (node.get(name) or "").strip()
    if not text:
        raise ValueError(f"has no {name!r}")
    return text


def _number(node: ElementTree.Element, name: str) -> float:
    return _parse_number(_text(node, name), name)


def _parse_number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not abs(value) <= MAX_NUMBER:
        raise ValueError(f"{name}: expected a number, got {text!r}")
    return value


def _size_hw(image: ElementTree.Element) -> tuple[int, int]:
    height, width = (_number(image, name) for name in ("height", "width"))
    if height < 1 or width < 1 or height % 1 or width % 1 or height * width > MAX_PIXELS:
        raise ValueError(f"expected the image's width and height, got {width:g} x {height:g}")
    return int(height), int(width)


def _shape(node: ElementTree.Element, image: int, size_hw: tuple[int, int]) -> DrawnShape:
    """Convert an XML node to a shape; ValueError if it is invalid."""
    label = _text(node, "label")
    angle = radians(_parse_number(node.get("rotation") or "0", "rotation"))
    if node.tag == "box":
        x1, y1, x2, y2 = (_number(node, name) for name in ("xtl", "ytl", "xbr", "ybr"))
        if angle:
            return oriented_shape(image, label, ((x1 + x2) / 2, (y1 + y2) / 2, abs(x2 - x1), abs(y2 - y1), angle))
        return box_shape(image, label, (x1, y1, x2, y2))
    if node.tag == "ellipse":
        x, y, radius_x, radius_y = (_number(node, name) for name in ("cx", "cy", "rx", "ry"))
        return ellipse_shape(image, label, (x, y), (radius_x, radius_y), angle)
    if node.tag == "polygon":
        pairs = [pair.split(",") for pair in _text(node, "points").split(";")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"points: expected x,y;x,y;…, got {node.get('points')!r:.60}")
        return polygon_shape(
            image, label, np.array([[_parse_number(word, "points") for word in pair] for pair in pairs])
        )
    return mask_shape(image, label, _mask(node, size_hw))


def _mask(node: ElementTree.Element, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Decode a mask: run lengths, background first, row by row within a rectangle."""
    left, top, width, height = (int(_number(node, name)) for name in ("left", "top", "width", "height"))
    if left < 0 or top < 0 or width < 1 or height < 1 or left + width > size_hw[1] or top + height > size_hw[0]:
        raise ValueError(f"expected a rectangle inside the image, got {left}, {top}, {width} x {height}")
    runs = [int(_parse_number(word, "rle")) for word in _text(node, "rle").split(",")]
    if min(runs) < 0 or sum(runs) != width * height:
        raise ValueError(f"rle: expected runs that add up to {width * height} pixels, got {sum(runs)}")
    mask = np.zeros(size_hw, dtype=bool)
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[top : top + height, left : left + width] = values.reshape(height, width)
    return mask
