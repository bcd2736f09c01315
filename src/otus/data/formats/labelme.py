"""LabelMe: a JSON file of shapes per image, as labelme (github.com/wkentaro/labelme) and X-AnyLabeling write it.

A shape is a polygon, a rectangle, an oriented rectangle (X-AnyLabeling's ``rotation``), a circle, a mask (a PNG with
the size of a rectangle whose corners are inclusive), or a point. Shapes that share a ``group_id`` are a single object:
polygons and masks are its parts, a rectangle is its box, and points are its keypoints, named by their labels. The flags
``difficult``, ``truncated`` … become columns; ``crowd`` marks a crowd, ``occluded`` of a point a hidden keypoint.

``labels.txt`` (the file of ``labelme --labels``) defines the order of categories and keypoints; without it, categories
are sorted and keypoints are in order of appearance. Lines are not objects and are reported; a circle becomes a polygon
of 64 points. If the image file is missing, ``imageData`` is decoded instead, as an image beside the JSON file. Otus adds
fields, which LabelMe preserves: ``score`` of a shape, the flag ``oriented_box`` of a polygon that is an oriented box, and
the top-level ``keypoint_names`` by category.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from otus._files import staged_folder
from otus.data.dataset import Dataset, Images
from otus.data.formats.coco import sniff
from otus.data.formats.conversion_losses import boolean_columns, find_losses
from otus.data.formats.interface import (
    ConversionLoss,
    ImageMode,
    Layout,
    as_splits,
    copy_or_link_images,
    split_file_name,
    split_name_losses,
)
from otus.data.formats.labelme_shapes import (
    OBJECT_SHAPES,
    EmbeddedImages,
    LabelMeFile,
    LabelMeObject,
    decode_file,
    decode_shape,
    enclosing_box,
    encode_mask,
    group_shapes,
)
from otus.data.formats.paths import (
    flat_names,
    list_files,
    relative_name,
    resolve_inside,
    sample_files,
    subfolders,
)
from otus.data.formats.polygons import polygon_area
from otus.data.formats.text_files import read_text
from otus.data.formats.unread_fields import UnreadFields
from otus.data.images import MAX_PIXELS, image_size_hw
from otus.errors import DataError, Report, stop_at_first
from otus.structures import Categories, KeypointNames, Masks, Objects, Segmentations

_LABELS_FILE = "labels.txt"


def find(path: Path) -> list[Layout]:
    """Find a folder of LabelMe files, or its subfolders with such files (splits)."""
    if _is_labelme(path):
        return [Layout("labelme", path)]
    return [Layout("labelme", path, folder.name) for folder in subfolders(path) if _is_labelme(folder)]


def _is_labelme(folder: Path) -> bool:
    files = sample_files(list_files(folder, "*.json"))
    return any(re.search(rb'"(?:shapes|imageData)"\s*:', sniff(file)) for file in files)


def read(layout: Layout, *, report: Report = stop_at_first, allow_outside: bool = False) -> Dataset:
    """Read the images of a folder's JSON files, and their objects.

    Parameters
    ----------
    allow_outside
        Whether an ``imagePath`` may lead outside the folder of the data set (default: False).

    Raises
    ------
    DataError, ImageError
        Through ``report``, with the file and the index of the shape.
    """
    folder = layout.source / (layout.split or "")
    paths, sizes, contents, objects = [], [], [], []
    temporary: dict[Path, Path] = {}
    unread, embedded = UnreadFields(), EmbeddedImages()
    for file in list_files(folder, "*.json"):
        try:
            content = decode_file(file, unread)
            path = resolve_inside(
                content.image.replace("\\", "/"),
                folder,
                within=layout.source,
                allow_outside=allow_outside,
                file=file,
                where="imagePath",
            )
            if not path.is_file() and (image := embedded.image_of(file, path.suffix)):
                path = file.absolute().with_suffix(image.suffix)
                temporary[path] = image
            sizes.append(_size_hw(content, temporary.get(path, path), file))
        except DataError as problem:
            report(problem)
            continue
        objects.append(group_shapes(content, sizes[-1], file, report, unread))
        contents.append(content)
        paths.append(path)
    categories = _categories(layout, contents, [instance for instances in objects for instance in instances])
    root = layout.source.absolute()
    return Dataset(
        source=layout.source,
        format="labelme",
        split=layout.split,
        images=Images(
            root=layout.source,
            files=tuple(relative_name(path, root) for path in paths),
            sizes_hw=np.array(sizes, dtype=np.int64),
            ids=tuple(path.stem for path in paths),
            temporary={relative_name(path, root): image for path, image in temporary.items()},
        ),
        categories=categories,
        objects=_columns(objects, categories),
        unread=unread.finish(),
    )


def _size_hw(content: LabelMeFile, path: Path, file: Path) -> tuple[int, int]:
    if content.height is None or content.width is None:
        return image_size_hw(path)
    if content.height < 1 or content.width < 1 or content.height * content.width > MAX_PIXELS:
        problem = f"expected the image's size, got {content.width} x {content.height}"
        raise DataError(problem, file=file, where="imageWidth, imageHeight", remedy="correct it or set both to null")
    return content.height, content.width


def _categories(layout: Layout, contents: list[LabelMeFile], objects: list[LabelMeObject]) -> Categories:
    """Return categories with keypoint names: from ``labels.txt`` and ``keypoint_names``, else those in use."""
    used_labels = {instance.label for instance in objects}
    point_labels = list(dict.fromkeys(name for instance in objects for name in instance.keypoints))
    listed_labels = _listed_labels(layout)
    if not listed_labels and layout.split:
        used_labels |= _labels_of_other_splits(layout.source) - set(point_labels)
    names = [name for name in listed_labels if name in used_labels or (name[0] != "_" and name not in point_labels)]
    names += sorted(used_labels - set(names))
    stored = {
        name: point_labels
        for content in contents
        for name, point_labels in (content.keypoint_names or {}).items()
        if point_labels
    }
    common_points = (
        sorted(point_labels, key=listed_labels.index) if set(point_labels) <= set(listed_labels) else point_labels
    )
    schemes = {name: list(dict.fromkeys(point_labels)) for name, point_labels in stored.items()}
    for instance in objects:
        if instance.keypoints:
            scheme = schemes.setdefault(instance.label, list(common_points))
            scheme += [name for name in instance.keypoints if name not in scheme]
    return Categories(
        tuple(names),
        keypoints=tuple((name, KeypointNames(tuple(schemes[name]))) for name in names if name in schemes),
    )


def _listed_labels(layout: Layout) -> list[str]:
    for folder in (layout.source / (layout.split or ""), layout.source):
        if (folder / _LABELS_FILE).is_file():
            return list(
                dict.fromkeys(line.strip() for line in read_text(folder / _LABELS_FILE).splitlines() if line.strip())
            )
    return []


def _labels_of_other_splits(source: Path) -> set[str]:
    """Return the category names used in all splits, so that class indices agree between splits."""
    labels: set[str] = set()
    for file in list_files(source, "*/*.json"):
        try:
            shapes = [decode_shape(raw) for raw in decode_file(file).shapes]
        except ValueError:
            continue
        labels.update(shape.label for shape in shapes if shape.shape_type in OBJECT_SHAPES)
    return labels


def _columns(by_image: list[list[LabelMeObject]], categories: Categories) -> Objects:
    objects = [instance for instances in by_image for instance in instances]
    segmentations = [instance.segmentation for instance in objects]
    flags = sorted({name for instance in objects for name in instance.flags if name != "crowd"})
    scores = np.array([instance.score for instance in objects])
    optional: dict[str, Any] = {}
    if any(instance.corners_xy is not None for instance in objects):
        optional["corners_xy"] = np.array(
            [np.full((4, 2), np.nan) if o.corners_xy is None else o.corners_xy for o in objects]
        )
    if any(segmentation is not None for segmentation in segmentations):
        optional["segmentations"] = Segmentations.build(segmentations)
    if categories.keypoints:
        optional["keypoints"] = _keypoints(objects, categories)
    return Objects.build(
        image_index=np.repeat(np.arange(len(by_image)), [len(instances) for instances in by_image]),
        labels=[categories.index(instance.label) for instance in objects],
        boxes_xyxy=np.array([instance.box_xyxy for instance in objects]),
        areas=[instance.area for instance in objects],
        is_crowd=[instance.flags.get("crowd", False) for instance in objects],
        scores=None if np.isnan(scores).all() else scores,
        columns={name: np.array([instance.flags.get(name, False) for instance in objects]) for name in flags},
        **optional,
    )


def _keypoints(objects: list[LabelMeObject], categories: Categories) -> np.ndarray:
    schemes = {name: scheme.names for name, scheme in categories.keypoints}
    keypoints = np.zeros((len(objects), max(len(names) for names in schemes.values()), 3))
    for row, instance in enumerate(objects):
        for k, name in enumerate(schemes.get(instance.label, ())):
            keypoints[row, k] = instance.keypoints.get(name, (0, 0, 0))
    return keypoints


def write(datasets: Dataset | Sequence[Dataset], folder: Path, *, images: ImageMode = "copy") -> list[ConversionLoss]:
    """Write LabelMe files beside their images, with ``labels.txt``; each split in its own folder.

    Polygons stay polygons; RLEs become masks, which keep holes and parts. A box that differs from the bounding box of
    its segmentation is written as a rectangle of the same group.
    """
    losses: list[ConversionLoss] = []
    splits = as_splits(datasets)
    with staged_folder(folder) as stage:
        (stage / _LABELS_FILE).write_text("".join(f"{name}\n" for name in splits[0].categories), encoding="utf-8")
        for dataset in splits:
            losses += _write_split(dataset, stage / split_file_name(dataset), images)
            losses += split_name_losses(dataset, split_file_name(dataset))
    return losses


def _write_split(dataset: Dataset, folder: Path, images: ImageMode) -> list[ConversionLoss]:
    objects = dataset.objects if dataset.objects is not None else Objects.empty()
    flags = boolean_columns(objects)
    can_hold = {
        "crowd",
        "score",
        "keypoints",
        "keypoint_names",
        "corners",
        "outline",
        "holes",
        "parts",
        "polygons",
        *flags,
    }
    losses = find_losses(dataset, can_hold=frozenset(can_hold), areas=_areas(dataset, objects))
    scores = np.full(len(objects), np.nan) if objects.scores is None else objects.scores
    for row in np.flatnonzero((scores < 0) | (scores > 1)).tolist():
        lost = f"its score, which is not in 0..1: {scores[row]:g}"
        losses.append(
            ConversionLoss("score", dataset.images.files[objects.image_index[row]], int(objects.ids[row]), lost)
        )
    flags["crowd"] = objects.is_crowd
    names = flat_names(dataset.images.files)
    point_names = {name: list(scheme.names) for name, scheme in dataset.categories.keypoints}
    bounds = np.searchsorted(objects.image_index, np.arange(len(dataset) + 1))
    copy_or_link_images(dataset, folder, images, names=names)
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        height, width = dataset.images.size_hw(index)
        shapes: list[dict[str, Any]] = []
        for row in range(bounds[index], bounds[index + 1]):
            shapes += _shapes(dataset, objects, row, {flag: bool(column[row]) for flag, column in flags.items()})
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
            **({"keypoint_names": point_names} if point_names else {}),
        }
        text = msgspec.json.format(msgspec.json.encode(content), indent=2)
        (folder / name).with_suffix(".json").write_bytes(text)
    return losses


def _areas(dataset: Dataset, objects: Objects) -> np.ndarray:
    """Return areas as a reader computes them: of the polygons or mask, else the oriented box, else the box."""
    areas = np.prod(objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2], axis=1)
    for row in range(len(objects)):
        segmentations = objects.segmentations
        rings = [] if segmentations is None else segmentations.polygons(row)
        if not rings and objects.corners_xy is not None and not np.isnan(objects.corners_xy[row]).any():
            rings = [objects.corners_xy[row]]
        if rings:
            areas[row] = sum(polygon_area(ring) for ring in rings)
        if segmentations is not None and (counts := segmentations.rle(row)) is not None:
            size_hw = dataset.images.size_hw(int(objects.image_index[row]))
            areas[row] = Masks.from_rle([counts], size_hw).area()[0] or areas[row]
    return areas


def _shapes(dataset: Dataset, objects: Objects, row: int, flags: dict[str, bool]) -> list[dict[str, Any]]:
    """Return the shapes of an object; the first carries its flags and score."""
    label = dataset.categories[int(objects.labels[row])]
    size_hw = dataset.images.size_hw(int(objects.image_index[row]))
    shapes: list[dict[str, Any]] = []

    def add(kind: str, points: np.ndarray, **fields: Any) -> None:
        shapes.append(
            {"label": label, "points": points.tolist(), "group_id": None, "shape_type": kind, "flags": {}, **fields}
        )

    rings: list[np.ndarray] = []
    mask = None
    if objects.segmentations is not None:
        rings += objects.segmentations.polygons(row)
        for ring in rings:
            add("polygon", ring)
        if (counts := objects.segmentations.rle(row)) is not None:
            mask = Masks.from_rle([counts], size_hw).dense()[0]
            if mask.any():
                x, y = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
                crop = mask[y[0] : y[-1] + 1, x[0] : x[-1] + 1]
                add("mask", np.array([[x[0], y[0]], [x[-1], y[-1]]]), mask=encode_mask(crop))
    if objects.corners_xy is not None and not np.isnan(objects.corners_xy[row]).any():
        rings.append(objects.corners_xy[row])
        add("polygon", rings[-1], flags={"oriented_box": True})
    box = objects.boxes_xyxy[row]
    if not shapes or np.abs(enclosing_box(rings, mask) - box).max() > 1e-9:
        add("rectangle", box.reshape(2, 2))
    shapes[0]["flags"] = {**shapes[0]["flags"], **flags}
    if objects.scores is not None and 0 <= objects.scores[row] <= 1:
        shapes[0]["score"] = float(objects.scores[row])
    if objects.keypoints is not None:
        scheme = dataset.categories.keypoints_of(label)
        for k, (x, y, visibility) in enumerate(objects.keypoints[row]):
            if visibility > 0:
                hidden = {"flags": {"occluded": True}} if visibility == 1 else {}
                name = scheme.names[k] if scheme and k < len(scheme) else str(k)
                add("point", np.array([[x, y]]), **{"label": name, **hidden})
    if len(shapes) > 1:
        for shape in shapes:
            shape["group_id"] = row + 1
    return shapes
