"""Prediction on overlapping tiles of large images, so that small objects keep their training size.

Paper: "Slicing Aided Hyper Inference" (Akyon et al., ICIP 2022, arXiv:2202.06934): predict on each tile and on the full
image, then merge. Departures: two detections that are not cut by a tile border are compared by IoU, since a box inside
another may be a separate object; a detection of the whole object is kept rather than a higher-scoring part of it, and boxes
are never united.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.errors import UsageError
from otus.structures import Instances
from otus.structures.boxes import area

Window = tuple[slice, slice]
"""Rows and columns of an image."""
_BORDER_TOLERANCE = 0.02  # fraction of the window's side, as boxes of cut objects may end short of the border


@dataclass(frozen=True)
class Tiles:
    """Settings for tiling an image and merging the detections of its windows (:func:`merged`).

    Score thresholds, categories, NMS and the limit on detections apply to each window separately.

    Parameters
    ----------
    size
        Side of the square tiles, in pixels.
    overlap
        Fraction of a tile that overlaps its neighbour, in [0, 1).
    merge_threshold
        Minimum overlap of two detections of different windows that are merged, in (0, 1].
    whole_image
        Predict on the full image too, for objects larger than a tile.
    """

    size: int
    overlap: float = 0.2
    merge_threshold: float = 0.5
    whole_image: bool = True

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap < 1:
            raise UsageError(f"tiles: expected a size >= 1 and 0 <= overlap < 1, got {self.size} and {self.overlap}")
        if not 0 < self.merge_threshold <= 1:
            raise UsageError(f"tiles: expected 0 < merge_threshold <= 1, got {self.merge_threshold}")

    def windows(self, size_hw: tuple[int, int]) -> Iterator[Window]:
        """Yield the rows and columns of each tile, then those of the full image if ``whole_image`` is set.

        The tiles cover the image, and the last ones end at its border. An image that fits into a tile is a single
        window.
        """
        height, width = size_hw
        for top in _starts(height, self.size, self.overlap):
            for left in _starts(width, self.size, self.overlap):
                yield slice(top, min(top + self.size, height)), slice(left, min(left + self.size, width))
        if self.whole_image and max(size_hw) > self.size:
            yield slice(0, height), slice(0, width)


def _starts(length: int, size: int, overlap: float) -> list[int]:
    step = max(1, round(size * (1 - overlap)))
    return [*range(0, max(length - size, 0), step), max(length - size, 0)]


def moved(instances: Instances, *, top: int, left: int, size_hw: tuple[int, int]) -> Instances:
    """Return the detections of a tile in coordinates of the full image, whose size is ``size_hw``."""
    offset = np.array([left, top, left, top], dtype=instances.boxes_xyxy.dtype)
    keypoints = instances.keypoints
    if keypoints is not None:
        keypoints = keypoints + np.array([left, top, 0], dtype=keypoints.dtype)
    oriented = instances.oriented_boxes_xywhr
    if oriented is not None:
        oriented = oriented + np.array([left, top, 0, 0, 0], dtype=oriented.dtype)
    return replace(
        instances,
        boxes_xyxy=instances.boxes_xyxy + offset,
        size_hw=size_hw,
        masks=None if instances.masks is None else instances.masks.moved(top=top, left=left, size_hw=size_hw),
        keypoints=keypoints,
        oriented_boxes_xywhr=oriented,
    )


def merged(detections: Sequence[Instances], windows: Sequence[Window], *, threshold: float) -> Instances:
    """Merge the detections of several windows of one image, highest score first.

    A detection is cut if its box touches a border of its window that is not a border of the image. Detections are
    visited by descending score, cut ones after all others; each removes later ones of the same category and of other
    windows that are

    - not cut, and have an IoU of at least ``threshold`` with it: duplicates;
    - cut, and their intersection with it is at least ``threshold`` of their area (if both are cut, of the smaller one):
      parts of the same object.

    Parameters
    ----------
    detections
        Detections of each window, in coordinates of the image (see :func:`moved`).
    windows
        Rows and columns of each window.
    threshold
        Minimum overlap, in (0, 1].
    """
    instances = Instances.concatenate(list(detections))
    scores = instances.scores if instances.scores is not None else np.ones(len(instances))
    window_index = np.repeat(np.arange(len(detections)), [len(per_window) for per_window in detections])
    is_cut = np.concatenate(
        [_is_cut(per_window, *window) for per_window, window in zip(detections, windows, strict=True)]
    )
    keep = _keep(instances.boxes_xyxy, instances.labels, scores, window_index, is_cut, threshold=threshold)
    return instances[keep[np.argsort(-scores[keep], kind="stable")]]


def _is_cut(instances: Instances, rows: slice, columns: slice) -> Bool[np.ndarray, "n"]:
    """Return which boxes touch a border of their window that is not a border of the image."""
    height, width = instances.size_hw
    x1, y1, x2, y2 = instances.boxes_xyxy.T
    near_x, near_y = _BORDER_TOLERANCE * (columns.stop - columns.start), _BORDER_TOLERANCE * (rows.stop - rows.start)
    return (
        ((columns.start > 0) & (x1 <= columns.start + near_x))
        | ((columns.stop < width) & (x2 >= columns.stop - near_x))
        | ((rows.start > 0) & (y1 <= rows.start + near_y))
        | ((rows.stop < height) & (y2 >= rows.stop - near_y))
    )


def _keep(
    boxes_xyxy: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"],
    window_index: Int[np.ndarray, "n"],
    is_cut: Bool[np.ndarray, "n"],
    *,
    threshold: float,
) -> Int[np.ndarray, "k"]:
    """Return the indices of the detections that are kept by :func:`merged`."""
    order, areas, keep = np.lexsort((-scores, is_cut)), area(boxes_xyxy), []
    while len(order):
        first, order = order[0], order[1:]
        keep.append(first)
        top_left = np.maximum(boxes_xyxy[first, :2], boxes_xyxy[order, :2])
        bottom_right = np.minimum(boxes_xyxy[first, 2:], boxes_xyxy[order, 2:])
        intersection = np.prod(np.maximum(bottom_right - top_left, 0), axis=1)
        part_area = np.minimum(areas[first], areas[order]) if is_cut[first] else areas[order]
        denominator = np.where(is_cut[order], part_area, areas[first] + areas[order] - intersection)
        comparable = (labels[order] == labels[first]) & (window_index[order] != window_index[first])
        order = order[~(comparable & (intersection > 0) & (intersection >= threshold * denominator))]
    return np.array(keep, dtype=np.int64)
