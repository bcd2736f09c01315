"""Find labels that are probably wrong, and the images with the most errors.

A confident detection without a label is often an object that was not labelled; one on an object of another category is
often a wrong label; a label without any detection near it is often no object. These are candidates, most probable
first.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from otus.metrics.detection.matching import Outcome
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.tide import Error, Errors

LabelErrorKind = Literal["missing_label", "wrong_category", "no_detection"]


@dataclass(frozen=True)
class LabelError:
    """A label that is probably wrong or missing.

    Parameters
    ----------
    kind
        ``missing_label``: a detection without an object; ``wrong_category``: a detection on an object of another
        category; ``no_detection``: an object without any detection near it.
    image_index
        Index of the image.
    detection, ground_truth
        Index of the prediction and of the ground truth, -1 if there is none.
    score
        Score of the detection, 0 if there is none.
    """

    kind: LabelErrorKind
    image_index: int
    detection: int
    ground_truth: int
    score: float


def find_label_errors(matcher: DetectionMatcher, errors: Errors, *, score_threshold: float = 0.5) -> list[LabelError]:
    """Find probable label errors: from detections by descending score, then undetected objects by descending area.

    Parameters
    ----------
    errors
        Errors of the same matcher.
    score_threshold
        Minimum score of the detections considered.
    """
    matches = errors.matches
    is_confident = matches.scores >= score_threshold
    kinds: list[tuple[LabelErrorKind, Error]] = [
        ("missing_label", Error.BACKGROUND), ("wrong_category", Error.CLASSIFICATION)
    ]  # fmt: skip
    label_errors = []
    for kind, error in kinds:
        for i in np.flatnonzero(is_confident & (errors.types == error)):
            # If the object is also detected with its own category, this is a duplicate rather than a label error.
            ground_truth = int(errors.nearest_gt[i])
            if ground_truth < 0 or not errors.is_matched[ground_truth]:
                indices = int(matches.image_index[i]), int(matches.detections[i]), ground_truth
                label_errors.append(LabelError(kind, *indices, float(matches.scores[i])))
    label_errors.sort(key=lambda error: -error.score)
    is_undetected = errors.matches.is_positive & ~_is_near_detection(matcher, errors)
    by_area = np.flatnonzero(is_undetected)[np.argsort(-matcher.ground_truth.areas[is_undetected], kind="stable")]
    label_errors += [
        LabelError("no_detection", int(matcher.ground_truth.image_index[g]), -1, int(g), 0.0) for g in by_area
    ]
    return label_errors


def _is_near_detection(matcher: DetectionMatcher, errors: Errors) -> Bool[np.ndarray, "g"]:
    """Return (G,) which ground truths have at least the background IoU with any detection."""
    is_near = np.zeros(len(matcher.ground_truth), dtype=bool)
    _, ground_truths, _ = matcher.pairs(min_iou=errors.background_iou)
    is_near[ground_truths] = True
    return is_near


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """True positives, false positives and false negatives of M images at a score threshold."""

    true_positives: Int[np.ndarray, "m"]
    false_positives: Int[np.ndarray, "m"]
    false_negatives: Int[np.ndarray, "m"]

    @property
    def f1(self) -> np.ndarray:
        """(M,) F1 of each image; NaN if it has neither object nor detection."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return np.divide(2 * self.true_positives, total, out=np.full(len(total), np.nan), where=total > 0)

    def worst(self, count: int) -> list[int]:
        """Return the indices of the images with the most errors (ties: lower F1 first)."""
        errors = self.false_positives + self.false_negatives
        order = np.lexsort((np.nan_to_num(self.f1), -errors))
        return [int(image) for image in order[:count] if errors[image] > 0]


def count_by_image(matcher: DetectionMatcher, errors: Errors, *, score_threshold: float = 0.5) -> ImageCounts:
    """Count the outcomes of detections with at least ``score_threshold`` in each image."""
    matches, count = errors.matches, len(matcher.image_ids)
    is_confident = matches.scores >= score_threshold
    outcomes = matches.outcomes[:, 0]
    true_positives = np.bincount(
        matches.image_index[is_confident & (outcomes == Outcome.TRUE_POSITIVE)], minlength=count
    )
    false_positives = np.bincount(
        matches.image_index[is_confident & (outcomes == Outcome.FALSE_POSITIVE)], minlength=count
    )
    objects = np.bincount(matcher.ground_truth.image_index[matches.is_positive], minlength=count)
    return ImageCounts(true_positives, false_positives, objects - true_positives)
