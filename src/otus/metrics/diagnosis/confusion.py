"""Confusion matrix of detections: ground truth categories against predicted ones, both with background.

Detections are matched greedily in descending order of score, class-agnostically. Unmatched objects are in the last
column, unmatched detections in the last row. Crowds and detections matched to them are ignored.
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
        (K + 1, K + 1) rows: ground truth, columns: prediction; the last of both is background.
    categories
        The K categories.
    """

    counts: Int[np.ndarray, "k_plus_1 k_plus_1"]
    categories: Categories

    def confused(self) -> list[tuple[str, str, int]]:
        """Return (ground truth, predicted, count) of confused categories, most frequent first."""
        off_diagonal = self.counts[:-1, :-1].copy()
        np.fill_diagonal(off_diagonal, 0)
        rows, columns = np.nonzero(off_diagonal)
        order = np.argsort(-off_diagonal[rows, columns], kind="stable")
        names = self.categories.names
        return [(names[r], names[c], int(off_diagonal[r, c])) for r, c in zip(rows[order], columns[order], strict=True)]


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
        Maximum number of detections per image, over all categories.
    masks
        Whether to compare masks instead of boxes.
    """
    rules = Rules(iou_thresholds=(iou,), min_score=score_threshold, max_dets=max_dets)
    matches = matcher.class_agnostic().match(rules, masks=masks)
    background = len(matcher.categories)
    is_counted = matches.outcomes[:, 0] != Outcome.IGNORED
    matched = matches.matched[is_counted, 0]
    gt_labels = np.append(matcher.ground_truth.labels, background)[matched]
    predicted_labels = matcher.predictions.labels[matches.detections[is_counted]]
    is_missed = matches.is_positive.copy()
    is_missed[matched[matched >= 0]] = False
    counts = np.zeros((background + 1, background + 1), dtype=np.int64)
    np.add.at(counts, (gt_labels, predicted_labels), 1)
    np.add.at(counts, (matcher.ground_truth.labels[is_missed], background), 1)
    return Confusion(counts, matcher.categories)
