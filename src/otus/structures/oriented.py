"""Oriented boxes and cuboids.

Shape shorthand: N, M boxes. An oriented box is ``xywhr``: centre x, y, width, height in pixels and the angle in radians
by which the width's axis is rotated from the x axis towards the y axis (clockwise on a screen, where y points down).
A cuboid is (x, y, z, length, width, height, yaw): its centre, its sizes along its own axes, and the rotation of the
length's axis in the x-y plane; z is up.
"""

import numpy as np
from jaxtyping import Float

from otus.errors import ShapeError
from otus.structures.boxes import as_boxes


def corners(boxes_xywhr: Float[np.ndarray, "n 5"]) -> Float[np.ndarray, "n 4 2"]:
    """Return the four corners (N, 4, 2), clockwise on a screen, starting with the one that is top left at angle 0."""
    cx, cy, width, height, angle = np.asarray(boxes_xywhr, dtype=np.float64).reshape(-1, 5).T
    along = np.stack([np.cos(angle), np.sin(angle)], axis=1) * width[:, None] / 2
    across = np.stack([-np.sin(angle), np.cos(angle)], axis=1) * height[:, None] / 2
    centre = np.stack([cx, cy], axis=1)
    return np.stack(
        [centre - along - across, centre + along - across, centre + along + across, centre - along + across], 1
    )


def from_corners(points: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, "n 5"]:
    """Make oriented boxes from four corners in order, exact for rectangles.

    For other quadrilaterals (hand-drawn ones are never quite right-angled): the centre of the corners, the mean length
    of opposite sides, and the mean direction of the two sides that are the width. The first side is the width.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 3 or points.shape[1:] != (4, 2):
        raise ShapeError(f"corners: expected shape (N, 4, 2), got {points.shape}")
    sides = np.roll(points, -1, axis=1) - points
    lengths = np.linalg.norm(sides, axis=2)
    across = sides[:, 0] - sides[:, 2]
    angle = np.arctan2(across[:, 1], across[:, 0])
    # Corners in counter-clockwise order give the same box; only the sides along the height change direction.
    width, height = (lengths[:, 0] + lengths[:, 2]) / 2, (lengths[:, 1] + lengths[:, 3]) / 2
    return np.column_stack([points.mean(axis=1), width, height, angle])


def areas_of_corners(points: Float[np.ndarray, "n 4 2"]) -> Float[np.ndarray, "n"]:
    """Return areas of quadrilaterals: half the cross product of the diagonals."""
    return np.abs(_cross(points[:, 2] - points[:, 0], points[:, 3] - points[:, 1])) / 2


def enclosing_boxes(boxes_xywhr: Float[np.ndarray, "n 5"]) -> Float[np.ndarray, "n 4"]:
    """Return the enclosing axis-aligned ``xyxy`` boxes."""
    points = corners(boxes_xywhr)
    return as_boxes(np.concatenate([points.min(axis=1), points.max(axis=1)], axis=1))


def _cross(a: Float[np.ndarray, "... 2"], b: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "..."]:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _boundary_integral(
    inner: Float[np.ndarray, "p 4 2"], outer: Float[np.ndarray, "p 4 2"], *, shared_edges: bool, tolerance: np.ndarray
) -> Float[np.ndarray, "p"]:
    """Compute half the integral of x dy - y dx along the part of ``inner``'s boundary that lies in ``outer``.

    Each edge is clipped by outer's four half-planes (Cyrus-Beck). An edge that lies on one of outer's edges counts if
    ``shared_edges`` and both have the same direction, so that a common segment counts once and mere contact not at all.
    """
    start, direction = inner, np.roll(inner, -1, axis=1) - inner
    base, side = outer, np.roll(outer, -1, axis=1) - outer
    length = np.linalg.norm(side, axis=2)
    normal_offset = _cross(side[:, None], start[:, :, None] - base[:, None])  # (p, edge, half-plane), positive inside
    slope = _cross(side[:, None], direction[:, :, None])
    same_direction = (side[:, None] * direction[:, :, None]).sum(axis=3) > 0
    slack = (tolerance[:, None] * length)[:, None, :]
    normal_offset = normal_offset + np.where(shared_edges & same_direction, slack, -slack)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = -normal_offset / slope
    enters = np.where(slope > 0, crossing, 0.0).max(axis=2, initial=0.0)
    leaves = np.where(slope < 0, crossing, 1.0).min(axis=2, initial=1.0)
    outside = ((slope == 0) & (normal_offset < 0)).any(axis=2)
    span = np.where(outside, 0.0, np.maximum(leaves - enters, 0.0))
    return 0.5 * (_cross(start, direction) * span).sum(axis=1)


def _rectangle_intersection(a: Float[np.ndarray, "p 5"], b: Float[np.ndarray, "p 5"]) -> Float[np.ndarray, "p"]:
    """Compute intersection areas of oriented boxes, pair by pair, by Green's theorem.

    The boundary of the intersection is the part of a's boundary in b and the part of b's in a. Relative error: 1e-11.
    """
    origin = a[:, None, :2]
    points_a, points_b = corners(a) - origin, corners(b) - origin
    tolerance = 1e-11 * np.maximum(a[:, 2:4].max(axis=1), b[:, 2:4].max(axis=1))
    total = _boundary_integral(points_a, points_b, shared_edges=True, tolerance=tolerance)
    total += _boundary_integral(points_b, points_a, shared_edges=False, tolerance=tolerance)
    return np.clip(total, 0.0, np.minimum(a[:, 2] * a[:, 3], b[:, 2] * b[:, 3]))


def oriented_intersections(
    a_xywhr: Float[np.ndarray, "p 5"], b_xywhr: Float[np.ndarray, "p 5"]
) -> Float[np.ndarray, "p"]:
    """Return intersection areas of oriented boxes, pair by pair; 0 for a box without area."""
    a, b = np.asarray(a_xywhr, dtype=np.float64), np.asarray(b_xywhr, dtype=np.float64)
    result = np.zeros(len(a))
    enclosing_a, enclosing_b = enclosing_boxes(a), enclosing_boxes(b)
    have_area = np.minimum(a[:, 2:4], b[:, 2:4]).min(axis=1, initial=np.inf) > 0
    overlap = (np.less(enclosing_a[:, :2], enclosing_b[:, 2:]) & np.less(enclosing_b[:, :2], enclosing_a[:, 2:])).all(
        axis=1
    )
    pairs = np.flatnonzero(have_area & overlap)
    step = 100_000  # bounds the memory of the intermediate (pairs, 4, 4, 2) arrays
    for first in range(0, len(pairs), step):
        batch = pairs[first : first + step]
        result[batch] = _rectangle_intersection(a[batch], b[batch])
    return result


def cuboid_intersections(a: Float[np.ndarray, "p 7"], b: Float[np.ndarray, "p 7"]) -> Float[np.ndarray, "p"]:
    """Return intersection volumes of cuboids, pair by pair: intersection of the footprints times overlap in height."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    top = np.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    bottom = np.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    return oriented_intersections(footprints(a), footprints(b)) * np.maximum(top - bottom, 0)


