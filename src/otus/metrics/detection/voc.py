"""Pascal VOC's average precision: of 2007 (11 points), and from 2010 on (area under the curve), here called 2012.

Everingham et al., The Pascal Visual Object Classes Challenge: A Retrospective, IJCV 2015, and the development kit's
``VOCevaldet.m``:

- a detection is compared only with the ground truth of its category of highest IoU; if the IoU is 0.5 or more, the
  first such detection is a true positive, later ones are false positives (duplicates);
- objects marked ``difficult`` are not positives, and detections of them are ignored;
- there is no limit on detections;
- 2007: AP is the mean of the interpolated precision at recall 0, 0.1 … 1; later: the area under the interpolated curve.

Departures: crowds (of other data sets) are not positives, and a false positive is ignored if at least half of it lies
in one (:mod:`otus.metrics.detection.ignore_regions`); AP of a category without objects is NaN, not 0; equal scores keep
their order. Boxes need no "+ 1": pixels 1 to 10 of an annotation are read as [0, 10), which has the same width.

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
    """Pascal VOC's protocol; uses the column ``difficult`` of the ground truth if it has one.

    Parameters
    ----------
    year
        2007: mean precision at 11 recalls; 2012: area under the curve.
    iou_threshold
        Minimum IoU of a true positive.
    similarity
        Similarity to use (default: IoU of boxes).
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
        ground_truths = ranked.ground_truths
        ignored = ground_truth.is_crowd[ground_truths]
        if "difficult" in ground_truth.columns:
            ignored = ignored | ground_truth.columns["difficult"][ground_truths].astype(bool)
        if self.similarity is None:
            pairs = box_pairs(ground_truth, predictions, ranked, min_similarity=self.iou_threshold)
        else:
            pairs = self.similarity.pairs(
                ground_truth, predictions, ranked, sizes_hw=sizes_hw, min_similarity=self.iou_threshold
            )
        rows, candidates = pairs.rows()
        offsets = np.append(pairs.offsets[candidates], pairs.offsets[-1])
        positives = np.bincount(ground_truth.labels[ground_truths[~ignored]], minlength=len(categories))
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
                ground_truth.is_crowd[ground_truths],
            ),
            positives=positives[:, None],
        )

    def figures(self, matches: MatchResults, categories: Categories) -> "VocResult":
        """Compute AP of each category and their mean."""
        outcomes = np.full(len(matches.labels), Outcome.FALSE_POSITIVE, dtype=np.uint8)
        has_row = matches.rows >= 0
        outcomes[has_row] = matches.outcomes[matches.rows[has_row], 0, 0]
        starts = np.searchsorted(matches.labels, np.arange(len(categories) + 1))
        average_precision = {}
        for label, name in enumerate(categories):
            rows = slice(starts[label], starts[label + 1])
            by_score = outcomes[rows][np.argsort(-matches.scores[rows], kind="stable")]
            average_precision[name] = self._average_precision(by_score, int(matches.positives[label, 0]))
        return VocResult(self, categories, average_precision)

    def _average_precision(self, outcomes: np.ndarray, positives: int) -> float:
        if positives == 0:
            return float("nan")
        true_positives = np.cumsum(outcomes == Outcome.TRUE_POSITIVE)
        recall = true_positives / positives
        precision = true_positives / np.maximum(true_positives + np.cumsum(outcomes == Outcome.FALSE_POSITIVE), 1)
        if self.year == 2007:
            return float(interpolate(precision, recall, np.arange(11) * 0.1).mean())
        return area_under_curve(precision, recall)


def area_under_curve(precision: Float[np.ndarray, "d"], recall: Float[np.ndarray, "d"]) -> float:
    """Return the area under the interpolated precision-recall curve.

    >>> area_under_curve(np.array([1, 0.5, 2 / 3]), np.array([0.5, 0.5, 1.0])).__round__(4)
    0.8333
    """
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope(precision)).sum()) if len(recall) else 0.0


@dataclass(frozen=True, eq=False)
class VocResult:
    """AP by category; NaN for a category without objects."""

    protocol: VocProtocol
    categories: Categories
    average_precision: Mapping[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """Mean AP over categories, as ``AP`` and under the name with the IoU threshold, ``AP50``."""
        defined = [value for value in self.average_precision.values() if not np.isnan(value)]
        return self._with_iou_name(float(np.mean(defined)) if defined else float("nan"))

    @property
    def per_category(self) -> dict[str, dict[str, float]]:
        """AP of each category, under the same names."""
        return {name: self._with_iou_name(value) for name, value in self.average_precision.items()}

    def _with_iou_name(self, value: float) -> dict[str, float]:
        return {"AP": value, f"AP{round(100 * self.protocol.iou_threshold)}": value}
