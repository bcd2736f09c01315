"""Panoptic quality (PQ): recognition and segmentation quality of things and stuff in one figure.

Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4; rules as in cocodataset/panopticapi's ``evaluation.py``
(BSD). A predicted and a ground truth segment of one category match if their IoU is over 0.5, so matches are one to one;
then

    PQ = sum of the IoUs of matches / (TP + FP / 2 + FN / 2) = SQ * RQ,   SQ = mean IoU,   RQ = TP / (TP + FP / 2 + FN / 2)

per category, and the mean over the categories that occur in ground truth or predictions:

- pixels without a ground truth segment (void) are excluded from a predicted segment's area in its IoU;
- a crowd matches nothing and is no positive;
- an unmatched prediction of which more than half lies on void or on the crowd of its category is ignored. If an image
  has several crowds of a category, only the last is used, as in panopticapi.

Departure: the mean over no categories is NaN (an error in panopticapi).

Shape shorthand: K categories, P pairs of a ground truth and a predicted segment that share pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from otus.errors import ShapeError, UsageError
from otus.metrics._ratios import mean_of_defined, ratio
from otus.structures import Categories, PanopticMap

_VOID = 0


class PanopticQuality:
    """PQ, SQ and RQ over any number of images, in the memory of a confusion matrix.

    ``confusion`` (K, K) counts pixels by the categories of their ground truth (rows) and predicted segments (columns).

    Examples
    --------
    >>> from otus.structures import Segment
    >>> categories = Categories(("owl", "sky"), is_thing=(True, False))
    >>> ground_truth = PanopticMap(np.array([[1, 1, 2, 2]]), (Segment(1, 0), Segment(2, 1)), categories)
    >>> prediction = PanopticMap(np.array([[7, 7, 7, 8]]), (Segment(7, 0), Segment(8, 1)), categories)
    >>> round(PanopticQuality(categories).update(ground_truth, prediction).compute().figures["PQ"], 4)
    0.3333
    """

    def __init__(self, categories: Categories) -> None:
        self.categories = categories
        self._iou_sums = np.zeros(len(categories))
        self._counts = np.zeros((3, len(categories)), dtype=np.int64)
        self.confusion = np.zeros((len(categories), len(categories)), dtype=np.int64)

    def update(self, ground_truth: PanopticMap, prediction: PanopticMap) -> Self:
        """Add one more image.

        Raises
        ------
        ShapeError
            If the maps differ in size, or a predicted segment has no pixels.
        UsageError
            If the maps have other categories than the metric.
        """
        for side, panoptic in (("ground truth", ground_truth), ("prediction", prediction)):
            if panoptic.categories.names != self.categories.names:
                raise UsageError(f"panoptic map: the {side} has other categories than this metric")
        if ground_truth.size_hw != prediction.size_hw:
            raise ShapeError(
                f"panoptic map: expected a prediction of size {ground_truth.size_hw}, got {prediction.size_hw}"
            )
        gt_ids, predicted_ids, shared = shared_pixels(ground_truth.ids, prediction.ids)
        gt_areas, predicted_areas = _pixels_by_id(gt_ids, shared), _pixels_by_id(predicted_ids, shared)
        for segment in prediction.segments:
            if segment.id not in predicted_areas:
                raise ShapeError(f"panoptic map: predicted segment {segment.id} has no pixels")
        gt_segments = {segment.id: segment for segment in ground_truth.segments if segment.id in gt_areas}
        predicted_segments = {segment.id: segment for segment in prediction.segments}
        overlap = dict(zip(zip(gt_ids.tolist(), predicted_ids.tolist(), strict=True), shared.tolist(), strict=True))
        matched: set[tuple[str, int]] = set()
        for (gt_id, predicted_id), pixels in overlap.items():
            gt_segment, predicted = gt_segments.get(gt_id), predicted_segments.get(predicted_id)
            if gt_segment is None or predicted is None or gt_segment.is_crowd:
                continue
            self.confusion[gt_segment.label, predicted.label] += pixels
            if gt_segment.label != predicted.label:
                continue
            union = gt_areas[gt_id] + predicted_areas[predicted_id] - pixels - overlap.get((_VOID, predicted_id), 0)
            if pixels / union > 0.5:
                self._iou_sums[gt_segment.label] += pixels / union
                self._counts[_TRUE_POSITIVES, gt_segment.label] += 1
                matched |= {("ground truth", gt_id), ("prediction", predicted_id)}
        crowds = {segment.label: segment.id for segment in gt_segments.values() if segment.is_crowd}
        for segment in gt_segments.values():
            if not segment.is_crowd and ("ground truth", segment.id) not in matched:
                self._counts[_FALSE_NEGATIVES, segment.label] += 1
        for segment in predicted_segments.values():
            if ("prediction", segment.id) in matched:
                continue
            ignored_pixels = overlap.get((_VOID, segment.id), 0)
            if segment.label in crowds:
                ignored_pixels += overlap.get((crowds[segment.label], segment.id), 0)
            if ignored_pixels / predicted_areas[segment.id] <= 0.5:
                self._counts[_FALSE_POSITIVES, segment.label] += 1
        return self

    def merge(self, other: "PanopticQuality") -> Self:
        """Add the counts of another metric, of other images and the same categories."""
        if other.categories != self.categories:
            raise UsageError("only metrics of the same categories can be merged")
        self._iou_sums += other._iou_sums
        self._counts += other._counts
        self.confusion += other.confusion
        return self

    def compute(self) -> "PanopticResult":
        """Compute the figures of all images so far."""
        return PanopticResult(self.categories, self._iou_sums.copy(), *self._counts.copy())


_TRUE_POSITIVES, _FALSE_POSITIVES, _FALSE_NEGATIVES = range(3)  # rows of the counts


@dataclass(frozen=True, eq=False)
class PanopticResult:
    """Counts by category, and their figures.

    Parameters
    ----------
    categories
        The K categories.
    iou_sums
        (K,) sum of the IoUs of matched segments.
    true_positives, false_positives, false_negatives
        (K,) number of segments.
    """

    categories: Categories
    iou_sums: Float[np.ndarray, "k"]
    true_positives: Int[np.ndarray, "k"]
    false_positives: Int[np.ndarray, "k"]
    false_negatives: Int[np.ndarray, "k"]
    figures: Mapping[str, float] = field(init=False)
    """PQ, SQ, RQ; the same over things (PQ_th …) and over stuff (PQ_st …)."""
    per_category: Mapping[str, Mapping[str, float]] = field(init=False)
    """PQ, SQ and RQ by category name; NaN for a category that does not occur."""

    def __post_init__(self) -> None:
        matched = self.true_positives.astype(np.float64)
        denominator = matched + (self.false_positives + self.false_negatives) / 2
        segmentation_quality = np.where((denominator > 0) & (matched == 0), 0.0, ratio(self.iou_sums, matched))
        columns = {
            "PQ": ratio(self.iou_sums, denominator),
            "SQ": segmentation_quality,
            "RQ": ratio(matched, denominator),
        }
        is_thing = np.array(self.categories.is_thing, dtype=bool)
        groups = {"": np.ones_like(is_thing), "_th": is_thing, "_st": ~is_thing}
        figures = {
            name + suffix: mean_of_defined(values[group])
            for suffix, group in groups.items()
            for name, values in columns.items()
        }
        per_category = {
            category: {name: float(values[label]) for name, values in columns.items()}
            for label, category in enumerate(self.categories)
        }
        object.__setattr__(self, "figures", figures)
        object.__setattr__(self, "per_category", per_category)


def shared_pixels(
    a: Int[np.ndarray, "h w"], b: Int[np.ndarray, "h w"]
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Return the pairs of values at the same pixel of two maps, and the number of pixels of each pair.

    >>> [values.tolist() for values in shared_pixels(np.array([[5, 5, 6]]), np.array([[0, 9, 9]]))]
    [[5, 5, 6], [0, 9, 9], [1, 1, 1]]
    """
    flat_a, flat_b = a.ravel(), b.ravel()
    if not len(flat_a):
        return (np.zeros(0, dtype=np.int64),) * 3
    # Sort runs of equal pairs, which are far fewer than pixels.
    starts = np.flatnonzero(np.append(True, (np.diff(flat_a) != 0) | (np.diff(flat_b) != 0)))
    lengths = np.diff(np.append(starts, len(flat_a)))
    keys, inverse = np.unique(np.stack([flat_a[starts], flat_b[starts]], axis=1), axis=0, return_inverse=True)
    pixels = np.bincount(inverse.reshape(-1), weights=lengths).astype(np.int64)
    return keys[:, 0], keys[:, 1], pixels


def _pixels_by_id(ids: Int[np.ndarray, "p"], pixels: Int[np.ndarray, "p"]) -> dict[int, int]:
    values, inverse = np.unique(ids, return_inverse=True)
    sums = np.bincount(inverse.reshape(-1), weights=pixels, minlength=len(values)).astype(np.int64)
    return dict(zip(values.tolist(), sums.tolist(), strict=True))
