"""Checks that records have the field that a protocol compares."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from otus.errors import DataError, UsageError
from otus.structures import Objects, Outline

_OPTIONAL = ("amodal_boxes_xyxy",)  # an object without it is not occluded


def require_field(
    objects: Objects, field: str, side: str, *, report: Callable[[DataError], object] | None = None
) -> Objects:
    """Return the objects with a valid field: ``segmentations``, or finite ``corners_xy`` or ``cuboids``.

    Crowds may lack it, and any object may lack ``amodal_boxes_xyxy``. Sizes must not be negative. ``report``
    is called with a DataError for each other record, which names record and field (default: raise the first).

    Raises
    ------
    UsageError
        If no object has the field at all.
    """
    values = getattr(objects, field)
    if values is None:
        if len(objects) and field not in _OPTIONAL:
            raise UsageError(f"{field}: the {side} {'has' if side == 'truth' else 'have'} none")
        return objects
    numbers: Float[np.ndarray, "n v"]
    if field == "segmentations":
        numbers = np.where(objects.segmentations.kinds != Outline.NONE, 0.0, np.nan)[:, None]  # type: ignore[union-attr]
    else:
        numbers = values.reshape(len(objects), math.prod(values.shape[1:]))
    finite: Bool[np.ndarray, "n"] = np.isfinite(numbers).all(axis=1)
    sized: Bool[np.ndarray, "n"] = np.greater_equal(_sizes(field, numbers), 0).all(axis=1)
    may_lack: Bool[np.ndarray, "n"] = np.isnan(numbers).all(axis=1) if field in _OPTIONAL else objects.is_crowd
    valid = may_lack | (finite & sized)
    for record in np.flatnonzero(~valid).tolist():
        expected = "finite numbers" if not finite[record] else "sizes from 0 on"
        problem = "expected a segmentation, got none"
        if field != "segmentations":
            problem = f"expected {expected}, got {values[record].tolist()}"
        fault = DataError(
            problem,
            where=f"{side}[{record}] (id {objects.ids[record]}).{field}",
            remedy="correct or remove this record",
            kind=f"bad_{field}",
        )
        if report is None:
            raise fault
        report(fault)
    return objects if valid.all() else objects.take(valid)


def _sizes(field: str, numbers: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n s"]:
    """Return the sizes among the numbers, which must not be negative."""
    if field == "cuboids":
        return numbers[:, 3:6]
    if field == "amodal_boxes_xyxy":
        return numbers[:, 2:] - numbers[:, :2]
    return np.zeros((len(numbers), 1))
