"""Pascal VOC's average precision, of 2007 (11 points) and from 2010 on (the whole area); 2012 stands for the latter.

Everingham et al., The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015, and the development kit's
``VOCevaldet.m``:

- a detection is compared with the ground truth of its category of highest IoU, already matched or not; with an IoU of 0.5
  or more the first is a true positive, later ones are false positives (duplicates);
- objects marked ``difficult`` are not positives, and detections of them are ignored;
- there is no limit on detections;
- 2007: AP is the mean of the interpolated precision at recall 0, 0.1 … 1; later: the area under the interpolated curve.

Departures: crowds (of other data sets) are not positives, and a false positive is ignored if half of it or more lies in
one (:mod:`otus.metrics.detection.ignore_regions`); a category without objects is not defined, not 0; of equal scores
the first stays first. Boxes have no "+ 1" here: pixels 1 to 10 of an annotation are [0, 10), which is the same.

Shape shorthand: D detections, K categories.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from otus.errors import UsageError
from otus.metrics.detection import _matching_kernels as kernels
from otus.metrics.detection.matching import MatchResults, Outcome
from otus.metrics.detection.pairs import RankedDetections, Similarity, box_pairs
from otus.metrics.detection.precision_recall import envelope, interpolate
from otus.structures import Categories, Objects


@dataclass(frozen=True)
class VocProtocol:
    """Pascal VOC's protocol; the column ``difficult`` of the ground truth is honoured where there is one.

    Parameters
    ----------
    year
        2007: AP at 11 recalls; 2012: area under the whole curve.
    iou_threshold
        Minimum IoU of a true positive.
    similarity
        Similarity in place of IoU of boxes.
    """

    year: Literal[2007, 2012] = 2012
    iou_threshold: float = 0.5
    similarity: Similarity | None = None

    def __post_init__(self) -> None:
        if self.year not in (2007, 2012):
            raise UsageError(f"year: expected 2007 or 2012, got {self.year}")
        if not 0 < self.iou_threshold <= 1:
            raise UsageError(f"iou_threshold: expected a number in (0, 1], got {self.iou_threshold}")

    @property
    def detection_limit(self) -> None:
        """No limit."""

    def match(
        self,
        ground_truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        categories: Categories,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
    ) -> MatchResults:
        """Match the detections of ``ranked`` by VOC's rule; ``sizes_hw`` is not needed for boxes."""
        if self.similarity is not None:
            ground_truth, predictions = self.similarity.view(ground_truth, predictions, sizes_hw=sizes_hw)
        true = ranked.ground_truths
        ignored = ground_truth.is_crowd[true]
        if "difficult" in ground_truth.columns:
            ignored = ignored | ground_truth.columns["difficult"][true].astype(bool)
        if self.similarity is None:
            pairs = box_pairs(ground_truth, predictions, ranked, min_similarity=self.iou_threshold)
        else:
            pairs = self.similarity.pairs(
                ground_truth, predictions, ranked, sizes_hw=sizes_hw, min_similarity=self.iou_threshold
            )
        rows, candidates = pairs.rows()
        offsets = np.append(pairs.offsets[candidates], pairs.offsets[-1])
        positives = np.bincount(ground_truth.labels[true[~ignored]], minlength=len(categories))
        return MatchResults(
            labels=predictions.labels[ranked.detections],
            image_index=predictions.image_index[ranked.detections],
            ranks=ranked.ranks,
            scores=ranked.scores,
            ignored_unmatched=np.zeros((len(ranked.detections), 1), dtype=bool),
            rows=rows,
            outcomes=kernels.match_by_best_overlap(
                offsets,
                pairs.ground_truths,
                pairs.similarities,
                self.iou_threshold,
                ignored,
                ground_truth.is_crowd[true],
            ),
            positives=positives[:, None],
        )

    def figures(self, matches: MatchResults, categories: Categories) -> "VocResult":
        """Compute AP of each category and their mean."""
        outcomes = np.full(len(matches.labels), Outcome.FALSE_POSITIVE, dtype=np.uint8)
        has_row = matches.rows >= 0
        outcomes[has_row] = matches.outcomes[matches.rows[has_row], 0, 0]
        starts = np.searchsorted(matches.labels, np.arange(len(categories) + 1))
        average = {}
        for label, name in enumerate(categories):
            here = slice(starts[label], starts[label + 1])
            by_score = outcomes[here][np.argsort(-matches.scores[here], kind="stable")]
            average[name] = self._average_precision(by_score, int(matches.positives[label, 0]))
        return VocResult(self, categories, average)

    def _average_precision(self, outcomes: np.ndarray, positives: int) -> float:
        if positives == 0:
            return float("nan")
        found = np.cumsum(outcomes == Outcome.TRUE_POSITIVE)
        recall = found / positives
        precision = found / np.maximum(found + np.cumsum(outcomes == Outcome.FALSE_POSITIVE), 1)
        if self.year == 2007:
            return float(interpolate(precision, recall, np.arange(11) * 0.1).mean())
        return area_under_curve(precision, recall)


def area_under_curve(precision: Float[np.ndarray, "d"], recall: Float[np.ndarray, "d"]) -> float:
    """The whole area under the interpolated precision-recall curve.

    >>> area_under_curve(np.array([1, 0.5, 2 / 3]), np.array([0.5, 0.5, 1.0])).__round__(4)
    0.8333
    """
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope(precision)).sum()) if len(recall) else 0.0


@dataclass(frozen=True, eq=False)
class VocResult:
    """AP by category, NaN where a category has no objects to find."""

    protocol: VocProtocol
    categories: Categories
    average_precision: Mapping[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """AP, the mean over categories, under that name and under the one that says the IoU: AP50."""
        defined = [value for value in self.average_precision.values() if not np.isnan(value)]
        return self._named(float(np.mean(defined)) if defined else float("nan"))

    @property
    def per_category(self) -> dict[str, dict[str, float]]:
        """The same of each category."""
        return {name: self._named(value) for name, value in self.average_precision.items()}

    def _named(self, value: float) -> dict[str, float]:
        return {"AP": value, f"AP{round(100 * self.protocol.iou_threshold)}": value}
