"""Records that have what a protocol compares."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from otus.errors import DataError, UsageError
from otus.structures import Objects, Outline

_OPTIONAL = ("amodal_boxes_xyxy",)  # an object without is whole as it is


def require_field(
    objects: Objects, field: str, side: str, *, report: Callable[[DataError], object] | None = None
) -> Objects:
    """The objects that have a field: an outline (``segmentations``), or finite numbers (``corners_xy``, ``cuboids``).

    Crowds need not; and no object needs ``amodal_boxes_xyxy``, but those there are must make sense. Sizes must not be
    negative. Each other record goes to ``report`` as a DataError that names record and field; without it the first is
    raised.

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
    needless: Bool[np.ndarray, "n"] = np.isnan(numbers).all(axis=1) if field in _OPTIONAL else objects.is_crowd
    sound = needless | (finite & sized)
    for record in np.flatnonzero(~sound).tolist():
        expected = "finite numbers" if not finite[record] else "sizes from 0 on"
        problem = "expected an outline, got none"
        if field != "segmentations":
            problem = f"expected {expected}, got {values[record].tolist()}"
        fault = DataError(
            problem,
            where=f"{side}[{record}] (id {objects.ids[record]}).{field}",
            remedy="drop or mend this record",
            kind=f"bad_{field}",
        )
        if report is None:
            raise fault
        report(fault)
    return objects if sound.all() else objects.take(sound)


def _sizes(field: str, numbers: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n s"]:
    """The lengths among the numbers."""
    if field == "cuboids":
        return numbers[:, 3:6]
    if field == "amodal_boxes_xyxy":
        return numbers[:, 2:] - numbers[:, :2]
    return np.zeros((len(numbers), 1))
