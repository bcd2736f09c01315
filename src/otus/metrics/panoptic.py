"""Panoptic quality: recognition and segmentation of things and stuff in one figure.

Kirillov et al., Panoptic Segmentation, CVPR 2019, section 4; rules as cocodataset/panopticapi's ``evaluation.py`` has them
(BSD). A predicted and a true segment of one category match where their IoU is over 0.5, so at most one to one; then

    PQ = sum of the IoUs of matches / (TP + FP / 2 + FN / 2) = SQ * RQ,   SQ = mean IoU,   RQ = TP / (TP + FP / 2 + FN / 2)

of each category, and the mean over the categories that occur on either side:

- pixels without a true segment (void) are taken out of a prediction's area before its IoU is measured;
- a crowd matches nothing and is no positive;
- an unmatched prediction that lies by more than half on void and on its category's crowd does not count. Of several crowds
  of a category in an image the last one is meant, as there.

Departure: what is not defined, the mean of no categories, is NaN (there an error).

Shape shorthand: K categories, P pairs of a true and a predicted segment that share pixels.
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
    """PQ, SQ and RQ over any number of images. Memory is that of a confusion matrix.

    ``confusion`` (K, K) counts pixels by the categories of their true (rows) and predicted segments.

    Examples
    --------
    >>> from otus.structures import Segment
    >>> categories = Categories(("owl", "sky"), is_thing=(True, False))
    >>> ground_truth = PanopticMap(np.array([[1, 1, 2, 2]]), (Segment(1, 0), Segment(2, 1)), categories)
    >>> found = PanopticMap(np.array([[7, 7, 7, 8]]), (Segment(7, 0), Segment(8, 1)), categories)
    >>> round(PanopticQuality(categories).update(ground_truth, found).compute().figures["PQ"], 4)
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
            The maps differ in size, or a predicted segment has no pixels.
        UsageError
            The maps have other categories.
        """
        for side, panoptic in (("truth", ground_truth), ("prediction", prediction)):
            if panoptic.categories.names != self.categories.names:
                raise UsageError(f"panoptic map: the {side} has other categories than this metric")
        if ground_truth.size_hw != prediction.size_hw:
            raise ShapeError(
                f"panoptic map: expected a prediction of size {ground_truth.size_hw}, got {prediction.size_hw}"
            )
        true_ids, found_ids, shared = shared_pixels(ground_truth.ids, prediction.ids)
        true_area, found_area = _sums_by(true_ids, shared), _sums_by(found_ids, shared)
        for segment in prediction.segments:
            if segment.id not in found_area:
                raise ShapeError(f"panoptic map: predicted segment {segment.id} has no pixels")
        true_segments = {segment.id: segment for segment in ground_truth.segments if segment.id in true_area}
        found_segments = {segment.id: segment for segment in prediction.segments}
        overlap = dict(zip(zip(true_ids.tolist(), found_ids.tolist(), strict=True), shared.tolist(), strict=True))
        matched: set[tuple[str, int]] = set()
        for (true_id, found_id), pixels in overlap.items():
            true, found = true_segments.get(true_id), found_segments.get(found_id)
            if true is None or found is None or true.is_crowd:
                continue
            self.confusion[true.label, found.label] += pixels
            if true.label != found.label:
                continue
            union = true_area[true_id] + found_area[found_id] - pixels - overlap.get((_VOID, found_id), 0)
            if pixels / union > 0.5:
                self._iou_sums[true.label] += pixels / union
                self._counts[_TRUE, true.label] += 1
                matched |= {("true", true_id), ("found", found_id)}
        crowds = {segment.label: segment.id for segment in true_segments.values() if segment.is_crowd}
        for segment in true_segments.values():
            if not segment.is_crowd and ("true", segment.id) not in matched:
                self._counts[_MISSED, segment.label] += 1
        for segment in found_segments.values():
            if ("found", segment.id) in matched:
                continue
            excused = overlap.get((_VOID, segment.id), 0)
            if segment.label in crowds:
                excused += overlap.get((crowds[segment.label], segment.id), 0)
            if excused / found_area[segment.id] <= 0.5:
                self._counts[_FALSE, segment.label] += 1
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


_TRUE, _FALSE, _MISSED = range(3)


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
        (K,) numbers of segments.
    """

    categories: Categories
    iou_sums: Float[np.ndarray, "k"]
    true_positives: Int[np.ndarray, "k"]
    false_positives: Int[np.ndarray, "k"]
    false_negatives: Int[np.ndarray, "k"]
    figures: Mapping[str, float] = field(init=False)
    """PQ, SQ, RQ, the same of things (PQ_th …) and of stuff (PQ_st …)."""
    per_category: Mapping[str, Mapping[str, float]] = field(init=False)
    """PQ, SQ and RQ by the category's name, NaN where it occurs on neither side."""

    def __post_init__(self) -> None:
        matched = self.true_positives.astype(np.float64)
        occurring = matched + (self.false_positives + self.false_negatives) / 2
        drawn = np.where((occurring > 0) & (matched == 0), 0.0, ratio(self.iou_sums, matched))
        columns = {"PQ": ratio(self.iou_sums, occurring), "SQ": drawn, "RQ": ratio(matched, occurring)}
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
    # Runs of equal values are far fewer to sort than pixels.
    starts = np.flatnonzero(np.append(True, (np.diff(flat_a) != 0) | (np.diff(flat_b) != 0)))
    lengths = np.diff(np.append(starts, len(flat_a)))
    keys, inverse = np.unique(np.stack([flat_a[starts], flat_b[starts]], axis=1), axis=0, return_inverse=True)
    pixels = np.bincount(inverse.reshape(-1), weights=lengths).astype(np.int64)
    return keys[:, 0], keys[:, 1], pixels


def _sums_by(ids: Int[np.ndarray, "p"], pixels: Int[np.ndarray, "p"]) -> dict[int, int]:
    values, inverse = np.unique(ids, return_inverse=True)
    sums = np.bincount(inverse.reshape(-1), weights=pixels, minlength=len(values)).astype(np.int64)
    return dict(zip(values.tolist(), sums.tolist(), strict=True))
