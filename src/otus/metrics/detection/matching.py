"""Matching of detections to ground truths: which detections are true positives, false positives, or ignored.

Shape shorthand: D detections, G ground truths, A area ranges, T similarity thresholds, K categories, C candidates. A
candidate is a detection whose similarity (IoU or OKS) to at least one ground truth of its image and label reaches the
lowest threshold; all other detections are unmatched at every threshold.
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
    """Outcome of each detection per area range and threshold, and number of positives per category and area range.

    The D detections are those within the protocol's limit per image and category, if it has one. ``outcomes`` has rows
    for the C candidates only: the outcome of any other detection is the same at every threshold and follows from
    ``ignored_unmatched``.

    Parameters
    ----------
    labels
        (D,) label of each detection, an index into the K categories.
    image_index
        (D,) index of the image of each detection.
    ranks
        (D,) rank of each detection by descending score among those of its label and image, from 0.
    scores
        (D,) score of each detection.
    ignored_unmatched
        (D, A) bool, true for detections that are ignored where unmatched, because their area is outside the area range;
        the others are false positives where unmatched.
    rows
        (D,) index of each detection into the first axis of ``outcomes``, -1 for a detection that is not a candidate.
    outcomes
        (C, A, T) values of :class:`Outcome`.
    positives
        (K, A) number of ground truths that are not ignored.
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
        """Concatenate the results of disjoint sets of images and add up their positives.

        ``image_index`` of every part must already index the images of all parts together; it is not shifted.
        """
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.outcomes) for part in parts)])
        rows = [np.where(part.rows < 0, -1, part.rows + start) for part, start in zip(parts, starts, strict=False)]
        names = ("labels", "image_index", "ranks", "scores", "ignored_unmatched", "outcomes")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**columns, rows=np.concatenate(rows), positives=np.sum([part.positives for part in parts], axis=0))

    def sort(self, image_order: Int[np.ndarray, "m"]) -> "MatchResults":
        """Return the results with detections sorted by label, then by position of their image.

        Detections of the same label and image keep their order.

        Parameters
        ----------
        image_order
            (M,) position of each of the M images in the new order.
        """
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
    """Match detections to ground truths for all images, labels, area ranges and thresholds at once.

    The rule is that of :func:`match_image`.

    Parameters
    ----------
    pairs
        Detections and ground truths of the same image and label whose similarity reaches the lowest threshold; within
        an image and label, detections are ordered by descending score.
    thresholds
        (T,) minimum similarity of a match, at each threshold.
    ignored
        (G, A) bool, true for ground truths that are ignored in an area range.
    crowd
        (G,) bool, true for crowds, which any number of detections may match.
    ignored_unmatched
        (D, A) bool, true for detections that are ignored where unmatched, instead of counted as false positives.

    Returns
    -------
    rows
        (D,) index of each detection into the first axis of ``outcomes``, -1 for a detection that is not a candidate.
    outcomes
        (C, A, T) values of :class:`Outcome`.
    """
    rows, candidates = pairs.rows()
    offsets = np.append(pairs.offsets[candidates], pairs.offsets[-1])
    unmatched = ignored_unmatched[candidates]
    outcomes = kernels.match_greedily(
        offsets, pairs.ground_truths, pairs.similarities, thresholds, ignored, crowd, unmatched, _NO_PAIRS
    )
    return rows, outcomes


def match_image(
    similarities: Float[np.ndarray, "d g"],
    threshold: float,
    *,
    ignored: Bool[np.ndarray, "g"],
    crowd: Bool[np.ndarray, "g"],
) -> Int[np.ndarray, "d"]:
    """Match the detections of a single image and label to its ground truths, greedily by descending score.

    Each detection is matched to the most similar ground truth that is still unmatched and whose similarity is at least
    ``threshold``; of equal similarities, the last ground truth is chosen. Ignored ground truths are considered only if
    no other qualifies. A crowd stays available after a match.

    This is the plain NumPy reference that the compiled :func:`match_greedily` must agree with.

    Parameters
    ----------
    similarities
        (D, G) IoU or OKS, detections ordered by descending score.
    threshold
        Minimum similarity of a match, capped at 1 - 1e-10 as in pycocotools.
    ignored
        (G,) bool, true for ground truths that are ignored.
    crowd
        (G,) bool, true for crowds.

    Returns
    -------
    matched
        (D,) index of the ground truth that each detection is matched to, -1 for none.

    Examples
    --------
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