def footprints(cuboids: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 5"]:
    """Return the bird's-eye footprints of cuboids as oriented boxes."""
    return np.asarray(cuboids, dtype=np.float64)[:, [0, 1, 3, 4, 6]]


def _overlapping_enclosing_boxes(a_xywhr: np.ndarray, b_xywhr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = enclosing_boxes(a_xywhr), enclosing_boxes(b_xywhr)
    apart = (a[:, None, :2] >= b[None, :, 2:]).any(axis=2) | (b[None, :, :2] >= a[:, None, 2:]).any(axis=2)
    rows, columns = np.nonzero(~apart)
    return rows, columns


def _over_union(intersection: np.ndarray, sizes_a: np.ndarray, sizes_b: np.ndarray) -> Float[np.ndarray, "n m"]:
    union = sizes_a[:, None] + sizes_b[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def pairwise_oriented_iou(
    a_xywhr: Float[np.ndarray, "n 5"], b_xywhr: Float[np.ndarray, "m 5"]
) -> Float[np.ndarray, "n m"]:
    """Return the exact IoU of every oriented box of ``a`` with every one of ``b``, in [0, 1].

    >>> square, diamond = [[0, 0, 2, 2, 0.0]], [[0, 0, 2, 2, np.pi / 4]]
    >>> pairwise_oriented_iou(np.array(square), np.array(diamond)).round(4).tolist()
    [[0.7071]]
    """
    a = np.asarray(a_xywhr, dtype=np.float64).reshape(-1, 5)
    b = np.asarray(b_xywhr, dtype=np.float64).reshape(-1, 5)
    intersection = np.zeros((len(a), len(b)))
    rows, columns = _overlapping_enclosing_boxes(a, b)
    intersection[rows, columns] = oriented_intersections(a[rows], b[columns])
    return _over_union(intersection, np.prod(a[:, 2:4], axis=1), np.prod(b[:, 2:4], axis=1))


def pairwise_cuboid_iou(a: Float[np.ndarray, "n 7"], b: Float[np.ndarray, "m 7"]) -> Float[np.ndarray, "n m"]:
    """Return the exact volume IoU of every cuboid of ``a`` with every one of ``b``, in [0, 1]."""
    a = np.asarray(a, dtype=np.float64).reshape(-1, 7)
    b = np.asarray(b, dtype=np.float64).reshape(-1, 7)
    overlap = np.zeros((len(a), len(b)))
    rows, columns = _overlapping_enclosing_boxes(footprints(a), footprints(b))
    overlap[rows, columns] = cuboid_intersections(a[rows], b[columns])
    return _over_union(overlap, np.prod(a[:, 3:6], axis=1), np.prod(b[:, 3:6], axis=1))
