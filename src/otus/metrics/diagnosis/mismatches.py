"""Detect predictions whose image or category ids do not match the data set, a common cause of figures near 0.

Tools number categories differently (from 0, from 1, COCO's 80 as 1..90), and ids that happen to exist give figures of 0
without an error. Here they are compared with the ids of the objects that the predictions overlap, of any category.

Shape shorthand: K categories.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.confusion import confusion_matrix
from otus.structures import Categories, Objects
from otus.structures.categories import COCO_IDS

_MIN_IOU = 0.1  # of a box and an object that it overlaps
_FEW, _MOST = 0.05, 0.5  # fractions of the predictions


def id_conventions(category_ids: Sequence[int]) -> dict[str, Int[np.ndarray, "k"]]:
    """Return the ids (K,) that other tools may write for these category ids, by description of the convention.

    >>> id_conventions([0, 1, 2])["the data's plus 1"].tolist()
    [1, 2, 3]
    """
    ids, positions = np.asarray(category_ids, dtype=np.int64), np.arange(len(category_ids))
    conventions = {
        "the data's plus 1": ids + 1,
        "the data's minus 1": ids - 1,
        "positions in the data's list of categories, from 0": positions,
        "positions in the data's list of categories, from 1": positions + 1,
    }
    if len(ids) == len(COCO_IDS):
        conventions["COCO's 1 to 90 of its 80 categories"] = np.array(COCO_IDS)
    return {name: other_ids for name, other_ids in conventions.items() if not np.array_equal(other_ids, ids)}


def guess_id_convention(used: Sequence[int] | np.ndarray, category_ids: Sequence[int]) -> str | None:
    """Return the first convention that includes all ids used in a file; None if there is none.

    >>> guess_id_convention([2, 3], [0, 1, 2])
    "the data's plus 1"
    """
    return next((name for name, ids in id_conventions(category_ids).items() if np.isin(used, ids).all()), None)


def category_notes(confusion: Int[np.ndarray, "k k"], categories: Categories) -> list[str]:
    """Return a warning if a confusion matrix (rows: ground truth) shows ids of another convention."""
    total, correct = int(confusion.sum()), int(np.trace(confusion))
    if correct >= _FEW * total or len(categories) < 2:
        return []
    ids = np.array(categories.ids)
    for name, other_ids in id_conventions(categories.ids).items():
        if confusion[other_ids[:, None] == ids].sum() >= _MOST * total:
            return [f"predictions overlap objects of other categories: their category ids seem to be {name}"]
    return [f"predictions overlap objects of other categories ({correct} of {total} agree): compare category ids"]


def lowest_score_threshold(predictions: Objects) -> float | None:
    """Return the lowest score threshold that ``otus predict`` applied; None if it applied none."""
    thresholds = predictions.columns.get("score_threshold", np.zeros(0))
    finite = (
        thresholds[np.isfinite(thresholds)] if thresholds.dtype.kind == "f" and thresholds.ndim == 1 else np.zeros(0)
    )
    return float(finite.min()) if len(finite) else None


def score_threshold_notes(predictions: Objects) -> list[str]:
    """Return a warning if a score threshold was applied to the predictions before they were written."""
    threshold = lowest_score_threshold(predictions)
    if threshold is None:
        return []
    return [
        f"otus predict applied the score threshold {threshold:g} to these predictions, which lowers recall and AP; "
        "predict again with --score-threshold 0, or evaluate the model by --model"
    ]


def mismatch_notes(matcher: DetectionMatcher, *, by_category: bool = True) -> list[str]:
    """Return a warning if predicted boxes rarely overlap objects, or overlap objects of other categories.

    Parameters
    ----------
    by_category
        Whether predictions have categories.
    """
    count = len(matcher.predictions)
    if not count or not (~matcher.ground_truth.is_crowd).any():
        return []
    counts = confusion_matrix(matcher, iou=_MIN_IOU).counts
    matched = int(counts[:-1, :-1].sum())
    if matched >= _FEW * min(count, counts[:-1].sum()):
        return category_notes(counts[:-1, :-1], matcher.categories) if by_category else []
    are_fractions = matcher.predictions.boxes_xyxy.max() <= 1
    cause = (
        "they look like fractions of the image"
        if are_fractions
        else "compare image ids, and boxes: [x, y, width, height]"
    )
    number = "none" if not matched else f"{matched}"
    return [f"{number} of the {count} predictions overlaps an object (IoU {_MIN_IOU} or more): {cause}"]
