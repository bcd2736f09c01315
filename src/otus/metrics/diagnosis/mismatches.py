"""Predictions whose image or category ids do not fit the data set: what to check before a figure near 0 is believed.

Tools count categories differently (from 0, from 1, COCO's 80 as 1..90), and ids that fit by chance give figures of 0
without an error. Here the ids are laid beside the objects that the predictions lie on, whatever the category.

Shape shorthand: K categories.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.confusion import confusion_matrix
from otus.structures import Categories, Objects
from otus.structures.categories import COCO_IDS

_OVERLAP = 0.1  # IoU from which a box lies on an object
_FEW, _MOST = 0.05, 0.5


def id_conventions(category_ids: Sequence[int]) -> dict[str, Int[np.ndarray, "k"]]:
    """Return the ids (K,) that other tools may write for these category ids, by a description of each convention.

    >>> id_conventions([0, 1, 2])["the data's plus 1"].tolist()
    [1, 2, 3]
    """
    ids, places = np.asarray(category_ids, dtype=np.int64), np.arange(len(category_ids))
    readings = {
        "the data's plus 1": ids + 1,
        "the data's minus 1": ids - 1,
        "places in the data's list of categories, from 0": places,
        "places in the data's list of categories, from 1": places + 1,
    }
    if len(ids) == len(COCO_IDS):
        readings["COCO's 1 to 90 of its 80 categories"] = np.array(COCO_IDS)
    return {name: one for name, one in readings.items() if not np.array_equal(one, ids)}


def guess_id_convention(used: Sequence[int] | np.ndarray, category_ids: Sequence[int]) -> str | None:
    """Return the first convention whose ids include all those used in a file, None where there is none.

    >>> guess_id_convention([2, 3], [0, 1, 2])
    "the data's plus 1"
    """
    return next((name for name, ids in id_conventions(category_ids).items() if np.isin(used, ids).all()), None)


def category_notes(confusion: Int[np.ndarray, "k k"], categories: Categories) -> list[str]:
    """What a confusion matrix (rows true, columns predicted) says of ids that are counted differently; nothing if fine."""
    total, right = int(confusion.sum()), int(np.trace(confusion))
    if right >= _FEW * total or len(categories) < 2:
        return []
    ids = np.array(categories.ids)
    for name, meant in id_conventions(categories.ids).items():
        if confusion[meant[:, None] == ids].sum() >= _MOST * total:
            return [f"predictions lie on objects of other categories: their category ids seem to be {name}"]
    return [f"predictions lie on objects of other categories ({right} of {total} right): compare category ids"]


def lowest_score_threshold(predictions: Objects) -> float | None:
    """Return the least of the score thresholds that ``otus predict`` cut the predictions at; None where it cut none."""
    cut = predictions.columns.get("score_threshold", np.zeros(0))
    known = cut[np.isfinite(cut)] if cut.dtype.kind == "f" and cut.ndim == 1 else np.zeros(0)
    return float(known.min()) if len(known) else None


def score_threshold_notes(predictions: Objects) -> list[str]:
    """Return what to know of predictions that were cut at a score threshold before they were written; nothing if not."""
    threshold = lowest_score_threshold(predictions)
    if threshold is None:
        return []
    return [
        f"the predictions were cut at a score of {threshold:g} by otus predict: recall and AP are lower than the model's "
        "own; predict again with --score-threshold 0, or judge the model by --model"
    ]


def mismatch_notes(matcher: DetectionMatcher, *, by_category: bool = True) -> list[str]:
    """What to know of predicted boxes that nearly never lie on an object, or on objects of other categories.

    Parameters
    ----------
    by_category
        Whether the categories of predictions mean anything.
    """
    found = len(matcher.predictions)
    if not found or not (~matcher.truth.is_crowd).any():
        return []
    counts = confusion_matrix(matcher, iou=_OVERLAP).counts
    matched = int(counts[:-1, :-1].sum())
    if matched >= _FEW * min(found, counts[:-1].sum()):
        return category_notes(counts[:-1, :-1], matcher.categories) if by_category else []
    fractions = matcher.predictions.boxes_xyxy.max() <= 1
    cause = (
        "they look like fractions of the image" if fractions else "compare image ids, and boxes: [x, y, width, height]"
    )
    what = "none" if not matched else f"{matched}"
    return [f"{what} of the {found} predictions lies on an object (IoU {_OVERLAP} or more): {cause}"]
