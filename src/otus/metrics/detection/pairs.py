"""Pairs of a detection and a ground truth of one image and label whose similarity (IoU or OKS) reaches a minimum.

Shape shorthand: D detections, G ground truths, P pairs, K keypoints. Only pairs that reach the lowest threshold are
kept, so memory grows with the number of detections, not with that of images, labels and thresholds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.errors import ShapeError, UsageError
from otus.metrics.detection import _pair_kernels as kernels
from otus.structures import Objects, boxes


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs in the order of detections: those of detection i are ``offsets[i]`` to ``offsets[i + 1]``.

    Parameters
    ----------
    offsets
        (D + 1,) first pair of each detection.
    ground_truths
        (P,) indices into ``RankedDetections.ground_truths``, ascending for each detection.
    similarities
        (P,) IoU or OKS.
    """

    offsets: Int[np.ndarray, "d_plus_1"]
    ground_truths: Int[np.ndarray, "p"]
    similarities: Float[np.ndarray, "p"]

    def rows(self) -> tuple[Int[np.ndarray, "d"], Int[np.ndarray, "c"]]:
        """Number the C candidates (detections in a pair): return (D,) numbers, -1 for others, and (C,) detections."""
        candidates = np.flatnonzero(np.diff(self.offsets))
        rows = np.full(len(self.offsets) - 1, -1, dtype=np.int32)
        rows[candidates] = np.arange(len(candidates), dtype=np.int32)
        return rows, candidates

    def filter(self, min_similarity: float) -> "Pairs":
        """Return the pairs of at least this similarity."""
        return self.select(self.similarities >= min_similarity)

    def select(self, kept: Bool[np.ndarray, "p"]) -> "Pairs":
        """Return the pairs of a (P,) bool mask; the D detections stay the same."""
        first_pairs = np.concatenate([[0], np.cumsum(kept)])
        return Pairs(first_pairs[self.offsets], self.ground_truths[kept], self.similarities[kept])


@dataclass(frozen=True, eq=False)
class RankedDetections:
    """Detections and ground truths, ordered by label and image; detections also by descending score.

    Parameters
    ----------
    detections
        (D,) indices of the predictions, only those within the limit.
    scores
        (D,) scores of the detections.
    ranks
        (D,) rank of each detection within its label and image, from 0.
    ground_truths
        (G,) indices into the ground truths.
    spans
        (D, 2): the ground truths with the label and image of detection i are ``ground_truths[spans[i, 0]:spans[i,
        1]]``.
    """

    detections: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    ranks: Int[np.ndarray, "d"]
    ground_truths: Int[np.ndarray, "g"]
    spans: Int[np.ndarray, "d 2"]

    @classmethod
    def build(
        cls, ground_truth: Objects, predictions: Objects, *, label_count: int, limit: int | None
    ) -> "RankedDetections":
        """Rank detections; ``limit`` keeps those of highest score per label and image (None: all)."""
        assert predictions.scores is not None
        scores = predictions.scores.astype(np.float64, copy=False)
        detections, ranks = kernels.rank_detections(
            predictions.labels, predictions.image_index, scores, label_count, len(scores) if limit is None else limit
        )
        ground_truths = kernels.order_by_label(ground_truth.labels, label_count)
        spans = kernels.gt_ranges(
            predictions.labels[detections],
            predictions.image_index[detections],
            ground_truth.labels[ground_truths],
            ground_truth.image_index[ground_truths],
        )
        return cls(detections, scores[detections], ranks, ground_truths, spans)

    def split(self, count: int) -> "list[RankedDetections]":
        """Split into about ``count`` parts of equal size, never within an image and label.

        Each ground truth is in one part.
        """
        starts = np.flatnonzero(self.ranks == 0)
        targets = np.linspace(0, len(self.ranks), count, endpoint=False)[1:]
        cuts = np.unique(starts[np.searchsorted(starts[1:], targets)]) if len(starts) else starts
        bounds = pairwise([0, *cuts.tolist(), len(self.ranks)])
        gt_bounds = pairwise([0, *self.spans[cuts, 0].tolist(), len(self.ground_truths)])
        return [
            RankedDetections(
                self.detections[a:b], self.scores[a:b], self.ranks[a:b], self.ground_truths[g:h], self.spans[a:b] - g
            )
            for (a, b), (g, h) in zip(bounds, gt_bounds, strict=True)
        ]


class Similarity(Protocol):
    """A similarity that replaces IoU of boxes, IoU of masks or OKS, e.g. of oriented boxes or cuboids.

    Implementations are values: metrics with equal similarities can be merged.
    """

    def view(
        self, ground_truth: Objects, predictions: Objects, *, sizes_hw: Int[np.ndarray, "m 2"] | None
    ) -> tuple[Objects, Objects]:
        """Return ground truth and predictions with what is compared, and the ``areas`` that area ranges apply to.

        Rows keep their order. Raises DataError if an object lacks what is compared.
        """

    def pairs(
        self,
        ground_truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        *,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
        min_similarity: float,
    ) -> Pairs:
        """Return the pairs of viewed objects of at least this similarity."""


