"""Plot of quality against cost of several models, with a label at each point."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from otus.reports.canvas import CYCLE, Canvas, in_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLACEMENTS = (  # of a name beside its point: offset in points, horizontal and vertical alignment
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((5, -3), "left", "top"),
    ((-5, -3), "right", "top"),
    ((5, 3), "left", "bottom"),
    ((-5, 3), "right", "bottom"),
)


@in_style
def cost_plot(
    models: Mapping[str, tuple[float, float]],
    *,
    quality: str = "AP50",
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Plot a metric against seconds per image; better models are above and to the left.

    Parameters
    ----------
    models
        Seconds per image and value of the metric, by name of the model; points with NaN are not drawn.
    quality
        Name of the metric.
    """
    figure, axes = canvas.axes(
        f"{quality} by seconds per image", xlabel="seconds per image", ylabel=quality, size=(8.4, 4.8)
    )
    defined = {name: point for name, point in models.items() if not np.isnan(point).any()}
    if defined:
        axes.plot(*zip(*defined.values(), strict=True), "o", color=CYCLE[5], markersize=7)
        axes.set_xscale("log")
    axes.set_ylim(0, 1.15 * max([0.1, *(value for _, value in defined.values())]))
    axes.margins(x=0.15)
    _label_points(axes, defined)
    return figure


def _label_points(axes: "Axes", points: Mapping[str, tuple[float, float]]) -> None:
    """Write each label beside its point, in the placement of least overlap."""
    from matplotlib.transforms import Bbox

    axes.get_figure().draw_without_rendering()  # type: ignore[union-attr]  # computes the positions of the points
    pixels = [axes.transData.transform(point) for point in points.values()]
    occupied = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in pixels]
    left, right = axes.bbox.x0, axes.bbox.x1
    for name, point in points.items():
        labels = [
            axes.annotate(name, point, xytext=offset, textcoords="offset points", ha=ha, va=va, fontsize="small")
            for offset, ha, va in _PLACEMENTS
        ]
        boxes = [label.get_window_extent() for label in labels]
        overlaps = [box.count_overlaps(occupied) + (box.x0 < left or box.x1 > right) for box in boxes]
        best = overlaps.index(min(overlaps))
        occupied.append(boxes[best])
        for label in labels[:best] + labels[best + 1 :]:
            label.remove()
