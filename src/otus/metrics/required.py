"""Records that have what a protocol compares."""

from collections.abc import Callable

import numpy as np

from otus.errors import DataError, UsageError
from otus.structures import Objects, Outline, Segmentations

_SIZES = {"cuboids": slice(3, 6)}


def having(objects: Objects, field: str, side: str, *, report: Callable[[DataError], object] | None = None) -> Objects:
    """The objects that have a field: an outline (``segmentations``), or finite numbers (``corners_xy``, ``cuboids``).

    Crowds need not. Sizes must not be negative.

    Each other record goes to ``report`` as a DataError that names record and field; without it the first is raised.

    Raises
    ------
    UsageError
        If no object has the field at all.
    """
    values = getattr(objects, field)
    if values is None:
        if len(objects):
            raise UsageError(f"{field}: the {side} has none" if side == "truth" else f"{field}: the {side} have none")
        return objects
    if isinstance(values, Segmentations):
        values = np.where(values.kinds != Outline.NONE, 0.0, np.nan)
    flat = values.reshape(len(objects), -1)
    finite = np.isfinite(flat).all(axis=1)
    sized = np.greater_equal(flat[:, _SIZES[field]], 0).all(axis=1) if field in _SIZES else finite
    sound = objects.is_crowd | (finite & sized)
    for record in np.flatnonzero(~sound).tolist():
        expected = "finite numbers" if not finite[record] else "sizes from 0 on"
        problem = f"expected {expected}, got {values[record].tolist()}"
        fault = DataError(
            "expected an outline, got none" if field == "segmentations" else problem,
            where=f"{side}[{record}] (id {objects.ids[record]}).{field}",
            remedy="drop or mend this record",
            kind=f"bad_{field}",
        )
        if report is None:
            raise fault
        report(fault)
    return objects if sound.all() else objects.take(sound)