def box_sizes_wh(objects: Objects, chosen: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n 2"]:
    """Return widths and heights of chosen objects: the column ``box_sizes_wh`` if present, else from the corners.

    With the widths and heights stated in the file, IoUs equal those of pycocotools exactly.
    """
    if "box_sizes_wh" in objects.columns:
        return objects.columns["box_sizes_wh"][chosen].astype(np.float64, copy=False)
    return boxes.written_sizes_wh(objects.boxes_xyxy[chosen].astype(np.float64, copy=False))


def _box_areas(objects: Objects, chosen: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    width, height = box_sizes_wh(objects, chosen).T
    return width * height


def box_pairs(ground_truth: Objects, predictions: Objects, ranked: RankedDetections, *, min_similarity: float) -> Pairs:
    """Return pairs by IoU of boxes; with a crowd, intersection / area of the detection, as in COCO."""
    detections, ground_truths = ranked.detections, ranked.ground_truths
    pairs = kernels.box_pairs(
        predictions.boxes_xyxy[detections].astype(np.float64, copy=False),
        _box_areas(predictions, detections),
        ground_truth.boxes_xyxy[ground_truths].astype(np.float64, copy=False),
        _box_areas(ground_truth, ground_truths),
        ground_truth.is_crowd[ground_truths],
        ranked.spans,
        min_similarity,
    )
    return Pairs(*pairs)


def keypoint_pairs(
    ground_truth: Objects,
    predictions: Objects,
    ranked: RankedDetections,
    *,
    sigmas: Float[np.ndarray, "k"],
    min_similarity: float,
) -> Pairs:
    """Return pairs by object keypoint similarity (OKS).

    For an object without labelled keypoints, the distance is that to its box enlarged to three times its size. Sums run
    over labelled keypoints only, in the order of pycocotools, so that results agree exactly.
    """
    if not len(ground_truth) or not len(predictions):
        return Pairs(np.zeros(len(ranked.detections) + 1, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    if ground_truth.keypoints is None or predictions.keypoints is None:
        raise UsageError(
            f"keypoints: the {'ground truth has' if ground_truth.keypoints is None else 'predictions have'} none"
        )
    counts = {ground_truth.keypoints.shape[1], predictions.keypoints.shape[1], len(sigmas)}
    if len(counts) > 1:
        raise ShapeError(
            f"keypoints: {ground_truth.keypoints.shape[1]} per object, {predictions.keypoints.shape[1]} per "
            f"prediction and {len(sigmas)} sigmas; all three must be equal"
        )
    variances = (np.asarray(sigmas, dtype=np.float64) * 2) ** 2
    return pairs_by(
        lambda ground_truths, detections: _oks(ground_truth, ground_truths, predictions, detections, variances),
        ranked,
        min_similarity=min_similarity,
    )


def pairs_by(
    similarity: Callable[[Int[np.ndarray, "p"], Int[np.ndarray, "p"]], Float[np.ndarray, "p"]],
    ranked: RankedDetections,
    *,
    min_similarity: float,
) -> Pairs:
    """Return pairs by ``similarity(gt_indices, detection_indices)``, called for P pairs of one image and label."""
    counts = ranked.spans[:, 1] - ranked.spans[:, 0]
    detections = np.repeat(np.arange(len(counts)), counts)
    gt = np.arange(len(detections)) - np.repeat(np.cumsum(counts) - counts, counts) + ranked.spans[detections, 0]
    similarities = np.empty(len(detections))
    step = 50_000  # bounds the memory of intermediate arrays
    for first in range(0, len(detections), step):
        chunk = slice(first, first + step)
        similarities[chunk] = similarity(ranked.ground_truths[gt[chunk]], ranked.detections[detections[chunk]])
    return Pairs(np.concatenate([[0], np.cumsum(counts)]), gt, similarities).filter(min_similarity)


def _oks(
    ground_truth: Objects, gt_rows: np.ndarray, predictions: Objects, detection_rows: np.ndarray, variances: np.ndarray
) -> np.ndarray:
    points = predictions.keypoints[detection_rows, :, :2]  # type: ignore[index]
    keypoints = ground_truth.keypoints[gt_rows]  # type: ignore[index]
    labelled: Bool[np.ndarray, "p k"] = np.greater(keypoints[:, :, 2], 0)
    none_labelled: Bool[np.ndarray, "p 1"] = ~np.any(labelled, axis=1, keepdims=True)
    corner, size = ground_truth.boxes_xyxy[gt_rows, :2], box_sizes_wh(ground_truth, gt_rows)
    low, high = (corner - size)[:, None], (corner + size * 2)[:, None]
    outside = np.maximum(low - points, 0) + np.maximum(points - high, 0)
    delta = np.where(none_labelled[:, :, None], outside, points - keypoints[:, :, :2])
    squared = delta[:, :, 0] ** 2 + delta[:, :, 1] ** 2
    similarity = np.exp(-(squared / variances / (ground_truth.areas[gt_rows] + np.spacing(1))[:, None] / 2))
    labelled = labelled | none_labelled
    counts = labelled.sum(axis=1)
    similarities = np.empty(len(gt_rows))
    for count in np.unique(counts):
        rows = counts == count
        similarities[rows] = similarity[rows][labelled[rows]].reshape(-1, count).sum(axis=1) / count
    return similarities
