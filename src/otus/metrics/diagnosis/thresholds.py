"""Where to cut: precision, recall and F1 as the score threshold falls, the best cut of each category, and by NMS.

F1 is the harmonic mean of precision and recall. With a threshold, what scores above it is reported, as in
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
    """What is reported down to each of S scores, which fall; of equal scores all or none are.

    Parameters
    ----------
    scores
        (S,) different scores.
    precision, recall, f1
        (S,) when all that scores so much is reported. Recall and F1 are NaN where there is nothing to find.
    """

    scores: Float[np.ndarray, "s"]
    precision: Float[np.ndarray, "s"]
    recall: Float[np.ndarray, "s"]
    f1: Float[np.ndarray, "s"]


class OperatingPoint(NamedTuple):
    """The best threshold of a category: what it gives, and of how many objects. NaN where there is none."""

    threshold: float
    precision: float
    recall: float
    f1: float
    objects: int


def score_curve(matches: Assignment, *, label: int | None = None) -> ScoreCurve:
    """The curve of a category, or of all together, at the first IoU threshold of the matches."""
    here = matches.by_score(label) if label is not None else np.argsort(-matches.scores, kind="stable")
    positives = int(matches.positives.sum() if label is None else matches.positives[label])
    scores, outcomes = matches.scores[here], matches.outcomes[here, 0]
    last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]  # the last detection of each score
    true = np.cumsum(outcomes == Outcome.TRUE_POSITIVE)[last].astype(np.float64)
    false = np.cumsum(outcomes == Outcome.FALSE_POSITIVE)[last]
    counted = np.maximum(true + false, 1)
    if positives == 0:
        undefined = np.full(len(true), np.nan)
        return ScoreCurve(scores[last], true / counted, undefined, undefined)
    return ScoreCurve(scores[last], true / counted, true / positives, 2 * true / (true + false + positives))


def best_threshold(matches: Assignment, label: int) -> OperatingPoint:
    """The threshold of a category with the highest F1, of equals the highest.

    It lies half way between the lowest score that is reported and the next one, so that rounding moves nothing over it,
    not even rounding to single precision.
    """
    curve, objects = score_curve(matches, label=label), int(matches.positives[label])
    if not objects or not len(curve.scores) or not curve.f1.max() > 0:
        return OperatingPoint(_NAN, _NAN, _NAN, _NAN, objects)
    best = int(curve.f1.argmax())
    following = curve.scores[best + 1] if best + 1 < len(curve.scores) else min(0.0, curve.scores[best])
    threshold = float(curve.scores[best] + following) / 2
    if not following <= threshold < curve.scores[best]:  # they are neighbours, or the score is 0
        threshold = float(np.nextafter(curve.scores[best], -np.inf))
    single = np.float32(threshold)
    if float(single) > threshold:
        single = np.nextafter(single, np.float32(-np.inf))
    if following <= float(single):  # else the scores are not of single precision, as a model's are
        threshold = float(single)
    return OperatingPoint(
        threshold, float(curve.precision[best]), float(curve.recall[best]), float(curve.f1[best]), objects
    )


def nms_mask(matcher: DetectionMatcher, iou: float) -> Bool[np.ndarray, "n"]:
    """Which predictions non-maximum suppression leaves: of those of a category that overlap more, the best."""
    if not 0 <= iou <= 1:
        raise UsageError(f"NMS IoU: expected 0 to 1, got {iou}")
    found = matcher.predictions
    ranked = RankedDetections.build(found, found, label_count=len(matcher.categories), limit=None)
    plain = replace(found, is_crowd=np.zeros(len(found), dtype=bool))
    pairs = box_pairs(plain, plain, ranked, min_similarity=np.nextafter(iou, 2))
    place = np.empty(len(found), dtype=np.int64)
    place[ranked.detections] = np.arange(len(found))
    others = place[ranked.truths[pairs.truths]]
    kept = np.empty(len(found), dtype=bool)
    kept[ranked.detections] = kernels.nms(pairs.offsets, others, pairs.similarities, iou)
    return kept


class NmsFigures(NamedTuple):
    """What is left by an IoU of NMS: how many detections, their mAP, and the best F1 of one threshold for all."""

    nms_iou: float
    detections: int
    average_precision: float
    precision: float
    recall: float
    f1: float
    score: float


def sweep_nms_iou(matcher: DetectionMatcher, ious: tuple[float, ...], *, iou: float = 0.5) -> list[NmsFigures]:
    """Precision, recall and F1 where F1 is best, after NMS with each IoU.

    Predictions have been through their model's own NMS, so an IoU above that one changes nothing.
    """
    figures = []
    for nms_iou in ious:
        kept = nms_mask(matcher, nms_iou)
        left = replace(matcher, predictions=matcher.predictions.take(kept))
        matches = left.match(Rules(iou_thresholds=(iou,)))
        curve = score_curve(matches)
        best = [_NAN] * 4
        if len(curve.scores) and not np.isnan(curve.f1).any():
            columns = (curve.precision, curve.recall, curve.f1, curve.scores)
            best = [float(column[curve.f1.argmax()]) for column in columns]
        figures.append(NmsFigures(nms_iou, int(kept.sum()), matches.mean_average_precision(), *best))
    return figures
