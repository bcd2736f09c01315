"""Match the SegmentationObject PNGs of Pascal VOC to boxes, and write them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from otus.data.dataset import Dataset
from otus.data.formats.interface import ConversionLoss
from otus.data.image_writing import write_label_image
from otus.data.images import read_label_image
from otus.errors import DataError, Report
from otus.structures import IGNORE, Masks, Objects, Segmentations
from otus.structures.boxes import area, pairwise_iou

_MIN_IOU = 0.5


def add_masks(objects: Objects, files: list[Path], sizes: list[tuple[int, int]], report: Report) -> Objects:
    """Add the masks in the label images ``files``, one per image if it exists, to the objects.

    Masks that fit no box (see :func:`_match`) go to ``report``.
    """
    segmentations: list[Any] = [None] * len(objects)
    areas = objects.areas.copy()
    bounds = np.searchsorted(objects.image_index, np.arange(len(files) + 1))
    for image, file in enumerate(files):
        if not file.is_file():
            continue
        try:
            values = read_label_image(file, expected_size_hw=sizes[image])
        except DataError as problem:
            report(problem)
            continue
        indices, counts, masks = _split_values(values)
        mask_areas = masks.area()
        rows = slice(bounds[image], bounds[image + 1])
        for k, object_index in enumerate(_match(indices, masks.boxes_xyxy(), objects.boxes_xyxy[rows])):
            if object_index is None:
                report(
                    DataError(
                        f"the mask of value {indices[k]} fits none of the {rows.stop - rows.start} boxes",
                        file=file,
                        where=f"value {indices[k]}",
                        remedy="number the masks in the order of the objects in the XML file, or correct the boxes",
                        kind="mask_without_box",
                    )
                )
                continue
            segmentations[rows.start + object_index] = counts[k]
            areas[rows.start + object_index] = mask_areas[k]
    columns = {
        name: getattr(objects, name) for name in ("image_index", "labels", "boxes_xyxy", "corners_xy", "columns")
    }
    return Objects.build(**columns, areas=areas, segmentations=Segmentations.build(segmentations))


def _split_values(values: Int[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "k"], list[Any], Masks]:
    """Return the indices in a label image, from 1 and without void, their run lengths and their masks."""
    indices = np.flatnonzero(np.bincount(values.ravel(), minlength=256)[1:IGNORE]) + 1
    counts = [Masks.from_dense(values[None] == value).rle()[0]["counts"] for value in indices]
    return indices, counts, Masks.from_rle(counts, values.shape)  # type: ignore[arg-type]


def _match(indices: np.ndarray, mask_boxes: np.ndarray, boxes: np.ndarray) -> list[int | None]:
    """Match masks to objects: value k to the k-th object if all masks fit, else by maximum total box IoU.

    A mask fits a box if the IoU of the boxes is at least 0.5; it also fits the k-th box if it lies inside, since an
    object may be partly hidden.
    """
    if len(indices) and indices.max() <= len(boxes) and _fit_by_number(indices, mask_boxes, boxes).all():
        return [int(k) for k in indices - 1]
    iou = pairwise_iou(mask_boxes, boxes)
    from scipy.optimize import linear_sum_assignment  # slow to import, rarely needed

    match: list[int | None] = [None] * len(indices)
    for row, column in zip(*linear_sum_assignment(-iou), strict=True):
        if iou[row, column] >= _MIN_IOU:
            match[row] = int(column)
    return match


def _fit_by_number(indices: np.ndarray, mask_boxes: np.ndarray, boxes: np.ndarray) -> Bool[np.ndarray, "k"]:
    """Return which masks fit the box of their number, see :func:`_match`."""
    intersection = _intersect(mask_boxes, boxes[indices - 1] + [-1, -1, 1, 1])
    is_inside = area(intersection) >= 0.9 * area(mask_boxes)
    iou = pairwise_iou(mask_boxes, boxes)[np.arange(len(indices)), indices - 1]
    return np.logical_or(is_inside, iou >= _MIN_IOU)


def _intersect(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Intersect each box with its frame."""
    return np.concatenate([np.maximum(boxes[:, :2], frames[:, :2]), np.minimum(boxes[:, 2:], frames[:, 2:])], axis=1)


def palette() -> UInt8[np.ndarray, "256 3"]:
    """Return VOC's colour map (256, 3): the index's bits alternate between red, green and blue."""
    index, colours = np.arange(256), np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def write_object_masks(dataset: Dataset, index: int, file: Path) -> Iterator[ConversionLoss]:
    """Write the label image of one image's objects, small ones over large.

    Yield as losses hidden pixels, and masks too far from their box: a single one would be matched with no box, and with
    it no mask by its number.
    """
    instances = dataset.instances(index)
    if instances.masks is None:
        return
    values = np.zeros(instances.size_hw, dtype=np.int64)
    areas = instances.masks.area()
    for row in np.argsort(-areas[:254], kind="stable"):
        values[instances.masks[row].dense()[0]] = row + 1
    indices, _, masks = _split_values(values)
    unmatched = indices[~_fit_by_number(indices, masks.boxes_xyxy(), instances.boxes_xyxy)]
    values[np.isin(values, unmatched)] = 0
    write_label_image(file, values, palette=palette())
    image, ids = dataset.images.files[index], instances.columns["ids"].tolist()
    for row in (unmatched - 1).tolist():
        yield ConversionLoss("outline", image, ids[row], "its segmentation, which is too far from its box")
    visible = np.bincount(values.ravel(), minlength=len(instances) + 1)[1:]
    for row, pixels in enumerate(areas):
        if pixels > visible[row] and row + 1 not in unmatched:
            lost = f"{int(pixels - visible[row])} of {int(pixels)} pixels of its mask, hidden or beyond 254 objects"
            yield ConversionLoss("overlap", image, ids[row], lost)
