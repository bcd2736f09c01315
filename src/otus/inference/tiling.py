"""Large pictures in overlapping tiles, so that small objects keep the size that a model knows them by.

Slicing Aided Hyper Inference (Akyon et al., ICIP 2022, arXiv:2202.06934). Departure: an object cut by a tile's inner border
is merged by intersection over the smaller box, as that paper's code does, but kept is the more confident of two, never
their union.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from otus.errors import UsageError
from otus.structures import Instances
from otus.structures.boxes import area


@dataclass(frozen=True)
class Tiles:
    """How a picture is cut.

    Parameters
    ----------
    size
        Side of the square tiles, pixels.
    overlap
        Share of a tile that its neighbour covers too, in [0, 1).
    merge_threshold
        Two detections of one category whose intersection is this share of the smaller box are the same object.
    """

    size: int
    overlap: float = 0.2
    merge_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap < 1:
            raise UsageError(f"tiles: expected a size >= 1 and 0 <= overlap < 1, got {self.size} and {self.overlap}")

    def windows(self, size_hw: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of each tile; they cover the picture, and the last ones end at its border."""
        for top in _starts(size_hw[0], self.size, self.overlap):
            for left in _starts(size_hw[1], self.size, self.overlap):
                yield slice(top, min(top + self.size, size_hw[0])), slice(left, min(left + self.size, size_hw[1]))


def _starts(length: int, size: int, overlap: float) -> list[int]:
    step = max(1, round(size * (1 - overlap)))
    return [*range(0, max(length - size, 0), step), max(length - size, 0)]


def moved(found: Instances, *, top: int, left: int, size_hw: tuple[int, int]) -> Instances:
    """What was found in a tile, in the frame of the whole picture of ``size_hw``."""
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


def merged(found: list[Instances], *, threshold: float) -> Instances:
    """All tiles' detections, each object once: the more confident of two that overlap by ``threshold`` of the smaller."""
    everything = Instances.concatenate(found)
    scores = everything.scores if everything.scores is not None else np.ones(len(everything))
    order = np.argsort(-scores, kind="stable")
    boxes, labels = everything.boxes_xyxy[order], everything.labels[order]
    return everything[order[_kept(boxes, labels, threshold)]]


def _kept(boxes_xyxy: Float[np.ndarray, "n 4"], labels: Int[np.ndarray, "n"], threshold: float) -> Int[np.ndarray, "k"]:
    areas = area(boxes_xyxy)
    left = np.ones(len(boxes_xyxy), dtype=bool)
    kept = []
    for i in range(len(boxes_xyxy)):
        if not left[i]:
            continue
        kept.append(i)
        top_left = np.maximum(boxes_xyxy[i, :2], boxes_xyxy[i + 1 :, :2])
        bottom_right = np.minimum(boxes_xyxy[i, 2:], boxes_xyxy[i + 1 :, 2:])
        shared = np.prod(np.maximum(bottom_right - top_left, 0), axis=1)
        same = (
            (labels[i + 1 :] == labels[i]) & (shared >= threshold * np.minimum(areas[i], areas[i + 1 :])) & (shared > 0)
        )
        left[i + 1 :] &= ~same
    return np.array(kept, dtype=np.int64)
