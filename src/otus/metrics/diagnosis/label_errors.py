"""Labels that are probably wrong, and the images with most mistakes: what to look at first.

A confident detection where nothing is labelled is often an object that was forgotten; a confident detection on an object of
another category often a wrong name; a label that no detection comes near often no object. None of it is proof: these are
candidates, the most suspicious first.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from otus.metrics.detection.matching import Outcome
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.tide import Error, Errors

Suspicion = Literal["missing_label", "wrong_category", "nobody_finds"]


@dataclass(frozen=True)
class Suspect:
    """A record that looks wrong.

    Parameters
    ----------
    kind
        ``missing_label``: a detection on nothing; ``wrong_category``: one on an object that has another name;
        ``nobody_finds``: an object without any detection near it.
    image_index
        Index of the image.
    detection, truth
        Index of the prediction and of the true object, -1 where it is about none.
    score
        Of the detection, 0 without one.
    """

    kind: Suspicion
    image_index: int
    detection: int
    truth: int
    score: float


def find_label_errors(matcher: DetectionMatcher, errors: Errors, *, score_threshold: float = 0.5) -> list[Suspect]:
    """Find suspicious labels: from detections by falling score, then undetected objects by falling area.

    Parameters
    ----------
    errors
        Of the same comparison.
    score_threshold
        Minimum score of the detections considered.
    """
    matches = errors.matches
    confident = matches.scores >= score_threshold
    kinds: list[tuple[Suspicion, Error]] = [
        ("missing_label", Error.BACKGROUND), ("wrong_category", Error.CLASSIFICATION)
    ]  # fmt: skip
    suspects = []
    for kind, error in kinds:
        for i in np.flatnonzero(confident & (errors.types == error)):
            # An object that is also found under its own name is rather one thing seen twice.
            if errors.about[i] < 0 or not errors.found[errors.about[i]]:
                place = int(matches.image_index[i]), int(matches.detections[i]), int(errors.about[i])
                suspects.append(Suspect(kind, *place, float(matches.scores[i])))
    suspects.sort(key=lambda one: -one.score)
    alone = errors.matches.is_positive & ~_is_near_detection(matcher, errors)
    by_area = np.flatnonzero(alone)[np.argsort(-matcher.truth.areas[alone], kind="stable")]
    suspects += [Suspect("nobody_finds", int(matcher.truth.image_index[g]), -1, int(g), 0.0) for g in by_area]
    return suspects


def _is_near_detection(matcher: DetectionMatcher, errors: Errors) -> Bool[np.ndarray, "g"]:
    """Return (G,) ground truths with an IoU above the background threshold with any detection."""
    touched = np.zeros(len(matcher.truth), dtype=bool)
    _, truths, _ = matcher.pairs(min_iou=errors.background_iou)
    touched[truths] = True
    return touched


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """True positives, false positives and false negatives of M images at a score threshold."""

    right: Int[np.ndarray, "m"]
    false: Int[np.ndarray, "m"]
    unfound: Int[np.ndarray, "m"]

    @property
    def f1(self) -> np.ndarray:
        """(M,) NaN where there is neither object nor detection."""
        total = 2 * self.right + self.false + self.unfound
        return np.divide(2 * self.right, total, out=np.full(len(total), np.nan), where=total > 0)

    def worst(self, count: int) -> list[int]:
        """Images with mistakes, those with the most first, of equals the one of lower F1."""
        mistakes = self.false + self.unfound
        order = np.lexsort((np.nan_to_num(self.f1), -mistakes))
        return [int(one) for one in order[:count] if mistakes[one] > 0]


def count_by_image(matcher: DetectionMatcher, errors: Errors, *, score_threshold: float = 0.5) -> ImageCounts:
    """Count by image the outcomes of the detections of at least ``score_threshold``."""
    matches, count = errors.matches, len(matcher.image_ids)
    shown = matches.scores >= score_threshold
    outcomes = matches.outcomes[:, 0]
    right = np.bincount(matches.image_index[shown & (outcomes == Outcome.TRUE_POSITIVE)], minlength=count)
    false = np.bincount(matches.image_index[shown & (outcomes == Outcome.FALSE_POSITIVE)], minlength=count)
    objects = np.bincount(matcher.truth.image_index[matches.is_positive], minlength=count)
    return ImageCounts(right, false, objects - right)
