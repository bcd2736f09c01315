"""Check that records have the field that a protocol compares."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from otus.errors import DataError, UsageError
from otus.structures import Objects, SegmentationKind

_OPTIONAL = ("amodal_boxes_xyxy",)  # an object without an amodal box is not occluded


def require_field(
    objects: Objects, field: str, side: str, *, report: Callable[[DataError], object] | None = None
) -> Objects:
    """Drop objects whose field is missing or invalid.

    Fields are ``segmentations``, ``corners_xy``, ``cuboids`` and ``amodal_boxes_xyxy``. Numbers must be finite and
    sizes not negative. Crowds may lack the field; any object may lack ``amodal_boxes_xyxy``. ``report`` is called with
    a DataError for each invalid record (default: raise the first).

    Raises
    ------
    UsageError
        If no object has the field.
    """
    values = getattr(objects, field)
    if values is None:
        if len(objects) and field not in _OPTIONAL:
            where = "ground truth has" if side == "ground_truth" else "predictions have"
            raise UsageError(f"{field}: the {where} none; choose a protocol for other labels, e.g. coco")
        return objects
    numbers: Float[np.ndarray, "n v"]
    if field == "segmentations":
        numbers = np.where(objects.segmentations.kinds != SegmentationKind.NONE, 0.0, np.nan)[:, None]  # type: ignore[union-attr]
    else:
        numbers = values.reshape(len(objects), math.prod(values.shape[1:]))
    is_finite: Bool[np.ndarray, "n"] = np.isfinite(numbers).all(axis=1)
    has_valid_size: Bool[np.ndarray, "n"] = np.greater_equal(_sizes(field, numbers), 0).all(axis=1)
    is_exempt: Bool[np.ndarray, "n"] = np.isnan(numbers).all(axis=1) if field in _OPTIONAL else objects.is_crowd
    valid = is_exempt | (is_finite & has_valid_size)
    for record in np.flatnonzero(~valid).tolist():
        expected = "finite numbers" if not is_finite[record] else "sizes of 0 or more"
        problem = "expected a segmentation, got none"
        if field != "segmentations":
            problem = f"expected {expected}, got {values[record].tolist()}"
        error = DataError(
            problem,
            where=f"{side}[{record}] (id {objects.ids[record]}).{field}",
            remedy="correct or remove this record",
            kind=f"bad_{field}",
        )
        if report is None:
            raise error
        report(error)
    return objects if valid.all() else objects.take(valid)


def _sizes(field: str, numbers: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n s"]:
    """Return the sizes among the numbers, which must not be negative."""
    if field == "cuboids":
        return numbers[:, 3:6]
    if field == "amodal_boxes_xyxy":
        return numbers[:, 2:] - numbers[:, :2]
    return np.zeros((len(numbers), 1))
