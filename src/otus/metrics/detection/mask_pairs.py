"""Pairs of masks by IoU, computed from polygons and RLE without dense masks.

Polygons are rasterised to exactly the pixels of COCO's mask API; :class:`otus.structures.Masks`, which uses
pycocotools, is the readable reference.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from otus.errors import DataError, UsageError
from otus.metrics.detection import _mask_kernels as kernels
from otus.metrics.detection import _pair_kernels as box_kernels
from otus.metrics.detection._rle_kernels import total_pixels
from otus.metrics.detection.pairs import Pairs, RankedDetections
from otus.structures import Objects, SegmentationKind, Segmentations, boxes

_CHUNK = 4096
"""Number of detections whose pixel intervals are in memory together."""

_PROBLEMS = {
    kernels.INVALID_RUN_LENGTHS: "these are not COCO's compressed run lengths",
    kernels.WRONG_SIZE: "the run lengths add up to {total} pixels, the image has {height} x {width} = {pixels}",
}


def mask_pairs(
    ground_truth: Objects,
    predictions: Objects,
    ranked: RankedDetections,
    *,
    sizes_hw: Int[np.ndarray, "m 2"] | None,
    min_similarity: float,
) -> Pairs:
    """Return pairs by IoU of masks; with a crowd, intersection / area of the detection, as in COCO.

    Raises
    ------
    DataError
        If an object has no segmentation, or run lengths of another size than its image.
    UsageError
        If the sizes of the images are missing.
    """
    if sizes_hw is None:
        raise UsageError("masks: expected sizes_hw, the sizes of the images")
    for side, objects in (("ground_truth", ground_truth), ("predictions", predictions)):
        if objects.segmentations is None and len(objects):
            where = "ground truth has" if side == "ground_truth" else "predictions have"
            raise UsageError(f"masks: the {where} no masks; compare boxes instead")
    sizes = np.asarray(sizes_hw, dtype=np.int64)
    # Only detections with a ground truth of their category in the image can be in a pair; other masks are not decoded.
    candidates = np.flatnonzero(ranked.spans[:, 1] > ranked.spans[:, 0])
    gt = _Intervals.from_objects(ground_truth, ranked.ground_truths, sizes, "ground_truth")
    gt_box_areas = boxes.area(gt.boxes_xyxy)
    crowd = ground_truth.is_crowd[ranked.ground_truths]
    counts = np.zeros(len(ranked.detections), dtype=np.int64)
    all_gt, all_ious = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for first in range(0, len(candidates), _CHUNK):
        chunk = candidates[first : first + _CHUNK]
        detections = _Intervals.from_objects(predictions, ranked.detections[chunk], sizes, "predictions")
        offsets, ground_truths, _ = box_kernels.box_pairs(
            detections.boxes_xyxy,
            boxes.area(detections.boxes_xyxy),
            gt.boxes_xyxy,
            gt_box_areas,
            crowd,
            ranked.spans[chunk],
            np.nextafter(0, 1) if min_similarity > 0 else 0.0,
        )
        counts[chunk] = np.diff(offsets)
        all_gt.append(ground_truths)
        all_ious.append(
            kernels.interval_ious(
                offsets, ground_truths, detections.offsets, detections.intervals, detections.areas,
                gt.offsets, gt.intervals, gt.areas, crowd,
            )
        )  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Pairs(offsets, np.concatenate(all_gt), np.concatenate(all_ious)).filter(min_similarity)


def mask_ious(
    pairs: Pairs,
    ground_truth: Objects,
    gt_rows: Int[np.ndarray, "g"],
    predictions: Objects,
    detection_rows: Int[np.ndarray, "d"],
    *,
    sizes_hw: Int[np.ndarray, "m 2"],
) -> Float[np.ndarray, "p"]:
    """Return the IoU of pairs; detection i is row ``detection_rows[i]``, ground truth j is row ``gt_rows[j]``."""
    sizes = np.asarray(sizes_hw, dtype=np.int64)
    gt = _Intervals.from_objects(ground_truth, gt_rows, sizes, "ground_truth")
    crowd = ground_truth.is_crowd[gt_rows]
    parts = [np.zeros(0)]
    for first in range(0, len(detection_rows), _CHUNK):
        last = min(first + _CHUNK, len(detection_rows))
        detections = _Intervals.from_objects(predictions, detection_rows[first:last], sizes, "predictions")
        offsets = pairs.offsets[first : last + 1]
        parts.append(
            kernels.interval_ious(
                offsets - offsets[0], pairs.ground_truths[offsets[0] : offsets[-1]],
                detections.offsets, detections.intervals, detections.areas, gt.offsets, gt.intervals, gt.areas, crowd,
            )
        )  # fmt: skip
    return np.concatenate(parts)


def mask_areas(objects: Objects, *, sizes_hw: Int[np.ndarray, "m 2"], side: str) -> Float[np.ndarray, "n"]:
    """Return the area of each mask in pixels; errors as in :func:`mask_pairs`, where ``side`` names the objects."""
    return _Intervals.from_objects(objects, np.arange(len(objects)), np.asarray(sizes_hw, dtype=np.int64), side).areas


class _Intervals(NamedTuple):
    """The pixels of N masks: those of mask i are ``intervals[offsets[i]:offsets[i + 1]]``, as column-major indices."""

    offsets: Int[np.ndarray, "n_plus_1"]
    intervals: Int[np.ndarray, "i 2"]
    boxes_xyxy: Float[np.ndarray, "n 4"]
    areas: Float[np.ndarray, "n"]

    @classmethod
    def from_objects(
        cls, objects: Objects, rows: Int[np.ndarray, "n"], sizes_hw: Int[np.ndarray, "m 2"], side: str
    ) -> "_Intervals":
        segmentations = objects.segmentations or Segmentations.build([])
        missing = segmentations.kinds[rows] == SegmentationKind.NONE
        if missing.any():
            record = int(rows[np.argmax(missing)])
            raise DataError(
                "expected a segmentation, got none",
                where=f"{side}[{record}] (id {objects.ids[record]}).segmentation",
                remedy=f"{missing.sum()} of {len(rows)} have none; evaluate boxes (bbox), or remove these objects",
            )
        *arrays, (faulty, code) = kernels.segmentation_intervals(
            rows,
            segmentations.kinds == SegmentationKind.RLE,
            segmentations.rings,
            segmentations.points,
            segmentations.points_xy,
            segmentations.counts,
            segmentations.counts_bytes,
            sizes_hw[objects.image_index[rows]],
        )
        if code != kernels.VALID:
            record = int(rows[faulty])
            height, width = sizes_hw[objects.image_index[record]].tolist()
            counts = np.frombuffer(segmentations.rle(record) or b"", dtype=np.uint8)
            total = int(total_pixels(counts, np.array([0, len(counts)]))[0])
            raise DataError(
                _PROBLEMS[code if total >= 0 else kernels.INVALID_RUN_LENGTHS].format(
                    height=height, width=width, pixels=height * width, total=total
                ),
                where=f"{side}[{record}] (id {objects.ids[record]}).segmentation",
                remedy="a mask must have the size of its image",
            )
        return cls(*arrays)
