"""TIDE: the type of each detection error, and its dAP, the gain in AP from fixing all errors of the type.

Bolya, Foley, Hays, Hoffman, TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV 2020, arXiv:2008.08115;
code github.com/dbolya/tide (MIT). A false detection is the first of these that applies, with IoU thresholds t_f = 0.5 and
t_b = 0.1 (section 2.2, in the order of that code):

- localisation: t_b <= IoU <= t_f with an object of its category;
- classification: IoU >= t_f with an object of another category;
- duplicate: IoU >= t_f with an object of its category that is matched to a detection of higher score;
- background: IoU <= t_b with every object;
- both: otherwise, i.e. classification and localisation are wrong.

Missed: an object that is unmatched, and would still be if all classification and localisation errors were fixed.

Fixing all errors of a type (section 2.3): of the classification and localisation errors on an unmatched object, the one
of highest score becomes a true positive of the object's category, the others are removed; duplicate, background and both
are removed; missed objects are no longer positives.

Departure: as in AP, the mean is over the categories with objects, whatever is fixed, and AP of a category without
remaining positives is 0. In TIDE's code, categories with only detections are included, and those without remaining
positives are not. hotcoco agrees with Otus.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.errors import UsageError
from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis.assignment import Assignment, DetectionMatcher


class Error(IntEnum):
    """Error type of a detection: none, ignored, or one of five; ``MISSED`` is for ground truths."""

    NONE = 0
    IGNORED = 1
    CLASSIFICATION = 2
    LOCALISATION = 3
    BOTH = 4
    DUPLICATE = 5
    BACKGROUND = 6
    MISSED = 7


ERROR_TYPES = tuple(error for error in Error if error >= Error.CLASSIFICATION)
"""The six types of errors."""


@dataclass(frozen=True, eq=False)
class Errors:
    """Error types of D detections and G ground truths; made by :func:`find_errors`.

    Parameters
    ----------
    matches
        The D detections and their matches at one IoU threshold.
    types
        (D,) values of :class:`Error`.
    nearest_gt
        (D,) index of the ground truth that a classification or localisation error overlaps most, else -1.
    nearest_overlaps
        (D,) highest IoU with a ground truth of any category; 0 below the background threshold.
    missed
        (G,) which ground truths are missed.
    gt_labels
        (G,) labels of the ground truths.
    background_iou
        Maximum IoU of a background error (t_b).
    """

    matches: Assignment
    types: Int[np.ndarray, "d"]
    nearest_gt: Int[np.ndarray, "d"]
    nearest_overlaps: Float[np.ndarray, "d"]
    missed: Bool[np.ndarray, "g"]
    gt_labels: Int[np.ndarray, "g"]
    background_iou: float

    @property
    def counts(self) -> dict[Error, int]:
        """Number of errors of each type."""
        detection_counts = {error: int((self.types == error).sum()) for error in ERROR_TYPES[:-1]}
        return detection_counts | {Error.MISSED: int(self.missed.sum())}

    @property
    def is_matched(self) -> Bool[np.ndarray, "g"]:
        """(G,) which ground truths are matched."""
        is_matched = np.zeros(len(self.missed), dtype=bool)
        matched = self.matches.matched[:, 0]
        is_matched[matched[matched >= 0]] = True
        return is_matched

    def average_precision(self, fixed: Error | None = None) -> Float[np.ndarray, "k"]:
        """Return AP of each category with all errors of one type fixed; NaN without objects."""
        labels, positives = self.matches.labels, self.matches.positives
        is_true, is_removed = self.types == Error.NONE, self.types == Error.IGNORED
        if fixed is Error.MISSED:
            positives = positives - np.bincount(self.gt_labels[self.missed], minlength=len(positives))
        elif fixed is not None:
            becomes_true = self._best_on_unmatched & (self.types == fixed)
            labels = np.where(becomes_true, np.append(self.gt_labels, -1)[self.nearest_gt], labels)
            is_true, is_removed = is_true | becomes_true, is_removed | ((self.types == fixed) & ~becomes_true)
        return self._by_category(labels, is_true, is_removed, positives)

    @property
    def _best_on_unmatched(self) -> Bool[np.ndarray, "d"]:
        """(D,) which classification and localisation errors have the highest score on an unmatched object."""
        unmatched = np.append(~self.is_matched, False)
        candidates = np.flatnonzero((self.nearest_gt >= 0) & unmatched[self.nearest_gt])
        candidates = candidates[np.argsort(-self.matches.scores[candidates], kind="stable")]
        best = np.zeros(len(self.types), dtype=bool)
        best[candidates[np.unique(self.nearest_gt[candidates], return_index=True)[1]]] = True
        return best

    def _by_category(
        self,
        labels: Int[np.ndarray, "d"],
        is_true: Bool[np.ndarray, "d"],
        is_removed: Bool[np.ndarray, "d"],
        positives: Int[np.ndarray, "k"],
    ) -> Float[np.ndarray, "k"]:
        order = np.lexsort((-self.matches.scores, labels))
        order = order[~is_removed[order]]
        starts = np.searchsorted(labels[order], np.arange(len(positives) + 1))
        figures = np.where(self.matches.positives > 0, 0.0, np.nan)
        for label in np.flatnonzero(positives):
            of_category = is_true[order[starts[label] : starts[label + 1]]]
            figures[label] = self.matches.rules.average_precision(of_category, ~of_category, int(positives[label]))
        return figures

    def delta_ap(self) -> dict[Error, float]:
        """Return dAP of each type: the gain in mAP from fixing all its errors; NaN without objects."""
        before = _mean(self.average_precision())
        return {error: _mean(self.average_precision(error)) - before for error in ERROR_TYPES}

    def false_positive_cost(self) -> float:
        """Return dAP of all false positives: the gain in mAP from removing them."""
        is_true = self.types == Error.NONE
        after = self._by_category(self.matches.labels, is_true, ~is_true, self.matches.positives)
        return _mean(after) - _mean(self.average_precision())

    def false_negative_cost(self) -> float:
        """Return dAP of all false negatives: the gain in mAP if unmatched objects were not positives."""
        is_true, is_removed = self.types == Error.NONE, self.types == Error.IGNORED
        unmatched = self.gt_labels[self.matches.is_positive & ~self.is_matched]
        positives = self.matches.positives - np.bincount(unmatched, minlength=len(self.matches.positives))
        return _mean(self._by_category(self.matches.labels, is_true, is_removed, positives)) - _mean(
            self.average_precision()
        )


def find_errors(
    matcher: DetectionMatcher,
    *,
    iou: float = 0.5,
    background_iou: float = 0.1,
    max_dets: int = 100,
    masks: bool = False,
) -> Errors:
    """Find the error type of every detection and ground truth.

    Parameters
    ----------
    iou
        Minimum IoU of a true positive (t_f).
    background_iou
        Maximum IoU of a background error (t_b).
    max_dets
        Maximum number of detections per image and category.
    masks
        Whether to compare masks instead of boxes.

    Raises
    ------
    UsageError
        If not 0 < background_iou < iou <= 1.
    """
    if not 0 < background_iou < iou <= 1:
        raise UsageError(f"expected 0 < background IoU < IoU <= 1, got {background_iou} and {iou}")
    ground_truth = matcher.ground_truth
    matches = matcher.match(Rules(iou_thresholds=(iou,), max_dets=max_dets), masks=masks)
    is_matched = np.zeros(len(ground_truth), dtype=bool)
    is_matched[matches.matched[matches.matched >= 0]] = True
    same, same_overlap, other, other_overlap, duplicate = _neighbours(
        matcher, matches, is_matched, iou=iou, background_iou=background_iou, masks=masks
    )
    types = np.select(
        [
            matches.outcomes[:, 0] == Outcome.TRUE_POSITIVE,
            matches.outcomes[:, 0] == Outcome.IGNORED,
            (same_overlap >= background_iou) & (same_overlap <= iou),
            other_overlap >= iou,
            duplicate,
            np.maximum(same_overlap, other_overlap) <= background_iou,
        ],
        [Error.NONE, Error.IGNORED, Error.LOCALISATION, Error.CLASSIFICATION, Error.DUPLICATE, Error.BACKGROUND],
        Error.BOTH,
    )
    nearest_gt = np.select([types == Error.LOCALISATION, types == Error.CLASSIFICATION], [same, other], -1)
    fixable = np.zeros(len(ground_truth), dtype=bool)
    fixable[nearest_gt[nearest_gt >= 0]] = True
    missed = matches.is_positive & ~is_matched & ~fixable
    nearest = np.maximum(same_overlap, other_overlap)
    return Errors(matches, types, nearest_gt, nearest, missed, ground_truth.labels, background_iou)


def _neighbours(
    matcher: DetectionMatcher,
    matches: Assignment,
    is_matched: Bool[np.ndarray, "g"],
    *,
    iou: float,
    background_iou: float,
    masks: bool,
) -> tuple[np.ndarray, ...]:
    """Return for each detection the neighbours that decide its error type.

    These are the best ground truth of its category and the IoU with it, the same for the other categories, and whether
    a matched ground truth of its category reaches ``iou``. Crowds are excluded.
    """
    row_of = np.full(len(matcher.predictions), -1)
    row_of[matches.detections] = np.arange(len(matches.detections))
    detections, ground_truths, overlaps = matcher.pairs(min_iou=background_iou, masks=masks)
    rows = row_of[detections]
    kept = (rows >= 0) & ~matcher.ground_truth.is_crowd[ground_truths]
    rows, ground_truths, overlaps = rows[kept], ground_truths[kept], overlaps[kept]
    same_category = matcher.ground_truth.labels[ground_truths] == matches.labels[rows]
    duplicate = np.zeros(len(matches.detections), dtype=bool)
    duplicate[rows[same_category & (overlaps >= iou) & is_matched[ground_truths]]] = True
    count, other_category = len(duplicate), ~same_category
    same, same_overlap = _best(count, rows[same_category], ground_truths[same_category], overlaps[same_category])
    other, other_overlap = _best(count, rows[other_category], ground_truths[other_category], overlaps[other_category])
    return same, same_overlap, other, other_overlap, duplicate


def _best(
    count: int, rows: np.ndarray, ground_truths: np.ndarray, overlaps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ground truth of highest IoU (the first of ties) of each of ``count`` rows, and that IoU; -1 and 0."""
    order = np.lexsort((ground_truths, -overlaps, rows))
    firsts, positions = np.unique(rows[order], return_index=True)
    best, overlap = np.full(count, -1), np.zeros(count)
    best[firsts], overlap[firsts] = ground_truths[order[positions]], overlaps[order[positions]]
    return best, overlap


def _mean(values: Float[np.ndarray, "k"]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
