"""Confusion matrix of detections: true categories against predicted ones, with background on both sides.

Detections are matched greedily by falling score, class-agnostically. Unmatched objects are in the last column, unmatched
detections in the last row. Crowds and detections matched to them are ignored.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.structures import Categories


@dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of K categories and background.

    Parameters
    ----------
    counts
        (K + 1, K + 1): rows are true, columns are predicted, the last of both is background.
    categories
        Names of the first K.
    """

    counts: Int[np.ndarray, "k_plus_1 k_plus_1"]
    categories: Categories

    def confused(self) -> list[tuple[str, str, int]]:
        """Return (true, predicted, count) of confused categories, the most frequent first."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        rows, columns = np.nonzero(between)
        order = np.argsort(-between[rows, columns], kind="stable")
        names = self.categories.names
        return [(names[r], names[c], int(between[r, c])) for r, c in zip(rows[order], columns[order], strict=True)]


def confusion_matrix(
    matcher: DetectionMatcher,
    *,
    iou: float = 0.5,
    score_threshold: float = 0.0,
    max_dets: int | None = 100,
    masks: bool = False,
) -> Confusion:
    """Compute the confusion matrix.

    Parameters
    ----------
    iou
        Minimum IoU of a match.
    score_threshold
        Minimum score.
    max_dets
        Limit on detections per image, over all categories.
    masks
        Compare masks, not boxes.
    """
    rules = Rules(iou_thresholds=(iou,), min_score=score_threshold, max_dets=max_dets)
    matches = matcher.class_agnostic().match(rules, masks=masks)
    background = len(matcher.categories)
    counted = matches.outcomes[:, 0] != Outcome.IGNORED
    matched = matches.matched[counted, 0]
    true = np.append(matcher.ground_truth.labels, background)[matched]
    predicted = matcher.predictions.labels[matches.detections[counted]]
    is_missed = matches.is_positive.copy()
    is_missed[matched[matched >= 0]] = False
    counts = np.zeros((background + 1, background + 1), dtype=np.int64)
    np.add.at(counts, (true, predicted), 1)
    np.add.at(counts, (matcher.ground_truth.labels[is_missed], background), 1)
    return Confusion(counts, matcher.categories)
