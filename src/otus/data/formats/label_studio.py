"""Label Studio JSON: a list of tasks, each an image with annotations. Read only.

labelstud.io/guide/task_format. Of each task, the annotation marked as ground truth is read, else the first that was not
cancelled: rectangles (rotated ones as oriented boxes), polygons, and ellipses as polygons of 64 points. All numbers are
percentages of the image's size. A shape and its label may be two results with the same id (``<Rectangle>`` beside
``<Labels>``, the template for OCR). The first label is the category; further labels of a region, brush masks, points and
predictions are counted, not read; for brush masks export COCO.

``data`` has the path of the image on the server. Its longest trailing part that exists beside the file or in
``images/`` is used, also without the eight digits that the server puts before the names of uploaded files.
"""

import os
import re
from collections.abc import Iterator
from math import cos, radians, sin
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec
import numpy as np

from otus.data.dataset import Dataset, Images
from otus.data.formats.coco import json_files, sniff, split_from_name
from otus.data.formats.drawn_shapes import (
    DrawnShape,
    box_shape,
    ellipse_shape,
    oriented_shape,
    polygon_shape,
    shapes_to_objects,
)
from otus.data.formats.interface import Layout
from otus.data.formats.paths import relative_name
from otus.data.formats.text_files import Int64, Number, read_json_bytes
from otus.data.formats.unread_fields import UnreadFields
from otus.data.image_files import IMAGE_SUFFIXES
from otus.data.images import image_size_hw
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Categories

_UPLOADED = re.compile(r"^[0-9a-f]{8}-")


class Value(msgspec.Struct):
    """Geometry of a region, in percent of the image."""

    x: Number = 0.0
    y: Number = 0.0
    width: Number | None = None
    height: Number | None = None
    radiusX: Number | None = None  # noqa: N815
    radiusY: Number | None = None  # noqa: N815
    rotation: Number | None = None
    points: list[tuple[Number, Number]] | None = None
    labels: list[str] | None = None
    rectanglelabels: list[str] | None = None
    polygonlabels: list[str] | None = None
    ellipselabels: list[str] | None = None

    @property
    def all_labels(self) -> list[str]:
        """The labels of the region, without blank ones."""
        fields = (self.rectanglelabels, self.polygonlabels, self.ellipselabels, self.labels)
        return [label.strip() for labels in fields for label in labels or () if label.strip()]

    @property
    def has_geometry(self) -> bool:
        """Whether this is a rectangle, an ellipse or a polygon; a keypoint has a width, but no height."""
        return any(field is not None for field in (self.height, self.radiusX, self.points))


class Region(msgspec.Struct):
    """A region of an annotation."""

    type: str
    value: Value
    id: str | int | None = None
    original_width: Int64 | None = None
    original_height: Int64 | None = None


class Annotation(msgspec.Struct):
    """The regions drawn by one annotator."""

    result: list[msgspec.Raw]
    was_cancelled: bool | None = None
    ground_truth: bool | None = None


class Task(msgspec.Struct):
    """One image with its annotations."""

    data: dict[str, Any]
    annotations: list[Annotation] = []
    predictions: list[Any] = []


class _Typed(msgspec.Struct):
    type: str = ""


def find(path: Path) -> list[Layout]:
    """Find Label Studio exports at a path."""
    files = json_files(path)
    return [Layout("label_studio", file, split_from_name(file)) for file in files if _is_label_studio(sniff(file))]


def _is_label_studio(text: bytes) -> bool:
    is_list = text.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"[")
    has_tasks = all(key in text for key in (b'"data"', b'"annotations"'))
    return is_list and has_tasks and any(key in text for key in (b'"result"', b'"predictions"', b'"project"'))


def read(layout: Layout, *, report: Report = stop_at_first) -> Dataset:
    """Read the images of the tasks and their objects.

    Raises
    ------
    DataError, ImageError
        Through ``report``, with the task and the region. Raised directly: a file of another format.
    """
    file = layout.source
    unread = UnreadFields()
    paths: list[Path] = []
    sizes: list[tuple[int, int]] = []
    shapes: list[DrawnShape] = []
    for index, task in _tasks(file, report):
        annotation, others = _select_annotation(task.annotations)
        regions = _regions(annotation, file, f"[{index}]", report, unread)
        unread.note("annotations of others", ["of a task"] * others)
        unread.note("predictions", ["of a task"] * len(task.predictions))
        try:
            path = _image(task, file, f"[{index}]")
            size_hw = _size_hw([region for _, region in regions], path)
        except DataError as problem:
            report(problem)
            continue
        for where, region in regions:
            try:
                shapes.append(_shape(region, len(paths), size_hw))
                unread.note("further labels of a region", region.value.all_labels[1:])
            except ValueError as error:
                report(DataError(str(error), file=file, where=where, remedy="correct the region and export again"))
        paths.append(path)
        sizes.append(size_hw)
    categories = Categories(tuple(sorted({shape.label for shape in shapes})))
    return Dataset(
        source=file,
        format="label_studio",
        split=layout.split,
        images=Images(
            root=file.parent,
            files=tuple(relative_name(path, file.parent) for path in paths),
            sizes_hw=np.array(sizes, dtype=np.int64),
            ids=tuple(path.stem for path in paths),
        ),
        categories=categories,
        objects=shapes_to_objects(shapes, categories),
        unread=unread.finish(),
    )


