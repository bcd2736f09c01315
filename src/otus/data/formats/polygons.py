"""Polygons of masks: trace them exactly, clip them, compute their area.

The rings run along pixel edges, so their corners are integers, and COCO's rasteriser reproduces the same pixels.
Shape shorthand: H x W the image, P points.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from otus._numba import kernel
from otus.structures import Masks, SegmentationKind, Segmentations

# Steps right, down, left and up on the screen to the next corner, with the object on the right-hand side.
_STEP_X, _STEP_Y = (1, 0, -1, 0), (0, 1, 0, -1)


@dataclass(frozen=True, eq=False)
class Polygon:
    """A connected part of a mask: outer ring (P, 2) of x, y in pixels, and the rings of its holes."""

    outer: Float[np.ndarray, "p 2"]
    holes: tuple[Float[np.ndarray, "p 2"], ...] = ()


def mask_to_polygons(mask: Bool[np.ndarray, "h w"]) -> list[Polygon]:
    """Trace the connected parts (8-connectivity) of a mask, from top to bottom.

    Outer rings run clockwise on the screen, holes counter-clockwise; only points where the direction changes are kept.

    >>> [part.outer.tolist() for part in mask_to_polygons(np.ones((2, 3), dtype=bool))]
    [[[0.0, 0.0], [3.0, 0.0], [3.0, 2.0], [0.0, 2.0]]]
    """
    from scipy.ndimage import label as label_components  # takes a quarter of a second to import

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    offset_xy = np.array([columns[0], rows[0]], dtype=np.float64)
    padded = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    corners_xy, ends = _trace_rings(padded)
    # The pixel below and to the right of a ring's first corner belongs to the part that the ring bounds.
    components = label_components(padded, structure=np.ones((3, 3), dtype=bool))[0]
    outer: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    for first, end in zip([0, *ends[:-1]], ends, strict=True):
        ring = corners_xy[first:end]
        component = int(components[ring[0, 1], ring[0, 0]])
        ring_xy = ring - 1 + offset_xy
        if _signed_area(ring_xy) > 0:
            outer[component] = ring_xy
        else:
            holes.setdefault(component, []).append(ring_xy)
    return [Polygon(ring, tuple(holes.get(component, ()))) for component, ring in outer.items()]


def clip_polygon(ring: Float[np.ndarray, "p 2"], size_wh: Float[np.ndarray, "2"]) -> Float[np.ndarray, "p 2"]:
    """Clip a ring to the image; (0, 2) if nothing remains (Sutherland and Hodgman, CACM 1974).

    >>> clip_polygon(np.array([[-2.0, 1], [2, 1], [2, 3]]), np.array([8.0, 8])).tolist()
    [[0.0, 2.0], [0.0, 1.0], [2.0, 1.0], [2.0, 3.0]]
    """
    for axis, side in ((0, 0), (1, 0), (0, 1), (1, 1)):
        limit = side * float(size_wh[axis])
        is_inside = ring[:, axis] <= limit if side else ring[:, axis] >= limit
        if is_inside.all():
            continue
        points = []
        for point, previous, inside, was_inside in zip(
            ring, np.roll(ring, 1, 0), is_inside, np.roll(is_inside, 1), strict=True
        ):
            if inside != was_inside:
                crossing = previous + (point - previous) * ((limit - previous[axis]) / (point[axis] - previous[axis]))
                crossing[axis] = limit
                points.append(crossing)
            if inside:
                points.append(point)
        ring = np.array(points).reshape(-1, 2)
    return ring


def object_polygons(segmentations: Segmentations, index: int, size_hw: tuple[int, int]) -> list[Polygon]:
    """Return the polygons of one object: as stored, or traced from its RLE."""
    if segmentations.kinds[index] == SegmentationKind.POLYGONS:
        return [Polygon(ring) for ring in segmentations.polygons(index)]
    counts = segmentations.rle(index)
    return [] if counts is None else mask_to_polygons(Masks.from_rle([counts], size_hw).dense()[0])


def _signed_area(ring: Float[np.ndarray, "p 2"]) -> float:
    following = np.roll(ring, -1, axis=0)
    return float((ring[:, 0] * following[:, 1] - ring[:, 1] * following[:, 0]).sum())


@kernel
def _trace_rings(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners (P, 2) of all rings of a zero-padded mask, and the end of each ring.

    Each ring starts at its first edge, in reading order, with the object below and background above. Where four edges
    meet, the trace turns left, towards the diagonal neighbour (8-connectivity).
    """
    height, width = mask.shape
    visited = np.zeros((height, width), dtype=np.bool_)
    corners = np.empty((64, 2), dtype=np.int64)
    ends = np.empty(8, dtype=np.int64)
    count, rings = 0, 0
    for row in range(1, height):
        for column in range(1, width):
            if visited[row, column] or not mask[row, column] or mask[row - 1, column]:
                continue
            x, y, direction, previous = column, row, 0, -1
            while True:
                if direction == 0:
                    if visited[y, x]:
                        break
                    visited[y, x] = True
                if direction != previous:
                    if count == len(corners):
                        corners = np.concatenate((corners, np.empty_like(corners)))
                    corners[count, 0], corners[count, 1] = x, y
                    count += 1
                previous = direction
                x, y = x + _STEP_X[direction], y + _STEP_Y[direction]
                # The pixels ahead, on the left and on the right.
                if direction == 0:
                    left, right = mask[y - 1, x], mask[y, x]
                elif direction == 1:
                    left, right = mask[y, x], mask[y, x - 1]
                elif direction == 2:
                    left, right = mask[y, x - 1], mask[y - 1, x - 1]
                else:
                    left, right = mask[y - 1, x - 1], mask[y - 1, x]
                if left:
                    direction = (direction + 3) % 4
                elif not right:
                    direction = (direction + 1) % 4
            if rings == len(ends):
                ends = np.concatenate((ends, np.empty_like(ends)))
            ends[rings] = count
            rings += 1
    return corners[:count], ends[:rings]


def polygon_area(ring: Float[np.ndarray, "p 2"]) -> float:
    """Return the area of a ring by the shoelace formula."""
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
