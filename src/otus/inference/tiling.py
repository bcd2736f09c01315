"""Prediction on overlapping tiles of large images, so that small objects keep their training size.

Slicing Aided Hyper Inference (Akyon et al., ICIP 2022, arXiv:2202.06934): predict on each tile and on the whole image,
then merge. Differences from the paper: two detections that are not cut by a tile border are compared by IoU, since a
box inside another may be a separate object; a detection of the whole object is kept rather than a higher-scoring part
of it, and boxes are never united.
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
_NEAR_BORDER = 0.02  # tolerance as a fraction of the window's side, as boxes of cut objects may end short of the border


@dataclass(frozen=True)
class Tiles:
    """Settings for tiling an image and merging the detections of its windows (:func:`merged`).

    Score thresholds, categories, NMS and the limit on detections apply to each window separately.

    Parameters
    ----------
    size
        Side of the square tiles, pixels.
    overlap
        Fraction of a tile that overlaps its neighbour, in [0, 1).
    merge_threshold
        Minimum overlap of two detections of different windows that are merged, in (0, 1].
    whole_image
        Predict on the whole image too, for objects larger than a tile.
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
        """Yield the rows and columns of each tile, then those of the whole image if ``whole_image`` is set.

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


def moved(found: Instances, *, top: int, left: int, size_hw: tuple[int, int]) -> Instances:
    """Return the detections of a tile in coordinates of the whole image, whose size is ``size_hw``."""
    shift = np.array([left, top, left, top], dtype=found.boxes_xyxy.dtype)
    keypoints = found.keypoints
    if keypoints is not None:
        keypoints = keypoints + np.array([left, top, 0], dtype=keypoints.dtype)
    oriented = found.oriented_boxes_xywhr
    if oriented is not None:
        oriented = oriented + np.array([left, top, 0, 0, 0], dtype=oriented.dtype)
    return replace(
        found,
        boxes_xyxy=found.boxes_xyxy + shift,
        size_hw=size_hw,
        masks=None if found.masks is None else found.masks.moved(top=top, left=left, size_hw=size_hw),
        keypoints=keypoints,
        oriented_boxes_xywhr=oriented,
    )


def merged(found: Sequence[Instances], windows: Sequence[Window], *, threshold: float) -> Instances:
    """Merge the detections of several windows of one image, highest score first.

    A detection is cut if its box touches a border of its window that is not a border of the image. Detections are
    visited by descending score, cut ones after all others; each removes later ones of the same category and of other
    windows that are

    - not cut, and have an IoU of at least ``threshold`` with it: duplicates;
    - cut, and their intersection with it is at least ``threshold`` of their area (if both are cut, of the smaller one):
      parts of the same object.

    Parameters
    ----------
    found
        Detections of each window, in coordinates of the image (see :func:`moved`).
    windows
        Rows and columns of each window.
    threshold
        Minimum overlap, in (0, 1].
    """
    everything = Instances.concatenate(list(found))
    scores = everything.scores if everything.scores is not None else np.ones(len(everything))
    window = np.repeat(np.arange(len(found)), [len(one) for one in found])
    cut = np.concatenate([_cut(one, rows, columns) for one, (rows, columns) in zip(found, windows, strict=True)])
    kept = _kept(everything.boxes_xyxy, everything.labels, scores, window, cut, threshold=threshold)
    return everything[kept[np.argsort(-scores[kept], kind="stable")]]


def _cut(found: Instances, rows: slice, columns: slice) -> Bool[np.ndarray, "n"]:
    """Return which boxes touch a border of their window that is not a border of the image."""
    height, width = found.size_hw
    x1, y1, x2, y2 = found.boxes_xyxy.T
    near_x, near_y = _NEAR_BORDER * (columns.stop - columns.start), _NEAR_BORDER * (rows.stop - rows.start)
    return (
        ((columns.start > 0) & (x1 <= columns.start + near_x))
        | ((columns.stop < width) & (x2 >= columns.stop - near_x))
        | ((rows.start > 0) & (y1 <= rows.start + near_y))
        | ((rows.stop < height) & (y2 >= rows.stop - near_y))
    )


def _kept(
    boxes_xyxy: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"],
    window: Int[np.ndarray, "n"],
    cut: Bool[np.ndarray, "n"],
    *,
    threshold: float,
) -> Int[np.ndarray, "k"]:
    order, areas, kept = np.lexsort((-scores, cut)), area(boxes_xyxy), []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        top_left = np.maximum(boxes_xyxy[first, :2], boxes_xyxy[order, :2])
        bottom_right = np.minimum(boxes_xyxy[first, 2:], boxes_xyxy[order, 2:])
        shared = np.prod(np.maximum(bottom_right - top_left, 0), axis=1)
        piece = np.minimum(areas[first], areas[order]) if cut[first] else areas[order]
        compared = np.where(cut[order], piece, areas[first] + areas[order] - shared)
        others = (labels[order] == labels[first]) & (window[order] != window[first])
        order = order[~(others & (shared > 0) & (shared >= threshold * compared))]
    return np.array(kept, dtype=np.int64)
