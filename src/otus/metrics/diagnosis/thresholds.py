"""Precision, recall and F1 by score threshold, the best threshold of each category, and the effect of NMS.

F1 is the harmonic mean of precision and recall. Detections with a score above the threshold are kept, as in
:class:`otus.inference.predictor.Predictor`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from otus.errors import UsageError
from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.pairs import RankedDetections, box_pairs
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis import _nms_kernels as kernels
from otus.metrics.diagnosis.assignment import Assignment, DetectionMatcher

_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """Precision, recall and F1 of the detections with at least each of S descending scores.

    Parameters
    ----------
    scores
        (S,) distinct scores.
    precision, recall, f1
        (S,) figures of the detections with at least each score; recall and F1 are NaN without positives.
    """

    scores: Float[np.ndarray, "s"]
    precision: Float[np.ndarray, "s"]
    recall: Float[np.ndarray, "s"]
    f1: Float[np.ndarray, "s"]


class OperatingPoint(NamedTuple):
    """The score threshold of highest F1 of a category, its figures (NaN if undefined), and the number of objects."""

    threshold: float
    precision: float
    recall: float
    f1: float
    objects: int


def score_curve(matches: Assignment, *, label: int | None = None) -> ScoreCurve:
    """Compute the curve of one category (default: all together) at the first IoU threshold of the assignment."""
    order = matches.by_score(label) if label is not None else np.argsort(-matches.scores, kind="stable")
    positives = int(matches.positives.sum() if label is None else matches.positives[label])
    scores, outcomes = matches.scores[order], matches.outcomes[order, 0]
    is_last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # the last detection of each score
    true_positives = np.cumsum(outcomes == Outcome.TRUE_POSITIVE)[is_last].astype(np.float64)
    false_positives = np.cumsum(outcomes == Outcome.FALSE_POSITIVE)[is_last]
    num_counted = np.maximum(true_positives + false_positives, 1)
    if positives == 0:
        undefined = np.full(len(true_positives), np.nan)
        return ScoreCurve(scores[is_last], true_positives / num_counted, undefined, undefined)
    return ScoreCurve(
        scores[is_last],
        true_positives / num_counted,
        true_positives / positives,
        2 * true_positives / (true_positives + false_positives + positives),
    )


def best_threshold(matches: Assignment, label: int) -> OperatingPoint:
    """Return the score threshold of highest F1 of one category (ties: the highest threshold).

    It is halfway between the lowest kept score and the next lower one, so that rounding to float32 does not change
    which detections are kept.
    """
    curve, objects = score_curve(matches, label=label), int(matches.positives[label])
    if not objects or not len(curve.scores) or not curve.f1.max() > 0:
        return OperatingPoint(_NAN, _NAN, _NAN, _NAN, objects)
    best = int(curve.f1.argmax())
    next_score = curve.scores[best + 1] if best + 1 < len(curve.scores) else min(0.0, curve.scores[best])
    threshold = float(curve.scores[best] + next_score) / 2
    if not next_score <= threshold < curve.scores[best]:  # adjacent floats, or the score is 0
        threshold = float(np.nextafter(curve.scores[best], -np.inf))
    threshold_float32 = np.float32(threshold)
    if float(threshold_float32) > threshold:
        threshold_float32 = np.nextafter(threshold_float32, np.float32(-np.inf))
    if next_score <= float(threshold_float32):  # always true for float32 scores, as models predict them
        threshold = float(threshold_float32)
    return OperatingPoint(
        threshold, float(curve.precision[best]), float(curve.recall[best]), float(curve.f1[best]), objects
    )


def nms_mask(matcher: DetectionMatcher, iou: float) -> Bool[np.ndarray, "n"]:
    """Return (N,) which predictions are kept by class-wise non-maximum suppression."""
    if not 0 <= iou <= 1:
        raise UsageError(f"NMS IoU: expected 0 to 1, got {iou}")
    predictions = matcher.predictions
    ranked = RankedDetections.build(predictions, predictions, label_count=len(matcher.categories), limit=None)
    without_crowds = replace(predictions, is_crowd=np.zeros(len(predictions), dtype=bool))
    pairs = box_pairs(without_crowds, without_crowds, ranked, min_similarity=np.nextafter(iou, 2))
    rank_of = np.empty(len(predictions), dtype=np.int64)
    rank_of[ranked.detections] = np.arange(len(predictions))
    others = rank_of[ranked.ground_truths[pairs.ground_truths]]
    kept = np.empty(len(predictions), dtype=bool)
    kept[ranked.detections] = kernels.nms(pairs.offsets, others, pairs.similarities, iou)
    return kept


class NmsFigures(NamedTuple):
    """Figures after NMS: number of detections, mAP, and the best F1 with one score threshold for all categories."""

    nms_iou: float
    detections: int
    average_precision: float
    precision: float
    recall: float
    f1: float
    score: float


def sweep_nms_iou(matcher: DetectionMatcher, ious: tuple[float, ...], *, iou: float = 0.5) -> list[NmsFigures]:
    """Compute the figures after NMS at each IoU threshold.

    The model has already applied its own NMS, so a threshold above the model's changes nothing.
    """
    figures = []
    for nms_iou in ious:
        kept = nms_mask(matcher, nms_iou)
        remaining = replace(matcher, predictions=matcher.predictions.take(kept))
        matches = remaining.match(Rules(iou_thresholds=(iou,)))
        curve = score_curve(matches)
        best = [_NAN] * 4
        if len(curve.scores) and not np.isnan(curve.f1).any():
            columns = (curve.precision, curve.recall, curve.f1, curve.scores)
            best = [float(column[curve.f1.argmax()]) for column in columns]
        figures.append(NmsFigures(nms_iou, int(kept.sum()), matches.mean_average_precision(), *best))
    return figures
