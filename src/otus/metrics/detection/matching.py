"""Matching of detections to ground truths: which detections are true positives, false positives, or ignored.

Shape shorthand: D detections, G ground truths, A area ranges, T thresholds, K categories, C candidates: detections that
are in at least one pair, i.e. that reach the lowest threshold with some ground truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus.metrics.detection import _matching_kernels as kernels
from otus.metrics.detection.pairs import Pairs

_NO_PAIRS = np.zeros((0, 0, 0), dtype=np.int64)


class Outcome(IntEnum):
    """Outcome of a detection at one threshold and area range."""

    FALSE_POSITIVE = kernels.FALSE_POSITIVE
    TRUE_POSITIVE = kernels.TRUE_POSITIVE
    IGNORED = kernels.IGNORED


@dataclass(frozen=True, eq=False)
class MatchResults:
    """Outcomes of the D detections within the protocol's limit, and the numbers of positives.

    The outcome of a detection that is no candidate is the same at every threshold, so only the C candidates have a row.

    Parameters
    ----------
    labels, image_index, scores
        (D,).
    ranks
        (D,) rank by falling score within label and image, from 0.
    ignored_unmatched
        (D, A) whether an unmatched detection is ignored: its area is outside the area range.
    rows
        (D,) row of ``outcomes``, -1 for a detection that is no candidate.
    outcomes
        (C, A, T) of :class:`Outcome`.
    positives
        (K, A) numbers of ground truths that are not ignored.
    """

    labels: Int[np.ndarray, "d"]
    image_index: Int[np.ndarray, "d"]
    ranks: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    ignored_unmatched: Bool[np.ndarray, "d a"]
    rows: Int[np.ndarray, "d"]
    outcomes: UInt8[np.ndarray, "c a t"]
    positives: Int[np.ndarray, "k a"]

    @classmethod
    def merge(cls, parts: Sequence["MatchResults"]) -> "MatchResults":
        """Concatenate the results of different images, whose ``image_index`` must already run through all of them."""
        if len(parts) == 1:
            return parts[0]
        before = np.cumsum([0, *(len(part.outcomes) for part in parts)])
        rows = [np.where(part.rows < 0, -1, part.rows + first) for part, first in zip(parts, before, strict=False)]
        names = ("labels", "image_index", "ranks", "scores", "ignored_unmatched", "outcomes")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**columns, rows=np.concatenate(rows), positives=np.sum([part.positives for part in parts], axis=0))

    def in_order(self, image_order: Int[np.ndarray, "m"]) -> "MatchResults":
        """Sort detections by label, then by the rank that ``image_order`` (M,) gives their image, then by their own rank."""
        key = self.labels.astype(np.int64) * (len(image_order) + 1) + image_order[self.image_index]
        if (np.diff(key) >= 0).all():
            return self
        order = np.argsort(key, kind="stable")
        names = ("labels", "image_index", "ranks", "scores", "ignored_unmatched", "rows")
        return replace(self, **{name: getattr(self, name)[order] for name in names})


def match_greedily(
    pairs: Pairs,
    *,
    thresholds: Float[np.ndarray, "t"],
    ignored: Bool[np.ndarray, "g a"],
    crowd: Bool[np.ndarray, "g"],
    ignored_unmatched: Bool[np.ndarray, "d a"],
) -> tuple[Int[np.ndarray, "d"], UInt8[np.ndarray, "c a t"]]:
    """Match detections as :func:`match_image` does, over all images, labels, area ranges and thresholds at once.

    Parameters
    ----------
    thresholds
        (T,) lowest similarities.
    ignored
        (G, A) ground truths that are ignored in each area range.
    crowd
        (G,) ground truths that any number of detections may match.
    ignored_unmatched
        (D, A) detections that are ignored, not false positives, where they are unmatched.

    Returns
    -------
    rows, outcomes
        (D,) and (C, A, T), see :class:`MatchResults`.
    """
    rows, candidates = pairs.rows()
    offsets = np.append(pairs.offsets[candidates], pairs.offsets[-1])
    unmatched = ignored_unmatched[candidates]
    outcomes = kernels.match_greedily(
        offsets, pairs.truths, pairs.similarities, thresholds, ignored, crowd, unmatched, _NO_PAIRS
    )
    return rows, outcomes


def match_image(
    similarities: Float[np.ndarray, "d g"],
    threshold: float,
    *,
    ignored: Bool[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
) -> Int[np.ndarray, "d"]:
    """Return the ground truth that each detection of one image and label is matched to, -1 for none.

    Detections are ordered by falling score. Each in turn is matched to the ground truth of highest similarity among those
    of at least ``threshold`` that are unmatched (the last of ties). Any ground truth that is not ignored is preferred to
    one that is. A crowd may be matched any number of times.

    This is the readable reference of the compiled :func:`match_greedily`.

    >>> match_image(np.array([[0.6, 0.8], [0.7, 0.9]]), 0.5, ignored=np.zeros(2, bool), crowd=np.zeros(2, bool)).tolist()
    [1, 0]
    """
    matched = np.full(len(similarities), -1)
    used = np.zeros(len(ignored), dtype=bool)
    for detection, row in enumerate(similarities):
        for group in (~ignored, ignored):
            free = np.flatnonzero(group & (~used | crowd) & (row >= min(threshold, 1 - 1e-10)))
            if len(free):
                best = free[row[free] == row[free].max()][-1]
                matched[detection], used[best] = best, True
                break
    return matched
