"""Calibration of scores: whether, e.g., 80 % of the detections of score 0.8 are true positives.

Reliability bins and the expected calibration error of Guo et al., On Calibration of Modern Neural Networks, ICML 2017,
arXiv:1706.04599, section 2; a detection is accurate if it is a true positive. False negatives are not considered.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from otus.errors import UsageError
from otus.metrics.detection.matching import Outcome
from otus.metrics.diagnosis.assignment import Assignment


@dataclass(frozen=True, eq=False)
class Calibration:
    """B bins of equal width from score 0 to 1.

    Parameters
    ----------
    edges
        (B + 1,) scores between the bins.
    counts
        (B,) number of detections that are not ignored.
    confidence
        (B,) their mean score; NaN in an empty bin.
    precision
        (B,) fraction of true positives among them; NaN in an empty bin.
    """

    edges: Float[np.ndarray, "b_plus_1"]
    counts: Int[np.ndarray, "b"]
    confidence: Float[np.ndarray, "b"]
    precision: Float[np.ndarray, "b"]

    @property
    def expected_error(self) -> float:
        """ECE: mean of ``abs(confidence - precision)``, weighted by number of detections; NaN without detections."""
        if not self.counts.sum():
            return float("nan")
        return float(np.nansum(self._gaps * self.counts) / self.counts.sum())

    @property
    def maximum_error(self) -> float:
        """MCE: maximum of ``abs(confidence - precision)`` over the bins; NaN without detections."""
        return float(np.nanmax(self._gaps)) if self.counts.sum() else float("nan")

    @property
    def _gaps(self) -> Float[np.ndarray, "b"]:
        return np.abs(self.confidence - self.precision)


def calibration(matches: Assignment, *, bins: int = 10, label: int | None = None) -> Calibration:
    """Compute reliability bins at the first IoU threshold of the assignment.

    Parameters
    ----------
    label
        One category (default: all).

    Raises
    ------
    UsageError
        If a score is not in [0, 1], or there are no bins.
    """
    if bins < 1:
        raise UsageError(f"bins: expected 1 or more, got {bins}")
    is_counted = matches.outcomes[:, 0] != Outcome.IGNORED
    if label is not None:
        is_counted &= matches.labels == label
    scores = matches.scores[is_counted]
    invalid = scores[(scores < 0) | (scores > 1)]
    if len(invalid):
        raise UsageError(f"calibration: expected scores from 0 to 1, got {invalid[0]}")
    bin_index = np.minimum((scores * bins).astype(np.int64), bins - 1)
    counts = np.bincount(bin_index, minlength=bins)
    is_true = matches.outcomes[is_counted, 0] == Outcome.TRUE_POSITIVE

    def mean(values: np.ndarray) -> Float[np.ndarray, "b"]:
        sums = np.bincount(bin_index, weights=values, minlength=bins)
        return np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)

    return Calibration(np.linspace(0, 1, bins + 1), counts, mean(scores), mean(is_true))
