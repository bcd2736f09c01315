"""Checks of labels that do not need the images."""

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
from otus.structures import Objects, SegmentationKind

BOX_SLACK_PX = 1.0
"""Pixels that a box may extend beyond the image: formats of whole pixels round."""
OVERHANG = (3.0, 0.05)
"""A mask may extend beyond its box by so many pixels, or by this fraction of the box's longer side if that is more."""
SHORTFALL = (6.0, 0.2)
"""A mask may fall short of its box by as much: Pascal VOC's masks leave out a border of five pixels and thin parts."""

AREA_FACTOR = 2.0
"""A stated area may differ from the segmentation's by this factor and, in addition, by a pixel all along the border:
official COCO files count overlapping parts twice, which gives up to 1.8 times the pixels."""
BOX_SHARES = (0.02, 1.2)
"""Without a segmentation, a stated area (perhaps of a mask) must lie between these fractions of the box's area."""
_FORMATS_WITH_AREAS = ("coco", "sa1b")  # for other formats, Otus computes the areas
_OBJECTS_PER_CHUNK = 10_000  # objects whose masks are in memory together


@dataclass(frozen=True)
class Finding:
    """One problem: its kind, the file, the record or line, and a message."""

    kind: str
    file: str
    where: str | None
    message: str


def check_labels(dataset: Dataset) -> Iterator[Finding]:
    """Yield duplicate ids and objects, boxes outside the image or without area, and masks and areas that disagree."""
    yield from _ids(dataset)
    if dataset.objects is not None and len(dataset.objects):
        checks = (_boxes, _zero_based_boxes, _masks, _areas, _duplicate_annotations)
        yield from chain.from_iterable(check(dataset, dataset.objects) for check in checks)


def _locate(dataset: Dataset, objects: Objects, index: int) -> tuple[str, str]:
    """Return the label file and the record of an object, as error messages of its format name them."""
    image = int(objects.image_index[index])
    if dataset.source.suffix in (".json", ".xml"):
        return str(dataset.source), f"annotation {objects.ids[index]} ({dataset.images.files[image]})"
    number = index - int(np.searchsorted(objects.image_index, image))
    return str(_label_file(dataset, image)), f"object[{number}]"


def _label_file(dataset: Dataset, image: int) -> Path:
    """Return the label file of an image if the format has one, else the image."""
    path = dataset.images.path(image).absolute()
    before, _, after = path.as_posix().rpartition("/images/")
    xml = f"{path.stem}.xml"
    candidates = {
        "voc": [
            folder / xml
            for parent in (path.parent.parent, dataset.source)
            for folder in (parent / "Annotations", parent / "annotations", path.parent)
        ],
        "yolo": [Path(before, "labels", after).with_suffix(".txt"), path.with_suffix(".txt")],
        "labelme": [path.with_suffix(".json")],
    }.get(dataset.format, [])
    return next((candidate for candidate in candidates if os.path.isfile(candidate)), path)


def _ids(dataset: Dataset) -> Iterator[Finding]:
    source = str(dataset.source)
    # Ids that are str are file stems, which may repeat between folders: train/cat/1.jpg, train/dog/1.jpg.
    integer_ids = [image_id for image_id in dataset.images.ids if isinstance(image_id, int)]
    ids: list[tuple[str, Sequence[object]]] = [
        ("image", integer_ids),
        ("annotation", [] if dataset.objects is None else dataset.objects.ids.tolist()),
    ]
    for kind, values in ids:
        for value, count in Counter(values).items():
            if count > 1:
                message = f"{count} {kind}s have the id {value!r} (give each a different one)"
                yield Finding(f"duplicate_{kind}_id", source, f"{kind} {value}", message)
    files = Counter(dataset.images.files)
    for file, count in files.items():
        if count > 1:
            message = f"the image is listed {count} times (merge its labels)"
            yield Finding("duplicate_image_id", source, file, message)
    if len(integer_ids) < len(files) and dataset.objects is not None:
        for name, count in Counter(os.path.splitext(file)[0] for file in files).items():
            if count > 1:
                message = f"{count} images differ only in their suffix and share their labels (rename one)"
                yield Finding("duplicate_image_id", source, name, message)


