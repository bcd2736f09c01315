"""Draw proposals on their image, and plot their recall by number and IoU."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from otus.metrics.proposals import ProposalResult
from otus.proposals.interface import Proposals
from otus.reports.canvas import Canvas
from otus.structures import Categories, Instances
from otus.visualization.drawing import draw
from otus.visualization.text import legend, text_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIRST, _LAST = np.array([255, 214, 10]), np.array([20, 60, 140])


def draw_proposals(
    image: UInt8[np.ndarray, "h w 3"], proposals: Proposals, *, count: int = 40
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the ``count`` highest-scoring proposals on a copy of the image, from yellow (highest) to blue, with a legend
    below."""
    best = proposals.best(count)
    names = tuple(str(rank + 1) for rank in range(len(best)))
    shares = np.linspace(0, 1, len(names))
    colours = {
        name: (_FIRST + share * (_LAST - _FIRST)).astype(np.uint8) for name, share in zip(names, shares, strict=True)
    }
    size_hw = (image.shape[0], image.shape[1])
    boxes = Instances(best.boxes_xyxy, np.arange(len(best)), size_hw, Categories(names))
    drawn = draw(image, boxes, labels=False, colours=colours)
    ranks = sorted({0, len(best) // 2, len(best) - 1}) if len(best) else []
    notes = {0: " (highest score)", len(best) - 1: f" of {len(proposals):,} proposals"}
    entries = [(f"{rank + 1}{notes.get(rank, '')}", colours[str(rank + 1)]) for rank in ranks]
    return np.concatenate([drawn, legend(entries, size_hw[1], text_size(size_hw))])


def proposal_plot(results: Mapping[str, ProposalResult], *, canvas: Canvas | None = None) -> "Figure":
    """Plot recall at each IoU threshold, and MABO, by number of proposals, one line per method."""
    canvas = canvas or Canvas()
    with canvas.style():
        from matplotlib.figure import Figure

        thresholds = next(iter(results.values())).protocol.iou_thresholds
        figure = Figure(
            figsize=(canvas.size[0] * 0.62 * (len(thresholds) + 1), canvas.size[1] * 0.9), layout="constrained"
        )
        plots = figure.subplots(1, len(thresholds) + 1, squeeze=False)[0]
        titles = [f"Recall at IoU {threshold:g}" for threshold in thresholds] + ["MABO"]
        for number, (plot, title) in enumerate(zip(plots, titles, strict=True)):
            for name, result in results.items():
                values = result.mabo if number == len(thresholds) else result.recall[number]
                plot.plot(result.protocol.counts, values, marker="o", markersize=3, label=name)
            plot.set(title=title, xlabel="maximum proposals per image", xscale="log", ylim=(0, 1.03))
            counts = sorted({count for result in results.values() for count in result.protocol.counts})
            plot.set_xticks(counts, [str(count) for count in counts])
            plot.minorticks_off()
            plot.grid(True, linewidth=0.6)
            plot.set_axisbelow(True)
        if len(results) > 1:
            plots[0].legend(loc="lower right")
    return figure
