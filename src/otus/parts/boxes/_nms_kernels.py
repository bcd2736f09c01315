"""Compiled: greedy suppression of upright and of oriented boxes (see :mod:`otus.parts.boxes.nms`)."""

import math

import numpy as np
from jaxtyping import Float, Int

from otus._numba import kernel

_CHAINS = 256  # a power of two


@kernel
def _enclosed(inner: Float[np.ndarray, "4 2"], outer: Float[np.ndarray, "4 2"], slack: float, shared: bool) -> float:
    """Half the integral of x dy - y dx along the part of inner's outline that is in outer.

    One pair of what ``otus.structures.oriented`` does with arrays of them, where it is explained.
    """
    total = 0.0
    for edge in range(4):
        x, y = inner[edge]
        dx, dy = inner[(edge + 1) % 4] - inner[edge]
        enters, leaves = 0.0, 1.0
        for side in range(4):
            left, top = outer[side]
            ux, uy = outer[(side + 1) % 4] - outer[side]
            within = ux * (y - top) - uy * (x - left)
            within += math.hypot(ux, uy) * (slack if shared and ux * dx + uy * dy > 0 else -slack)
            slope = ux * dy - uy * dx
            if slope > 0:
                enters = max(enters, -within / slope)
            elif slope < 0:
                leaves = min(leaves, -within / slope)
            elif within < 0:
                leaves = -1.0
        if leaves > enters:
            total += (x * dy - y * dx) * (leaves - enters)
    return total / 2


@kernel
def _shared_area(a: Float[np.ndarray, "4 2"], b: Float[np.ndarray, "4 2"]) -> float:
    """Of two rectangles, by their corners clockwise."""
    near_a, near_b = a - a[0], b - a[0]  # where numbers are small, and rounding with them
    longest = 0.0
    for corners in (near_a, near_b):
        for i in range(2):
            dx, dy = corners[i + 1] - corners[i]
            longest = max(longest, math.hypot(dx, dy))
    slack = 1e-11 * longest
    return _enclosed(near_a, near_b, slack, True) + _enclosed(near_b, near_a, slack, False)


@kernel
def keep_greedily(
    order: Int[np.ndarray, "n"],
    groups: Int[np.ndarray, "n"],
    boxes: Float[np.ndarray, "n 4"],
    areas: Float[np.ndarray, "n"],
    corners: Float[np.ndarray, "n 4 2"] | None,
    threshold: float,
    limit: int,
) -> Int[np.ndarray, "k"]:
    """The first ``limit`` boxes in ``order`` that have no more IoU than the threshold with a kept one of their group.

    ``corners`` are those of oriented boxes, ``boxes`` then what encloses them; None of upright boxes, whose arithmetic
    is ``boxes``' own, step by step that of torchvision's ``nms``. With None the oriented branch is not compiled, which
    takes a third of the time.
    """
    # Kept boxes hang in chains, those of a group in one, the last one first.
    kept = np.empty(min(limit, len(order)), np.int64)
    previous = np.empty(len(kept), np.int64)
    last = np.full(_CHAINS, -1)
    count = 0
    for i in order:
        if count == len(kept):
            break
        chain = groups[i] & (_CHAINS - 1)
        link = last[chain]
        while link != -1:
            k = kept[link]
            if groups[k] == groups[i]:
                width = min(boxes[k, 2], boxes[i, 2]) - max(boxes[k, 0], boxes[i, 0])
                height = min(boxes[k, 3], boxes[i, 3]) - max(boxes[k, 1], boxes[i, 1])
                if width > 0 and height > 0 and areas[k] > 0 and areas[i] > 0:
                    if corners is not None:
                        turned = min(_shared_area(corners[k], corners[i]), areas[k], areas[i])
                        iou = turned / (areas[k] + areas[i] - turned)
                    else:
                        upright = width * height
                        iou = upright / (areas[k] + areas[i] - upright)
                    if iou > threshold:
                        break
            link = previous[link]
        if link == -1:
            kept[count], previous[count], last[chain] = i, last[chain], count
            count += 1
    return kept[:count]
