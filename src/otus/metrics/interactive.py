"""Interactive segmentation: number of clicks (NoC) until an IoU is reached, and IoU after each click.

NoC@q is the mean number of clicks until the IoU is at least q; an object that never reaches q counts as the maximum
number of clicks, 20 (Xu et al., Deep Interactive Object Selection, CVPR 2016, section 5; Sofiiuk et al., Reviving
Iterative Training with Mask Guidance, 2021).

Shape shorthand: N objects, C clicks. A curve is the IoU after click 1, 2 … of one object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from otus.errors import DataError, UsageError

MAX_CLICKS = 20


def iou_by_clicks(
    curves: Sequence[Sequence[float]] | np.ndarray, *, max_clicks: int = MAX_CLICKS
) -> Float[np.ndarray, "n c"]:
    """Pad or truncate curves to (N, ``max_clicks``); shorter curves are padded with their last IoU.

    Raises
    ------
    DataError
        If a curve has no click, or an IoU is outside [0, 1].

    >>> iou_by_clicks([[0.5, 0.9], [0.8]], max_clicks=3).tolist()
    [[0.5, 0.9, 0.9], [0.8, 0.8, 0.8]]
    """
    if max_clicks < 1:
        raise UsageError(f"max_clicks: expected 1 or more, got {max_clicks}")
    padded = np.empty((len(curves), max_clicks))
    for index, curve in enumerate(curves):
        values = np.asarray(curve, dtype=np.float64).reshape(-1)
        valid = (values >= 0) & (values <= 1)
        if not len(values) or not valid.all():
            got = f"{values[~valid][0]} after click {np.argmin(valid) + 1}" if len(values) else "no click"
            raise DataError(
                f"expected an IoU in 0..1 after each click, got {got}",
                where=f"curves[{index}]",
                remedy="correct or remove this curve",
                kind="bad_iou",
            )
        truncated = values[:max_clicks]
        padded[index] = np.pad(truncated, (0, max_clicks - len(truncated)), mode="edge")
    return padded


def clicks_until(curves: Float[np.ndarray, "n c"], iou: float) -> Int[np.ndarray, "n"]:
    """Return the number of clicks until each curve reaches ``iou``; C + 1 if it never does.

    >>> clicks_until(np.array([[0.5, 0.9, 0.8], [0.1, 0.2, 0.3]]), 0.85).tolist()
    [2, 4]
    """
    reached = np.greater_equal(curves, iou)
    return np.where(reached.any(axis=1), reached.argmax(axis=1), curves.shape[1]) + 1


class InteractiveQuality:
    """NoC and IoU by number of clicks over any number of objects, in the memory of their curves.

    Parameters
    ----------
    max_clicks
        Maximum number of clicks per object.
    targets
        IoUs to reach; one NoC figure for each.

    Examples
    --------
    >>> result = InteractiveQuality().update([[0.6, 0.86, 0.93], [0.91]]).compute()
    >>> result.figures["NoC@85"], result.figures["NoC@90"], round(result.figures["IoU@1"], 3)
    (1.5, 2.0, 0.755)
    """

    def __init__(self, *, max_clicks: int = MAX_CLICKS, targets: tuple[float, ...] = (0.85, 0.9)) -> None:
        if not targets or not all(0 < target <= 1 for target in targets):
            raise UsageError(f"targets: expected IoUs in (0, 1], got {targets}")
        self.max_clicks = max_clicks
        self.targets = targets
        self._curves = [iou_by_clicks([], max_clicks=max_clicks)]

    def update(self, curves: Sequence[Sequence[float]] | np.ndarray) -> Self:
        """Add the curves of more objects, of any lengths; see :func:`iou_by_clicks`."""
        self._curves.append(iou_by_clicks(curves, max_clicks=self.max_clicks))
        return self

    def merge(self, other: "InteractiveQuality") -> Self:
        """Add the curves of another metric, of other objects and the same settings."""
        if other.max_clicks != self.max_clicks or other.targets != self.targets:
            raise UsageError("only metrics of the same targets and max_clicks can be merged")
        self._curves += other._curves
        return self

    def compute(self, *, seconds_per_click: float | None = None) -> "InteractiveResult":
        """Compute the figures of all objects so far, with the time per click if it was measured."""
        return InteractiveResult(np.concatenate(self._curves), self.targets, seconds_per_click)


@dataclass(frozen=True, eq=False)
class InteractiveResult:
    """Curves, and their figures.

    Parameters
    ----------
    curves
        (N, C) IoU after each click.
    targets
        IoUs to reach.
    seconds_per_click
        Mean time from a click to its mask.
    """

    curves: Float[np.ndarray, "n c"]
    targets: tuple[float, ...]
    seconds_per_click: float | None = None
    figures: Mapping[str, float] = field(init=False)
    """For each target, e.g. 0.85: NoC@85 (mean number of clicks), NoF@85 (fraction of objects that never reach it); and
    IoU@1, IoU@2 …: mean IoU after so many clicks."""
    per_category: Mapping[str, Mapping[str, float]] = field(default_factory=dict, init=False)
    """Empty: interactive segmentation has no categories."""

    def __post_init__(self) -> None:
        max_clicks = self.curves.shape[1]
        figures = {}
        for target in self.targets:
            clicks, percent = clicks_until(self.curves, target), round(100 * target)
            figures[f"NoC@{percent}"] = _mean(np.minimum(clicks, max_clicks))
            figures[f"NoF@{percent}"] = _mean(clicks > max_clicks)
        if self.seconds_per_click is not None:
            figures["seconds_per_click"] = self.seconds_per_click
        figures |= {f"IoU@{i + 1}": _mean(self.curves[:, i]) for i in range(max_clicks)}
        object.__setattr__(self, "figures", figures)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