def _boxes(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    boxes = objects.boxes_xyxy
    limits = dataset.images.sizes_hw[objects.image_index][:, [1, 0]]
    excess = np.concatenate([-boxes[:, :2], boxes[:, 2:] - limits], axis=1).max(axis=1, initial=-np.inf)
    without_area = np.logical_not((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    for i in np.flatnonzero(without_area | ~(excess <= BOX_SLACK_PX)).tolist():
        file, where = _locate(dataset, objects, i)
        box = f"box {_format_box(boxes[i])}"
        if without_area[i]:
            yield Finding("box_without_area", file, where, f"{box} has no area (remove or redraw it)")
        else:
            width, height = limits[i]
            mask_box = _segmentation_box(objects, i, (int(height), int(width)))
            has_mask_outside = mask_box is not None and (mask_box != mask_box.clip(0, [width, height] * 2)).any()
            remedy = "as its mask does: clip both" if has_mask_outside else "clip it"
            message = f"{box} reaches {excess[i]:.1f} pixels outside the image of {width} x {height} ({remedy})"
            yield Finding("box_outside", file, where, message)


def _zero_based_boxes(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    """Yield a finding if boxes in a 1-based format start at 0."""
    if dataset.format != "voc":
        return
    from_0 = np.flatnonzero((objects.boxes_xyxy[:, :2] == -1).any(axis=1))
    if len(from_0):
        file, where = _locate(dataset, objects, int(from_0[0]))
        message = (
            f"starts at 0, like {len(from_0)} of {len(objects)} boxes, but VOC counts pixels from 1: the files seem "
            "to count from 0 (read them with --format voc_from_0, or correct the boxes)"
        )
        yield Finding("counts_from_0", file, where, message)


def _format_box(box_xyxy: Float[np.ndarray, "4"]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box_xyxy) + "]"


def _masks(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    segmentations = objects.segmentations
    if segmentations is None:
        return
    for i in np.flatnonzero(segmentations.kinds != SegmentationKind.NONE).tolist():
        size_hw = dataset.images.size_hw(int(objects.image_index[i]))
        mask_box = _segmentation_box(objects, i, size_hw)
        if mask_box is None:
            file, where = _locate(dataset, objects, i)
            yield Finding("empty_mask", file, where, "the mask has no pixels (remove or redraw it)")
            continue
        box = objects.boxes_xyxy[i]
        size_whwh = np.array([size_hw[1], size_hw[0]] * 2)
        # The mask is clipped to the image; the box may or may not be.
        unclipped, clipped = _distances(mask_box, box), _distances(mask_box.clip(0, size_whwh), box.clip(0, size_whwh))
        distances = min(unclipped, clipped, key=np.max)
        side = (box[2:] - box[:2]).max()
        if any(
            distance > max(px, fraction * side)
            for distance, (px, fraction) in zip(distances, (OVERHANG, SHORTFALL), strict=True)
        ):
            file, where = _locate(dataset, objects, i)
            fills = f"the mask fills {_format_box(mask_box)}, the box is {_format_box(box)}"
            message = f"{fills}: up to {distances.max():.1f} pixels apart"
            yield Finding("mask_disagrees", file, where, f"{message} (correct whichever is wrong)")


def _areas(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    """Yield stored areas that are inconsistent with the segmentation or, without one, the box."""
    if dataset.format not in _FORMATS_WITH_AREAS:
        return
    sizes_wh = objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]
    # Invalid boxes and masks are reported by other checks.
    usable = np.isfinite(sizes_wh).all(axis=1) & (sizes_wh > 0).all(axis=1)
    minimum, maximum = (sizes_wh.prod(axis=1) * fraction for fraction in BOX_SHARES)
    has_segmentation = np.zeros(len(objects), dtype=bool)
    if objects.segmentations is not None:
        has_segmentation = objects.segmentations.kinds != SegmentationKind.NONE
        with_segmentation = np.flatnonzero(has_segmentation & usable)
        for first in range(0, len(with_segmentation), _OBJECTS_PER_CHUNK):
            rows = with_segmentation[first : first + _OBJECTS_PER_CHUNK]
            pixels = mask_areas(objects.take(rows), sizes_hw=dataset.images.sizes_hw, side="labels")
            border = sizes_wh[rows].sum(axis=1)  # about half of the contour: pixels on it may be counted or not
            minimum[rows], maximum[rows] = pixels / AREA_FACTOR - border, pixels * AREA_FACTOR + border
            usable[rows] = pixels > 0
    is_consistent = (objects.areas >= minimum - 1) & (objects.areas <= maximum + 1)
    for i in np.flatnonzero(usable & ~is_consistent).tolist():
        file, where = _locate(dataset, objects, i)
        source = "segmentation" if has_segmentation[i] else "box"
        expected = f"the {source} implies {max(minimum[i], 0):.6g} to {maximum[i]:.6g}"
        advice = "correct it: otus evaluate uses it for AP by size and for OKS"
        yield Finding("area_disagrees", file, where, f"area is {objects.areas[i]:.6g}, but {expected} ({advice})")


def _distances(mask_box: Float[np.ndarray, "4"], box: Float[np.ndarray, "4"]) -> Float[np.ndarray, "2"]:
    """Return the largest distances in pixels by which any side of a mask exceeds its box, and falls short of it."""
    excess = (mask_box - box) * (-1, -1, 1, 1)
    return np.array([excess.max(), -excess.min()])


def _segmentation_box(objects: Objects, index: int, size_hw: tuple[int, int]) -> Float[np.ndarray, "4"] | None:
    """Return the tight box of an object's segmentation, None if it is missing or empty."""
    if objects.segmentations is None or objects.segmentations.kinds[index] == SegmentationKind.NONE:
        return None
    segmentation = objects.segmentations.segmentation(index)
    if isinstance(segmentation, bytes):
        x, y, width, height = rle_codec.toBbox({"size": list(size_hw), "counts": segmentation})
        return np.array([x, y, x + width, y + height]) if width > 0 and height > 0 else None
    points = np.concatenate(segmentation) if segmentation else np.zeros((0, 2))
    return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else None


def _duplicate_annotations(dataset: Dataset, objects: Objects) -> Iterator[Finding]:
    """Yield objects of one image with equal category, box and segmentation."""
    key = np.column_stack([objects.image_index, objects.labels, objects.is_crowd, objects.boxes_xyxy.round(2)])
    if objects.corners_xy is not None:
        key = np.column_stack([key, objects.corners_xy.reshape(len(objects), -1).round(2)])
    _, first, group = np.unique(key, axis=0, return_index=True, return_inverse=True)
    for i, j in enumerate(first[group.reshape(-1)].tolist()):
        if i == j or not _same_segmentation(objects, i, j):
            continue
        file, where = _locate(dataset, objects, i)
        _, other = _locate(dataset, objects, j)
        message = f"the same {dataset.categories[int(objects.labels[i])]!r} and box as {other}"
        yield Finding("duplicate_annotation", file, where, f"{message} (remove one)")


def _same_segmentation(objects: Objects, i: int, j: int) -> bool:
    if objects.segmentations is None:
        return True
    a, b = objects.segmentations.segmentation(i), objects.segmentations.segmentation(j)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
    return a == b
