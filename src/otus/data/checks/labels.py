"""Check labels as far as that is possible without the images."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pycocotools import mask as rle_codec

from otus.data.dataset import Dataset
from otus.metrics.detection.mask_pairs import mask_areas
from otus.structures import Objects, Outline

BOX_SLACK_PX = 1.0
"""A box may lie this far outside: formats of whole pixels round."""
OVERHANG = (3.0, 0.05)
"""A mask may reach so many pixels out of its box, or this share of the box's longer side if that is more."""
SHORTFALL = (6.0, 0.2)
"""And may end so far inside: masks drawn as Pascal VOC's leave out a border of five pixels and thin parts."""

AREA_FACTOR = 2.0
"""A stated area may be so many times the outline's, or as much smaller, and off by a pixel all along the border: official
COCO files count overlapping parts twice, up to 1.8 times the pixels."""
BOX_SHARES = (0.02, 1.2)
"""Of an object without an outline the area may be that of its mask: between these shares of the box."""
_STATING_AREAS = ("coco", "sa1b")  # in other formats areas are computed
_AT_ONCE = 10_000  # objects whose masks are in memory together


@dataclass(frozen=True)
class Finding:
    """One problem: its kind, the file, the record or line, and a message."""

    kind: str
    file: str
    where: str | None
    message: str


def check_labels(dataset: Dataset) -> Iterator[Finding]:
    """Yield duplicate ids and objects, boxes outside the image or without area, masks and areas that disagree with boxes."""
    yield from _ids(dataset)
    if dataset.objects is not None and len(dataset.objects):
        checks = (_boxes, _counting, _masks, _areas, _duplicate_annotations)
        yield from chain.from_iterable(check(dataset, dataset.objects) for check in checks)


def _place(dataset: Dataset, objects: Objects, index: int) -> tuple[str, str]:
    """Return file and record of an object, as its format refers to them."""
    image = int(objects.image_index[index])
    if dataset.source.suffix in (".json", ".xml"):
        return str(dataset.source), f"annotation {objects.ids[index]} ({dataset.images.files[image]})"
    number = index - int(np.searchsorted(objects.image_index, image))
    return str(_label_file(dataset, image)), f"object[{number}]"


def _label_file(dataset: Dataset, image: int) -> Path:
    """Return the label file of an image if the format has one, else the image."""
    path = dataset.images.path(image)
    parts = ["labels" if part == "images" else part for part in path.parts]
    xml = f"{path.stem}.xml"
    places = {
        "voc": [
            folder / xml
            for parent in (path.parents[1], dataset.source)
            for folder in (parent / "Annotations", parent / "annotations", path.parent)
        ],
        "yolo": [Path(*parts).with_suffix(".txt"), path.with_suffix(".txt")],
        "labelme": [path.with_suffix(".json")],
    }.get(dataset.format, [])
    return next((place for place in places if os.path.isfile(place)), path)


def _ids(dataset: Dataset) -> Iterator[Finding]:
    source = str(dataset.source)
    # Text ids are the stems of files: two may be equal where the folders differ, as in train/cat/1.jpg, train/dog/1.jpg.
    numbers = [image_id for image_id in dataset.images.ids if isinstance(image_id, int)]
    ids: list[tuple[str, Sequence[object]]] = [
        ("image", numbers),
        ("annotation", [] if dataset.objects is None else dataset.objects.ids.tolist()),
    ]
    for what, values in ids:
        for value, count in Counter(values).items():
            if count > 1:
                message = f"{count} {what}s have the id {value!r} (give each its own)"
                yield Finding(f"duplicate_{what}_id", source, f"{what} {value}", message)
    files = Counter(dataset.images.files)
    for file, count in files.items():
        if count > 1:
            message = f"the image is listed {count} times (merge its labels)"
            yield Finding("duplicate_image_id", source, file, message)
    if len(numbers) < len(files) and dataset.objects is not None:
        for name, count in Counter(os.path.splitext(file)[0] for file in files).items():
            if count > 1:
                message = f"{count} images differ in nothing but their suffix, and share their labels (rename one)"
                yield Finding("duplicate_image_id", source, name, message)


