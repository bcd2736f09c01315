"""What becomes of each detection: it takes a true object, or is false, or does not count.

Shape shorthand: D detections, G true objects, A area ranges, T thresholds, K categories, C detections that overlap some
true object enough to take it at the lowest threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus.metrics.detection import _matching_kernels as kernels
from otus.metrics.detection.pairs import Pairs


class Verdict(IntEnum):
    """What a detection is at one threshold and area range."""

    FALSE = kernels.FALSE
    TRUE = kernels.TRUE
    IGNORED = kernels.IGNORED


@dataclass(frozen=True, eq=False)
class MatchResults:
    """The D detections that count with their verdicts, and how many objects there were to find.

    The verdicts of a detection without a candidate are the same at every threshold, so only the C others have a row.

    Parameters
    ----------
    labels, scores
        (D,).
    image_index
        (D,) index of the image.
    ranks
        (D,) place by score within label and image, from 0.
    ignored_unmatched
        (D, A) whether it does not count where it takes no true object: outside the area range.
    rows
        (D,) row of ``verdicts``, -1 for a detection that overlaps nothing.
    verdicts
        (C, A, T) of :class:`Verdict`.
    positives
        (K, A) true objects that count.
    """

    labels: Int[np.ndarray, "d"]
    image_index: Int[np.ndarray, "d"]
    ranks: Int[np.ndarray, "d"]
    scores: Float[np.ndarray, "d"]
    ignored_unmatched: Bool[np.ndarray, "d a"]
    rows: Int[np.ndarray, "d"]
    verdicts: UInt8[np.ndarray, "c a t"]
    positives: Int[np.ndarray, "k a"]

    @classmethod
    def merge(cls, parts: Sequence["MatchResults"]) -> "MatchResults":
        """The outcomes of images that were judged apart; ``image_index`` must already count through all of them."""
        if len(parts) == 1:
            return parts[0]
        before = np.cumsum([0, *(len(part.verdicts) for part in parts)])
        rows = [np.where(part.rows < 0, -1, part.rows + first) for part, first in zip(parts, before, strict=False)]
        names = ("labels", "image_index", "ranks", "scores", "ignored_unmatched", "verdicts")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**columns, rows=np.concatenate(rows), positives=np.sum([part.positives for part in parts], axis=0))

    def in_order(self, image_order: Int[np.ndarray, "m"]) -> "MatchResults":
        """Detections by label, then by the place that ``image_order`` gives their image, then by rank."""
        place = self.labels.astype(np.int64) * (len(image_order) + 1) + image_order[self.image_index]
        if (np.diff(place) >= 0).all():
            return self
        order = np.argsort(place, kind="stable")
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
    """``rows`` and ``verdicts`` of :class:`MatchResults`: every detection matched by :func:`match_image`'s rule.

    ``ignored`` says which true objects do not count in which area range; ``crowd`` which may be taken many times.
    """
    rows, candidates = pairs.rows()
    offsets = np.append(pairs.offsets[candidates], pairs.offsets[-1])
    unmatched = ignored_unmatched[candidates]
    verdicts = kernels.match_greedily(offsets, pairs.truths, pairs.similarities, thresholds, ignored, crowd, unmatched)
    return rows, verdicts


def match_image(
    similarities: Float[np.ndarray, "d g"],
    threshold: float,
    *,
    ignored: Bool[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
) -> Int[np.ndarray, "d"]:
    """The true object that each detection of one image and label takes, -1 for none; detections by falling score.

    Each detection in turn takes the most similar true object that is still free and at least ``threshold`` similar; of
    equals the last. One that counts goes before one that is ignored, however similar. A crowd is never used up.

    This is the rule in plain words; what runs is its compiled twin over all images, labels and thresholds.

    >>> match_image(np.array([[0.6, 0.8], [0.7, 0.9]]), 0.5, ignored=np.zeros(2, bool), crowd=np.zeros(2, bool)).tolist()
    [1, 0]
    """
    matched = np.full(len(similarities), -1)
    taken = np.zeros(len(ignored), dtype=bool)
    for detection, row in enumerate(similarities):
        for group in (~ignored, ignored):
            free = np.flatnonzero(group & (~taken | crowd) & (row >= min(threshold, 1 - 1e-10)))
            if len(free):
                best = free[row[free] == row[free].max()][-1]
                matched[detection], taken[best] = best, True
                break
    return matched
