"""Compiled upscaling of a mask's logits: thresholded and run-length encoded column by column, without storing its pixels.

Shape shorthand: m x m logits, h x w the mask, H x W the full image, in which the mask lies at ``top``, ``left``; r runs.
"""

import numpy as np
from jaxtyping import Float32, Int32, Int64

from otus._numba import kernel


@kernel
def encode_upscaled(
    logits: Float32[np.ndarray, "m m"],
    rows: Int32[np.ndarray, "h 4"],
    row_weights: Float32[np.ndarray, "h 4"],
    columns: Int32[np.ndarray, "w 4"],
    column_weights: Float32[np.ndarray, "w 4"],
    frame: Int64[np.ndarray, "4"],
    thresholds: Float32[np.ndarray, "3"],
) -> tuple[Int64[np.ndarray, "r"], Int64[np.ndarray, "7"]]:
    """Return the run lengths of a mask, and its area, its areas at the lower and upper threshold, and x1, y1, x2, y2.

    ``rows`` and ``columns`` are the indices of the four logits that a pixel is interpolated from, ``frame`` is top, left, H
    and W, ``thresholds`` are the mask's, the lower and the upper one. The box is relative to the mask, not to the image.
    """
    top, left, image_height, image_width = frame
    height, width, size = len(rows), len(columns), logits.shape[1]
    by_row = np.empty((size, height), np.float32)  # transposed, so that columns are contiguous
    for y in range(height):
        first, second, third, fourth = rows[y]
        a, b, c, d = row_weights[y]
        for x in range(size):
            by_row[x, y] = a * logits[first, x] + b * logits[second, x] + c * logits[third, x] + d * logits[fourth, x]
    runs, count = np.empty(256, np.int64), 0
    measures = np.zeros(7, np.int64)
    x1, y1, x2, y2 = width, height, 0, 0
    column = np.empty(height, np.float32)
    inside, length = False, np.int64(left * image_height)
    area, above_lower, above_upper = 0, 0, 0
    for x in range(width):
        first, second, third, fourth = columns[x]
        a, b, c, d = column_weights[x]
        in_column = 0
        for y in range(height):
            column[y] = a * by_row[first, y] + b * by_row[second, y] + c * by_row[third, y] + d * by_row[fourth, y]
        for y in range(height):
            in_column += column[y] > thresholds[0]
            above_lower += column[y] > thresholds[1]
            above_upper += column[y] > thresholds[2]
        area += in_column
        if in_column == 0 and not inside:
            length += image_height
            continue
        if count + height + 4 > len(runs):
            grown = np.empty(2 * (len(runs) + height + 4), np.int64)
            grown[:count] = runs[:count]
            runs = grown
        if inside and top > 0:
            runs[count] = length
            count += 1
            inside, length = False, np.int64(0)
        length += top
        for y in range(height):
            if (column[y] > thresholds[0]) != inside:
                runs[count] = length
                count += 1
                inside, length = not inside, np.int64(0)
                if inside:
                    y1 = min(y1, y)
                else:
                    y2 = max(y2, y)
            length += 1
        if in_column > 0:
            x1, x2 = min(x1, x), x + 1
            if column[0] > thresholds[0]:
                y1 = 0
            if inside:
                y2 = height
        below = image_height - top - height
        if inside and below > 0:
            runs[count] = length
            count += 1
            inside, length = False, np.int64(0)
        length += below
    rest = (image_width - left - width) * image_height
    if count + 2 > len(runs):
        grown = np.empty(count + 2, np.int64)
        grown[:count] = runs[:count]
        runs = grown
    if inside and rest > 0:
        runs[count] = length
        count += 1
        inside, length = False, np.int64(0)
    runs[count] = length + rest
    count += 1
    if area > 0:
        measures[3], measures[4], measures[5], measures[6] = x1, y1, x2, y2
    measures[0], measures[1], measures[2] = area, above_lower, above_upper
    return runs[:count], measures
