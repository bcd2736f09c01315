"""Ignore regions, in which detections of any category are ignored: KITTI's DontCare, VisDrone's ignored regions.

Such a region is a crowd (``is_crowd``) of every category with the column ``ignored``: an unmatched detection is ignored
if intersection / area of the detection reaches the IoU threshold. This is the rule of KITTI's development kit
(``evaluate_object.cpp``: intersection / area of the detection exceeds the minimum IoU of the class, 0.7 for cars and
0.5 for others) and COCO's rule for crowds. VisDrone's kit instead drops detections and objects of which half lies in
the union of the regions, before matching; here, an object in a region may be matched.

Shape shorthand: N ground truths, R rows of objects and of regions repeated for categories.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int

from otus.structures import Objects, SegmentationKind, Segmentations

COLUMN = "ignored"


def ignore_regions(objects: Objects) -> Bool[np.ndarray, "n"]:
    """Return a mask (N,) of the objects that are ignore regions."""
    if COLUMN not in objects.columns:
        return np.zeros(len(objects), dtype=bool)
    return objects.is_crowd & (objects.columns[COLUMN] == 1)


def repeat_ignore_regions(ground_truth: Objects, predictions: Objects) -> tuple[Int[np.ndarray, "r"], Objects]:
    """Repeat each ignore region for every category detected in its image; return original rows (R,) and ground truth.

    >>> region = {"is_crowd": [True], "columns": {"ignored": np.array([True])}}
    >>> ground_truth = Objects.build(image_index=[0], labels=[5], boxes_xyxy=[[0, 0, 9, 9]], **region)
    >>> predictions = Objects.build(image_index=[0, 0, 1], labels=[2, 3, 4], boxes_xyxy=[[0, 0, 9, 9]] * 3)
    >>> rows, repeated = repeat_ignore_regions(ground_truth, predictions)
    >>> rows.tolist(), repeated.labels.tolist()
    ([0, 0], [2, 3])
    """
    is_region = ignore_regions(ground_truth)
    if not is_region.any():
        return np.arange(len(ground_truth)), ground_truth
    regions = np.flatnonzero(is_region)
    detected = np.unique(np.stack([predictions.image_index, predictions.labels]), axis=1)
    first, last = (np.searchsorted(detected[0], ground_truth.image_index[regions], side) for side in ("left", "right"))
    counts = last - first
    categories = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    objects = np.flatnonzero(~is_region)
    rows = np.concatenate([objects, np.repeat(regions, counts)])
    labels = np.concatenate([ground_truth.labels[objects], detected[1, categories]])
    order = np.argsort(ground_truth.image_index[rows], kind="stable")
    return rows[order], replace(ground_truth.take(rows[order]), labels=labels[order])


def complete_regions(objects: Objects) -> Objects:
    """Add segmentations and corners made from their boxes to ignore regions, if other objects have these."""
    is_region = ignore_regions(objects)
    changes: dict[str, object] = {}
    segmentations, corners_xy = objects.segmentations, objects.corners_xy
    if segmentations is not None and (is_region & (segmentations.kinds == SegmentationKind.NONE)).any():
        boxes = _corners(objects)
        lacks_segmentation = (is_region & (segmentations.kinds == SegmentationKind.NONE)).tolist()
        changes["segmentations"] = Segmentations.build(
            [boxes[row]] if lacks else segmentations.segmentation(row) for row, lacks in enumerate(lacks_segmentation)
        )
    if corners_xy is not None and is_region.any():
        missing = is_region & np.isnan(corners_xy).any(axis=(1, 2))
        changes["corners_xy"] = np.where(missing[:, None, None], _corners(objects), corners_xy)
    return replace(objects, **changes) if changes else objects  # type: ignore[arg-type]


def _corners(objects: Objects) -> np.ndarray:
    return objects.boxes_xyxy[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
