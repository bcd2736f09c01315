"""Pairs of masks by IoU, computed on polygons and RLE: no dense masks.

Polygons become pixels as in COCO's mask API, to the pixel; :class:`otus.structures.Masks` by way of pycocotools is the
readable reference.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from otus.errors import DataError, UsageError
from otus.metrics.detection import _mask_kernels as kernels
from otus.metrics.detection import _pair_kernels as box_kernels
from otus.metrics.detection._rle_kernels import total_pixels
from otus.metrics.detection.pairs import Pairs, RankedDetections
from otus.structures import Objects, Outline, Segmentations, boxes

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
    """Return pairs by IoU of masks; with a crowd the IoU is intersection / area of the detection, as in COCO.

    Raises
    ------
    DataError
        An object without a segmentation, or run lengths of another size than its image.
    UsageError
        The sizes of the images are missing.
    """
    if sizes_hw is None:
        raise UsageError("masks: expected sizes_hw, the sizes of the images")
    for side, objects in (("truth", ground_truth), ("predictions", predictions)):
        if objects.segmentations is None and len(objects):
            raise UsageError(f"masks: {side}: no masks")
    sizes = np.asarray(sizes_hw, dtype=np.int64)
    # A detection without a ground truth of its category in the image is in no pair: its mask is not decoded.
    decoded = np.flatnonzero(ranked.spans[:, 1] > ranked.spans[:, 0])
    true = _Intervals.from_objects(ground_truth, ranked.ground_truths, sizes, "truth")
    true_boxes_area = boxes.area(true.boxes_xyxy)
    crowd = ground_truth.is_crowd[ranked.ground_truths]
    counts = np.zeros(len(ranked.detections), dtype=np.int64)
    all_gt, all_ious = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for first in range(0, len(decoded), _CHUNK):
        chunk = decoded[first : first + _CHUNK]
        found = _Intervals.from_objects(predictions, ranked.detections[chunk], sizes, "predictions")
        offsets, ground_truths, _ = box_kernels.box_pairs(
            found.boxes_xyxy,
            boxes.area(found.boxes_xyxy),
            true.boxes_xyxy,
            true_boxes_area,
            crowd,
            ranked.spans[chunk],
            np.nextafter(0, 1) if min_similarity > 0 else 0.0,
        )
        counts[chunk] = np.diff(offsets)
        all_gt.append(ground_truths)
        all_ious.append(
            kernels.interval_ious(
                offsets, ground_truths, found.offsets, found.intervals, found.areas,
                true.offsets, true.intervals, true.areas, crowd,
            )
        )  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Pairs(offsets, np.concatenate(all_gt), np.concatenate(all_ious)).filter(min_similarity)


def mask_ious(
    pairs: Pairs,
    ground_truth: Objects,
    true_rows: Int[np.ndarray, "g"],
    predictions: Objects,
    found_rows: Int[np.ndarray, "d"],
    *,
    sizes_hw: Int[np.ndarray, "m 2"],
) -> Float[np.ndarray, "p"]:
    """Return the IoU of given pairs: detection i is prediction ``found_rows[i]``, true object j ``true_rows[j]``."""
    sizes = np.asarray(sizes_hw, dtype=np.int64)
    true = _Intervals.from_objects(ground_truth, true_rows, sizes, "truth")
    crowd = ground_truth.is_crowd[true_rows]
    parts = [np.zeros(0)]
    for first in range(0, len(found_rows), _CHUNK):
        last = min(first + _CHUNK, len(found_rows))
        found = _Intervals.from_objects(predictions, found_rows[first:last], sizes, "predictions")
        offsets = pairs.offsets[first : last + 1]
        parts.append(
            kernels.interval_ious(
                offsets - offsets[0], pairs.ground_truths[offsets[0] : offsets[-1]],
                found.offsets, found.intervals, found.areas, true.offsets, true.intervals, true.areas, crowd,
            )
        )  # fmt: skip
    return np.concatenate(parts)


def mask_areas(objects: Objects, *, sizes_hw: Int[np.ndarray, "m 2"], side: str) -> Float[np.ndarray, "n"]:
    """Return the area of each mask in pixels; errors as of :func:`mask_pairs`, where ``side`` is truth or predictions."""
    return _Intervals.from_objects(objects, np.arange(len(objects)), np.asarray(sizes_hw, dtype=np.int64), side).areas


class _Intervals(NamedTuple):
    """The pixels of N masks: those of mask i are ``intervals[offsets[i]:offsets[i + 1]]``, numbered down the columns."""

    offsets: Int[np.ndarray, "n_plus_1"]
    intervals: Int[np.ndarray, "i 2"]
    boxes_xyxy: Float[np.ndarray, "n 4"]
    areas: Float[np.ndarray, "n"]

    @classmethod
    def from_objects(
        cls, objects: Objects, chosen: Int[np.ndarray, "n"], sizes_hw: Int[np.ndarray, "m 2"], side: str
    ) -> "_Intervals":
        outlines = objects.segmentations or Segmentations.build([])
        missing = outlines.kinds[chosen] == Outline.NONE
        if missing.any():
            record = int(chosen[np.argmax(missing)])
            raise DataError(
                "expected a segmentation, got none",
                where=f"{side}[{record}] (id {objects.ids[record]}).segmentation",
                remedy=f"{missing.sum()} of {len(chosen)} have none; compare boxes (bbox), or remove these objects",
            )
        *arrays, (faulty, code) = kernels.outline_intervals(
            chosen,
            outlines.kinds == Outline.RLE,
            outlines.rings,
            outlines.points,
            outlines.points_xy,
            outlines.counts,
            outlines.counts_bytes,
            sizes_hw[objects.image_index[chosen]],
        )
        if code != kernels.VALID:
            record = int(chosen[faulty])
            height, width = sizes_hw[objects.image_index[record]].tolist()
            counts = np.frombuffer(outlines.rle(record) or b"", dtype=np.uint8)
            total = int(total_pixels(counts, np.array([0, len(counts)]))[0])
            raise DataError(
                _PROBLEMS[code if total >= 0 else kernels.INVALID_RUN_LENGTHS].format(
                    height=height, width=width, pixels=height * width, total=total
                ),
                where=f"{side}[{record}] (id {objects.ids[record]}).segmentation",
                remedy="a mask must have the size of its image",
            )
        return cls(*arrays)