def _tasks(file: Path, report: Report) -> Iterator[tuple[int, Task]]:
    text = read_json_bytes(file)
    try:
        records = msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DataError(f"expected a list of tasks, but {error}", file=file, remedy="export it again") from None
    for index, record in enumerate(records):
        try:
            yield index, msgspec.json.decode(record, type=Task)
        except (msgspec.MsgspecError, RecursionError) as error:
            report(DataError(str(error), file=file, where=f"[{index}]", remedy="correct the task or remove it"))


def _select_annotation(annotations: list[Annotation]) -> tuple[Annotation | None, int]:
    """Return the annotation to use, and the number of others."""
    valid = [annotation for annotation in annotations if not annotation.was_cancelled]
    if not valid:
        return None, 0
    return next((annotation for annotation in valid if annotation.ground_truth), valid[0]), len(valid) - 1


def _regions(
    annotation: Annotation | None, file: Path, task: str, report: Report, unread: UnreadFields
) -> list[tuple[str, Region]]:
    """Return location and region of the supported results of an annotation; ``labels`` join the shape of their id."""
    regions: list[tuple[str, Region]] = []
    first_of_id: dict[str | int, Region] = {}
    for position, record in enumerate(annotation.result if annotation is not None else ()):
        where = f"{task}.result[{position}]"
        try:
            kind = msgspec.json.decode(record, type=_Typed).type
            is_shape = kind.removesuffix("labels") in ("rectangle", "polygon", "ellipse", "")
            region = msgspec.json.decode(record, type=Region) if is_shape else None
        except (msgspec.MsgspecError, RecursionError) as error:
            report(DataError(str(error), file=file, where=where, remedy="correct the region or remove it"))
            continue
        if region is None or (kind == "labels" and not region.value.has_geometry):
            unread.note(f"result: {kind}", [kind])
            continue
        first = region if region.id is None else first_of_id.setdefault(region.id, region)
        if first is not region and "labels" in (kind, first.type):
            first.value.labels = [*(first.value.labels or ()), *region.value.all_labels]
        else:
            regions.append((where, region))
    return regions


def _image(task: Task, file: Path, where: str) -> Path:
    """Return the local path of a task's image, as far as it can be found."""
    server_paths = [_server_path(value) for value in task.data.values() if isinstance(value, str)]
    image_paths = [path for path in server_paths if Path(path).suffix.lower() in IMAGE_SUFFIXES]
    if not image_paths:
        raise DataError("data: expected the path of an image, got none", file=file, where=where, remedy="add it")
    parts = [part for part in image_paths[0].replace("\\", "/").split("/") if part not in ("", ".", "..")]
    folders = (file.parent, file.parent / "images")
    for first in range(len(parts)):
        for folder in folders:
            candidate = folder.joinpath(*parts[first:])
            for path in (candidate, candidate.with_name(_UPLOADED.sub("", candidate.name) or candidate.name)):
                if os.path.isfile(path):
                    return path
    return file.parent / parts[-1]


def _server_path(text: str) -> str:
    """Return the path in a URL: of ``/data/local-files/?d=folder/a.jpg`` what follows ``d=``."""
    try:
        address = urlsplit(text)
        return unquote(parse_qs(address.query).get("d", [address.path])[0]).replace("\0", "")
    except ValueError:
        return text


def _size_hw(regions: list[Region], path: Path) -> tuple[int, int]:
    for region in regions:
        if (region.original_width or 0) > 0 and (region.original_height or 0) > 0:
            return int(region.original_height or 0), int(region.original_width or 0)
    return image_size_hw(path)


def _shape(region: Region, image: int, size_hw: tuple[int, int]) -> DrawnShape:
    """Convert a region to a shape in pixels; ValueError if it is invalid."""
    value = region.value
    if not value.all_labels:
        raise ValueError("has no label")
    label = value.all_labels[0]
    scale_x, scale_y = size_hw[1] / 100, size_hw[0] / 100
    angle = radians(value.rotation or 0)
    x, y = value.x * scale_x, value.y * scale_y
    if value.points is not None:
        return polygon_shape(image, label, np.array(value.points).reshape(-1, 2) * (scale_x, scale_y))
    if value.radiusX is not None and value.radiusY is not None:
        return ellipse_shape(image, label, (x, y), (value.radiusX * scale_x, value.radiusY * scale_y), angle)
    if value.width is None or value.height is None:
        raise ValueError(f"a {region.type!r} without width and height, points or radii")
    width, height = value.width * scale_x, value.height * scale_y
    if not angle:
        return box_shape(image, label, (x, y, x + width, y + height))
    # Rotated about its first corner, (x, y).
    centre_x = x + (width * cos(angle) - height * sin(angle)) / 2
    centre_y = y + (width * sin(angle) + height * cos(angle)) / 2
    return oriented_shape(image, label, (centre_x, centre_y, width, height, angle))
