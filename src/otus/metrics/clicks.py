"""Simulated clicks, to evaluate interactive methods and to train promptable ones.

Shape shorthand: H x W the image, C clicks.

The next click is on the pixel of the largest error region that is farthest from its border, as in Sofiiuk et al.
(Reviving Iterative Training with Mask Guidance, 2021, section 3.1 and their evaluation code); so the first is in the
middle of the object.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from otus.errors import ShapeError
from otus.metrics.interactive import MAX_CLICKS
from otus.structures.prompt import Prompt


class Click(NamedTuple):
    """A point in pixels; ``label`` is 1 on the object, 0 on background."""

    x: float
    y: float
    label: int


class ClickRecord(NamedTuple):
    """The clicks on one object, the IoU after each, and the last mask."""

    clicks: list[Click]
    ious: list[float]
    mask: Bool[np.ndarray, "h w"]


def next_click(
    prediction: Bool[np.ndarray, "h w"],
    ground_truth: Bool[np.ndarray, "h w"],
    *,
    ignore: Bool[np.ndarray, "h w"] | None = None,
    clicked: Bool[np.ndarray, "h w"] | None = None,
) -> Click | None:
    """Return the click in the middle of the largest error region, None if there is no error.

    Parameters
    ----------
    prediction, ground_truth
        The mask so far and the ground truth.
    ignore
        Pixels that are ignored.
    clicked
        Pixels that were clicked before; they are not clicked again.

    >>> ground_truth = np.zeros((5, 7), dtype=bool)
    >>> ground_truth[1:4, 1:4] = True
    >>> next_click(np.zeros_like(ground_truth), ground_truth)
    Click(x=2.5, y=2.5, label=1)
    """
    if prediction.shape != ground_truth.shape:
        raise ShapeError(
            f"prediction: expected the shape of ground_truth, {ground_truth.shape}, got {prediction.shape}"
        )
    from scipy.ndimage import distance_transform_edt

    best, click = 0.0, None
    for label, error in ((1, ground_truth & ~prediction), (0, prediction & ~ground_truth)):
        if ignore is not None:
            error = error & ~ignore
        if not error.any():
            continue
        depth = distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1]
        if clicked is not None:
            depth[clicked] = 0
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        if depth[row, column] > best:
            best, click = float(depth[row, column]), Click(float(column) + 0.5, float(row) + 0.5, label)
    return click


def simulate_clicks(
    segment: Callable[[Prompt], Bool[np.ndarray, "h w"]],
    ground_truth: Bool[np.ndarray, "h w"],
    *,
    ignore: Bool[np.ndarray, "h w"] | None = None,
    max_clicks: int = MAX_CLICKS,
    stop_at_iou: float = 1.0,
) -> ClickRecord:
    """Simulate clicks on one object, each in the middle of the largest error of the last mask, until an IoU is reached.

    Parameters
    ----------
    segment
        Function that returns the mask (H, W) for a prompt of points.
    ground_truth
        Ground truth mask of the object.
    ignore
        Pixels that are ignored.
    max_clicks, stop_at_iou
        Number of clicks and IoU at which to stop.
    """
    valid = np.ones_like(ground_truth) if ignore is None else ~ignore
    mask, clicked = np.zeros_like(ground_truth), np.zeros_like(ground_truth)
    clicks: list[Click] = []
    ious: list[float] = []
    while len(clicks) < max_clicks and (not ious or ious[-1] < stop_at_iou):
        click = next_click(mask, ground_truth, ignore=ignore, clicked=clicked)
        if click is None:
            break
        clicks.append(click)
        clicked[int(click.y), int(click.x)] = True
        mask = segment(Prompt([(click.x, click.y) for click in clicks], [click.label for click in clicks]))
        ious.append(float((mask & ground_truth & valid).sum() / max(((mask | ground_truth) & valid).sum(), 1)))
    return ClickRecord(clicks, ious, mask)
