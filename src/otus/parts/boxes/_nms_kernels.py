"""Compiled kernels: greedy NMS of upright and of oriented boxes (see :mod:`otus.parts.boxes.nms`)."""

import math

import numpy as np
from jaxtyping import Float, Int

from otus._numba import kernel

_NUM_LISTS = 256  # a power of two


@kernel
def _enclosed(inner: Float[np.ndarray, "4 2"], outer: Float[np.ndarray, "4 2"], slack: float, shared: bool) -> float:
    """Return half the integral of x dy - y dx along the part of the inner polygon's boundary inside the outer one.

    This is the computation of ``otus.structures.oriented`` for a single pair; it is explained there.
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
    """Return the area of the intersection of two rectangles, given by their corners clockwise."""
    near_a, near_b = a - a[0], b - a[0]  # relative to one corner, as rounding errors grow with coordinates
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
    """Keep up to ``limit`` boxes, in ``order``, whose IoU with each kept box of their group is at most the threshold.

    ``corners`` are those of oriented boxes, whose enclosing boxes are ``boxes``. For upright boxes pass None: the
    arithmetic is then that of torchvision's ``nms``, in the dtype of ``boxes``, and the oriented branch is not compiled,
    which saves two thirds of the compilation time.
    """
    # Kept boxes are stored in linked lists by group (modulo _NUM_LISTS), the most recent first.
    kept = np.empty(min(limit, len(order)), np.int64)
    previous = np.empty(len(kept), np.int64)
    last = np.full(_NUM_LISTS, -1)
    count = 0
    for i in order:
        if count == len(kept):
            break
        group_list = groups[i] & (_NUM_LISTS - 1)
        link = last[group_list]
        while link != -1:
            k = kept[link]
            if groups[k] == groups[i]:
                width = min(boxes[k, 2], boxes[i, 2]) - max(boxes[k, 0], boxes[i, 0])
                height = min(boxes[k, 3], boxes[i, 3]) - max(boxes[k, 1], boxes[i, 1])
                if width > 0 and height > 0 and areas[k] > 0 and areas[i] > 0:
                    if corners is not None:
                        oriented = min(_shared_area(corners[k], corners[i]), areas[k], areas[i])
                        iou = oriented / (areas[k] + areas[i] - oriented)
                    else:
                        upright = width * height
                        iou = upright / (areas[k] + areas[i] - upright)
                    if iou > threshold:
                        break
            link = previous[link]
        if link == -1:
            kept[count], previous[count], last[group_list] = i, last[group_list], count
            count += 1
    return kept[:count]