def _boxes(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    boxes = objects.boxes_xyxy
    limits = dataset.images.sizes_hw[objects.image_index][:, [1, 0]]
    excess = np.concatenate([-boxes[:, :2], boxes[:, 2:] - limits], axis=1).max(axis=1, initial=-np.inf)
    without_area = np.logical_not((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    for i in np.flatnonzero(without_area | ~(excess <= BOX_SLACK_PX)).tolist():
        file, where = _place(dataset, objects, i)
        text = f"box {_text(boxes[i])}"
        if without_area[i]:
            yield Finding("box_without_area", file, where, f"{text} has no area (remove or draw it anew)")
        else:
            width, height = limits[i]
            extent = _extent(objects, i, (int(height), int(width)))
            has_mask_outside = extent is not None and (extent != extent.clip(0, [width, height] * 2)).any()
            remedy = "as its mask does: clip both" if has_mask_outside else "clip it"
            message = f"{text} reaches {excess[i]:.1f} pixels out of the image of {width} x {height} ({remedy})"
            yield Finding("box_outside", file, where, message)


def _counting(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    """Yield a finding if boxes start at 0 in a format whose first pixel is 1."""
    if dataset.format != "voc":
        return
    from_0 = np.flatnonzero((objects.boxes_xyxy[:, :2] == -1).any(axis=1))
    if len(from_0):
        file, where = _place(dataset, objects, int(from_0[0]))
        message = (
            f"begins at 0, as {len(from_0)} of {len(objects)} boxes do, where VOC counts from 1: the files seem to count "
            "from 0 (read them by --format voc_from_0, or correct the boxes)"
        )
        yield Finding("counts_from_0", file, where, message)


def _text(box_xyxy: Float[np.ndarray, "4"]) -> str:
    return "[" + ", ".join(f"{side:.6g}" for side in box_xyxy) + "]"


def _masks(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    outlines = objects.segmentations
    if outlines is None:
        return
    for i in np.flatnonzero(outlines.kinds != Outline.NONE).tolist():
        size_hw = dataset.images.size_hw(int(objects.image_index[i]))
        extent = _extent(objects, i, size_hw)
        if extent is None:
            file, where = _place(dataset, objects, i)
            yield Finding("empty_mask", file, where, "the mask has no pixel (remove or draw it anew)")
            continue
        box = objects.boxes_xyxy[i]
        size_whwh = np.array([size_hw[1], size_hw[0]] * 2)
        # A mask ends at the border of the image; its box may have been written before or after that cut.
        whole, cut = _apart(extent, box), _apart(extent.clip(0, size_whwh), box.clip(0, size_whwh))
        off = min(whole, cut, key=np.max)
        side = (box[2:] - box[:2]).max()
        if any(
            distance > max(px, share * side) for distance, (px, share) in zip(off, (OVERHANG, SHORTFALL), strict=True)
        ):
            file, where = _place(dataset, objects, i)
            message = f"the mask fills {_text(extent)}, the box is {_text(box)}: up to {off.max():.1f} pixels apart"
            yield Finding("mask_disagrees", file, where, f"{message} (correct the one that is wrong)")


def _areas(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    """Yield stored areas that neither the segmentation nor the box allows."""
    if dataset.format not in _STATING_AREAS:
        return
    sizes_wh = objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
    # What is wrong with boxes and masks themselves is found elsewhere.
    usable = np.isfinite(sizes_wh).all(axis=1) & (sizes_wh > 0).all(axis=1)
    minimum, maximum = (sizes_wh.prod(axis=1) * share for share in BOX_SHARES)
    has_outline = np.zeros(len(objects), dtype=bool)
    if objects.segmentations is not None:
        has_outline = objects.segmentations.kinds != Outline.NONE
        outlined = np.flatnonzero(has_outline & usable)
        for first in range(0, len(outlined), _AT_ONCE):
            rows = outlined[first : first + _AT_ONCE]
            pixels = mask_areas(objects.take(rows), sizes_hw=dataset.images.sizes_hw, side="labels")
            border = sizes_wh[rows].sum(axis=1)  # about half of the outline's length: pixels that one may count or not
            minimum[rows], maximum[rows] = pixels / AREA_FACTOR - border, pixels * AREA_FACTOR + border
            usable[rows] = pixels > 0
    fits = (objects.areas >= minimum - 1) & (objects.areas <= maximum + 1)
    for i in np.flatnonzero(usable & ~fits).tolist():
        file, where = _place(dataset, objects, i)
        fitting = f"the {'outline' if has_outline[i] else 'box'} allows {max(minimum[i], 0):.6g} to {maximum[i]:.6g}"
        advice = "correct it: evaluate takes it for AP by size and the tolerance of keypoints"
        yield Finding("area_disagrees", file, where, f"area is {objects.areas[i]:.6g}, but {fitting} ({advice})")


def _apart(extent: Float[np.ndarray, "4"], box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "2"]:
    """Return how far an extent exceeds a box, and how far the box exceeds the extent, at the worst side, in pixels."""
    beyond = (extent - box) * (-1, -1, 1, 1)
    return np.array([beyond.max(), -beyond.min()])


def _extent(objects: Objects, index: int, size_hw: tuple[int, int]) -> Float[np.ndarray, "4"] | None:
    """Return the tight box of an object's segmentation, None if it is missing or empty."""
    if objects.segmentations is None or objects.segmentations.kinds[index] == Outline.NONE:
        return None
    outline = objects.segmentations.outline(index)
    if isinstance(outline, bytes):
        x, y, width, height = rle_codec.toBbox({"size": list(size_hw), "counts": outline})
        return np.array([x, y, x + width, y + height]) if width > 0 and height > 0 else None
    points = np.concatenate(outline) if outline else np.zeros((0, 2))
    return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else None


def _duplicate_annotations(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    """Yield objects of one image with equal category, box and segmentation."""
    key = np.column_stack([objects.image_index, objects.labels, objects.is_crowd, objects.boxes_xyxy.round(2)])
    if objects.corners_xy is not None:
        key = np.column_stack([key, objects.corners_xy.reshape(len(objects), -1).round(2)])
    _, first, group = np.unique(key, axis=0, return_index=True, return_inverse=True)
    for i, j in enumerate(first[group.reshape(-1)].tolist()):
        if i == j or not _same_outline(objects, i, j):
            continue
        file, where = _place(dataset, objects, i)
        _, other = _place(dataset, objects, j)
        what = f"the same {dataset.categories[int(objects.labels[i])]!r} and box as {other}"
        yield Finding("duplicate_annotation", file, where, f"{what} (remove one)")


def _same_outline(objects: Objects, i: int, j: int) -> bool:
    if objects.segmentations is None:
        return True
    a, b = objects.segmentations.outline(i), objects.segmentations.outline(j)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
    return a == b
