"""Compiled kernels of :mod:`otus.metrics.detection.mask_pairs`: convert masks to pixel intervals and intersect them.

A mask is a list of sorted, disjoint intervals [start, end) of pixel indices, column-major as in COCO's run lengths.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus._numba import kernel

# Error codes of `segmentation_intervals`.
VALID, INVALID_RUN_LENGTHS, WRONG_SIZE = 0, 1, 2


@kernel
def _decode(text: UInt8[np.ndarray, "b"], pixels: int) -> tuple[Int[np.ndarray, "i 2"], int]:
    """Decode compressed run lengths to intervals as maskApi.c's rleFrString: 5 bits per character."""
    intervals = np.empty(((len(text) + 1) // 2, 2), np.int64)
    count, position, runs, byte_index = 0, 0, 0, 0
    last = 0  # the last two runs: from the fourth on, a run is stored as the difference to the second last
    second_last = 0
    while byte_index < len(text):
        run, shift, continues = 0, 0, True
        while continues:
            if byte_index >= len(text) or text[byte_index] < 48 or text[byte_index] > 111 or shift > 60:
                return intervals[:0], INVALID_RUN_LENGTHS
            character = int(text[byte_index]) - 48
            run |= (character & 0x1F) << shift
            continues = (character & 0x20) != 0
            byte_index += 1
            shift += 5
            if not continues and character & 0x10:
                run |= -1 << shift
        if runs > 2:
            run += second_last
        if run < 0 or position + run > pixels:
            return intervals[:0], WRONG_SIZE
        if runs % 2 == 1 and run > 0:
            if count > 0 and intervals[count - 1, 1] == position:
                intervals[count - 1, 1] = position + run
            else:
                intervals[count, 0] = position
                intervals[count, 1] = position + run
                count += 1
        position += run
        second_last, last = last, run
        runs += 1
    if position != pixels:
        return intervals[:0], WRONG_SIZE
    return intervals[:count], VALID


@kernel
def _crossings(ring: Float[np.ndarray, "p 2"], height: int, width: int) -> Int[np.ndarray, "c"]:
    """Return where a closed polygon crosses the centres of pixel columns, as pixel indices: maskApi.c's rleFrPoly.

    The polygon is traced on a grid five times as fine; every step across the centre of a pixel column is a crossing.
    """
    scale = 5.0
    points = len(ring)
    x = np.empty(points + 1, np.int64)
    y = np.empty(points + 1, np.int64)
    steps = 0
    for j in range(points):
        x[j] = np.int64(scale * ring[j, 0] + 0.5)
        y[j] = np.int64(scale * ring[j, 1] + 0.5)
    x[points], y[points] = x[0], y[0]
    for j in range(points):
        steps += abs(x[j + 1] - x[j]) // 5 + 2
    crossings = np.empty(steps, np.int64)
    count = 0
    started = False
    u, v, previous_u, previous_v = 0, 0, 0, 0
    for j in range(points):
        xs, xe, ys, ye = x[j], x[j + 1], y[j], y[j + 1]
        dx, dy = abs(xe - xs), abs(ye - ys)
        flip = (dx >= dy and xs > xe) or (dx < dy and ys > ye)
        if flip:
            xs, xe, ys, ye = xe, xs, ye, ys
        longest = max(dx, dy)
        slope = 0.0
        if longest > 0:
            slope = (ye - ys) / dx if dx >= dy else (xe - xs) / dy
        for d in range(longest + 1):
            t = longest - d if flip else d
            if dx >= dy:
                u, v = t + xs, int(ys + slope * t + 0.5)
            else:
                u, v = int(xs + slope * t + 0.5), t + ys
            if started and u != previous_u:
                column = ((u if u < previous_u else u - 1) + 0.5) / scale - 0.5
                if np.floor(column) == column and 0 <= column <= width - 1:
                    row = (min(v, previous_v) + 0.5) / scale - 0.5
                    row = np.ceil(min(max(row, 0.0), float(height)))
                    if count == len(crossings):
                        crossings = np.concatenate((crossings, np.empty(len(crossings), np.int64)))
                    crossings[count] = int(column) * height + int(row)
                    count += 1
            started = True
            previous_u, previous_v = u, v
    return np.sort(crossings[:count])


@kernel
def _rasterise(
    rings: Int[np.ndarray, "r_plus_1"], points: Float[np.ndarray, "p 2"], height: int, width: int
) -> Int[np.ndarray, "i 2"]:
    """Return the union of polygons as intervals; the inside of a polygon is between crossings 1 and 2, 3 and 4 …"""
    pixels = height * width
    intervals = np.empty((0, 2), np.int64)
    for r in range(len(rings) - 1):
        crossings = _crossings(points[rings[r] : rings[r + 1]], height, width)
        object_intervals = np.empty(((len(crossings) + 1) // 2, 2), np.int64)
        for i in range(len(object_intervals)):
            object_intervals[i, 0] = crossings[2 * i]
            object_intervals[i, 1] = crossings[2 * i + 1] if 2 * i + 1 < len(crossings) else pixels
        intervals = np.concatenate((intervals, object_intervals))
    if len(rings) > 2:
        intervals = intervals[np.argsort(intervals[:, 0])]
    count = 0
    for i in range(len(intervals)):
        start, end = intervals[i, 0], intervals[i, 1]
        if end <= start:
            continue
        if count > 0 and start <= intervals[count - 1, 1]:
            intervals[count - 1, 1] = max(intervals[count - 1, 1], end)
        else:
            intervals[count, 0] = start
            intervals[count, 1] = end
            count += 1
    return intervals[:count]


@kernel
def segmentation_intervals(
    rows: Int[np.ndarray, "c"],
    is_rle: Bool[np.ndarray, "n"],
    rings: Int[np.ndarray, "n_plus_1"],
    points: Int[np.ndarray, "r_plus_1"],
    points_xy: Float[np.ndarray, "p 2"],
    counts: Int[np.ndarray, "n_plus_1"],
    counts_bytes: UInt8[np.ndarray, "b"],
    sizes_hw: Int[np.ndarray, "c 2"],
) -> tuple[
    Int[np.ndarray, "c_plus_1"],
    Int[np.ndarray, "i 2"],
    Float[np.ndarray, "c 4"],
    Float[np.ndarray, "c"],
    tuple[int, int],
]:
    """Return offsets (n + 1,), intervals (I, 2), tight boxes (n, 4), areas (n,) and an error for some segmentations.

    ``sizes_hw`` (n, 2) are the sizes of their images. The error is (index into ``rows``, code), with code VALID for
    none.
    """
    offsets = np.zeros(len(rows) + 1, np.int64)
    intervals = np.empty((64 * len(rows) + 64, 2), np.int64)
    boxes = np.zeros((len(rows), 4))
    areas = np.zeros(len(rows))
    for i in range(len(rows)):
        object_index = rows[i]
        height, width = sizes_hw[i, 0], sizes_hw[i, 1]
        if is_rle[object_index]:
            object_intervals, code = _decode(
                counts_bytes[counts[object_index] : counts[object_index + 1]], height * width
            )
            if code != VALID:
                return offsets, intervals, boxes, areas, (i, code)
        else:
            object_intervals = _rasterise(
                points[rings[object_index] : rings[object_index + 1] + 1], points_xy, height, width
            )
        first, last = offsets[i], offsets[i] + len(object_intervals)
        offsets[i + 1] = last
        if last > len(intervals):
            larger = np.empty((2 * last, 2), np.int64)
            larger[:first] = intervals[:first]
            intervals = larger
        top, bottom = height, 0
        for j in range(len(object_intervals)):
            start, end = object_intervals[j, 0], object_intervals[j, 1]
            intervals[first + j, 0] = start
            intervals[first + j, 1] = end
            areas[i] += end - start
            if start // height == (end - 1) // height:
                top, bottom = min(top, start % height), max(bottom, (end - 1) % height + 1)
            else:
                top, bottom = 0, height
        if len(object_intervals) > 0:
            boxes[i, 0], boxes[i, 2] = object_intervals[0, 0] // height, (object_intervals[-1, 1] - 1) // height + 1
            boxes[i, 1], boxes[i, 3] = top, bottom
    return offsets, intervals[: offsets[-1]].copy(), boxes, areas, (0, VALID)


@kernel
def interval_ious(
    pair_offsets: Int[np.ndarray, "d_plus_1"],
    pair_gt: Int[np.ndarray, "p"],
    offsets: Int[np.ndarray, "d_plus_1"],
    intervals: Int[np.ndarray, "i 2"],
    areas: Float[np.ndarray, "d"],
    gt_offsets: Int[np.ndarray, "g_plus_1"],
    gt_intervals: Int[np.ndarray, "j 2"],
    gt_areas: Float[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
) -> Float[np.ndarray, "p"]:
    """Return the IoU of each pair of masks; with a crowd, intersection / area of the detection."""
    ious = np.zeros(len(pair_gt))
    for d in range(len(pair_offsets) - 1):
        for p in range(pair_offsets[d], pair_offsets[d + 1]):
            g = pair_gt[p]
            i, j, intersection = offsets[d], gt_offsets[g], 0
            while i < offsets[d + 1] and j < gt_offsets[g + 1]:
                end, gt_end = intervals[i, 1], gt_intervals[j, 1]
                overlap = min(end, gt_end) - max(intervals[i, 0], gt_intervals[j, 0])
                if overlap > 0:
                    intersection += overlap
                if end <= gt_end:
                    i += 1
                if gt_end <= end:
                    j += 1
            if intersection > 0:
                ious[p] = intersection / (areas[d] if crowd[g] else areas[d] + gt_areas[g] - intersection)
    return ious
