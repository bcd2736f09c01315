"""Compiled kernels of :mod:`otus.metrics.detection.pairs`: rank detections, find ground truths that they overlap."""

import numpy as np
from jaxtyping import Bool, Float, Int

from otus._numba import kernel


@kernel
def rank_detections(
    labels: Int[np.ndarray, "n"],
    images: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"],
    label_count: int,
    limit: int,
) -> tuple[Int[np.ndarray, "d"], Int[np.ndarray, "d"]]:
    """Sort detections by label, image and descending score; keep at most ``limit`` per label and image.

    ``images`` must be sorted. Returns the order (indices) and the rank of each detection within its label and image.
    Equal scores keep their order.
    """
    by_label = order_by_label(labels, label_count)
    order = np.empty(len(labels), np.int64)
    ranks = np.empty(len(labels), np.int32)
    kept = 0
    first = 0
    while first < len(by_label):
        last = first + 1
        detection = by_label[first]
        while (
            last < len(by_label)
            and labels[by_label[last]] == labels[detection]
            and images[by_label[last]] == images[detection]
        ):
            last += 1
        group = by_label[first:last]
        group = group[order_by_descending_score(scores[group])]
        for rank in range(min(limit, last - first)):
            order[kept] = group[rank]
            ranks[kept] = rank
            kept += 1
        first = last
    return order[:kept].copy(), ranks[:kept].copy()


@kernel
def order_by_descending_score(scores: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Return the stable order by descending score: merge sort (numba's own takes seconds to compile)."""
    count = len(scores)
    order = np.arange(count)
    merged = np.empty(count, np.int64)
    width = 1
    while width < count:
        for first in range(0, count, 2 * width):
            middle, last = min(first + width, count), min(first + 2 * width, count)
            i, j = first, middle
            if middle == last or scores[order[middle - 1]] >= scores[order[middle]]:
                merged[first:last] = order[first:last]
                continue
            for position in range(first, last):
                if j >= last or (i < middle and scores[order[i]] >= scores[order[j]]):
                    merged[position] = order[i]
                    i += 1
                else:
                    merged[position] = order[j]
                    j += 1
        order, merged = merged, order
        width *= 2
    return order


@kernel
def order_by_label(labels: Int[np.ndarray, "n"], label_count: int) -> Int[np.ndarray, "n"]:
    """Return the stable order by label (counting sort)."""
    positions = np.zeros(label_count + 1, np.int64)
    for label in labels:
        positions[label + 1] += 1
    positions = np.cumsum(positions)
    order = np.empty(len(labels), np.int64)
    for i in range(len(labels)):
        order[positions[labels[i]]] = i
        positions[labels[i]] += 1
    return order


@kernel
def gt_ranges(
    labels: Int[np.ndarray, "d"],
    images: Int[np.ndarray, "d"],
    gt_labels: Int[np.ndarray, "g"],
    gt_images: Int[np.ndarray, "g"],
) -> Int[np.ndarray, "d 2"]:
    """Return the range of ground truths with each detection's label and image; both are sorted by label and image."""
    spans = np.empty((len(labels), 2), np.int64)
    first = 0
    last = 0
    for i in range(len(labels)):
        if i == 0 or labels[i] != labels[i - 1] or images[i] != images[i - 1]:
            first = last
            while first < len(gt_labels) and (
                gt_labels[first] < labels[i] or (gt_labels[first] == labels[i] and gt_images[first] < images[i])
            ):
                first += 1
            last = first
            while last < len(gt_labels) and gt_labels[last] == labels[i] and gt_images[last] == images[i]:
                last += 1
        spans[i, 0] = first
        spans[i, 1] = last
    return spans


@kernel
def _box_iou(
    box: Float[np.ndarray, "4"], area: float, gt_box: Float[np.ndarray, "4"], gt_area: float, crowd: bool
) -> float:
    width = min(box[2], gt_box[2]) - max(box[0], gt_box[0])
    if width <= 0:
        return 0.0
    height = min(box[3], gt_box[3]) - max(box[1], gt_box[1])
    if height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (area if crowd else area + gt_area - intersection)


@kernel
def box_pairs(
    boxes: Float[np.ndarray, "d 4"],
    areas: Float[np.ndarray, "d"],
    gt_boxes: Float[np.ndarray, "g 4"],
    gt_areas: Float[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
    spans: Int[np.ndarray, "d 2"],
    min_similarity: float,
) -> tuple[Int[np.ndarray, "d_plus_1"], Int[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Return pairs of boxes (xyxy) with IoU >= ``min_similarity``: offsets by detection, ground truths, IoUs."""
    offsets = np.zeros(len(boxes) + 1, np.int64)
    for i in range(len(boxes)):
        count = 0
        for g in range(spans[i, 0], spans[i, 1]):
            count += _box_iou(boxes[i], areas[i], gt_boxes[g], gt_areas[g], crowd[g]) >= min_similarity
        offsets[i + 1] = offsets[i] + count
    ground_truths = np.empty(offsets[-1], np.int64)
    ious = np.empty(offsets[-1], np.float64)
    for i in range(len(boxes)):
        p = offsets[i]
        for g in range(spans[i, 0], spans[i, 1]):
            iou = _box_iou(boxes[i], areas[i], gt_boxes[g], gt_areas[g], crowd[g])
            if iou >= min_similarity:
                ground_truths[p] = g
                ious[p] = iou
                p += 1
    return offsets, ground_truths, ious
