"""Plots of an evaluation: precision-recall, AP, confusion matrix, error costs, calibration, score thresholds.

Each function returns a matplotlib ``Figure`` in the style of a :class:`~otus.reports.canvas.Canvas`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from otus.metrics.diagnosis.calibration import Calibration
from otus.metrics.diagnosis.confusion import Confusion
from otus.metrics.diagnosis.thresholds import ScoreCurve
from otus.metrics.diagnosis.tide import Error
from otus.reports.canvas import CYCLE, Canvas, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURED = 7  # curves with a colour and a name; the others are thin lines
_MAX_ROWS = 25  # categories in a bar chart or a matrix


@in_style
def precision_recall_plot(
    recalls: Float[np.ndarray, "r"],
    precision: Mapping[str, Float[np.ndarray, "r"]],
    *,
    title: str = "Precision-recall",
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Plot interpolated precision-recall curves by category, the best and worst in colour, and their mean."""
    figure, axes = canvas.axes(title, xlabel="recall", ylabel="precision", size=(7.6, 4.6))
    means = {name: float(np.mean(values)) for name, values in precision.items() if not np.isnan(values).any()}
    names = sorted(means, key=lambda name: -means[name])
    half = _COLOURED // 2
    coloured = names if len(names) <= _COLOURED else [*names[: half + 1], *names[-half:]]
    faint = 0.6 if len(names) <= _MAX_ROWS else 0.3
    for name in names:
        if name not in coloured:
            axes.plot(recalls, precision[name], color=canvas.quiet, linewidth=0.5, alpha=faint)
    for name in coloured:
        axes.plot(recalls, precision[name], linewidth=1.4, label=f"{_short(name)} {means[name]:.3f}")
    if len(names) > 1:
        mean = np.mean([precision[name] for name in names], axis=0)
        axes.plot(recalls, mean, color=canvas.ink, linewidth=2.4, label=f"mean of {len(names)}: {mean.mean():.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    if names:
        figure.legend(loc="outside right upper")
    return figure


@in_style
def iou_threshold_plot(
    thresholds: Sequence[float],
    average_precision: Mapping[str, Sequence[float]],
    *,
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Plot mAP by IoU threshold, one line per set of predictions, over shaded ranges of IoU."""
    figure, axes = canvas.axes("AP by IoU threshold", xlabel="IoU threshold", ylabel="AP")
    for low, high, word in ((0.5, 0.7, "decent"), (0.7, 0.9, "pretty good"), (0.9, 1.0, "almost perfect")):
        axes.axvspan(low, high, color=canvas.quiet, alpha=0.06 + 0.3 * (low - 0.5), linewidth=0)
        x = (low + high) / 2 if high < 1 else 0.925
        axes.text(x, 1.0, word, ha="center", va="top", fontsize="small", color=canvas.quiet)
    for name, values in average_precision.items():
        axes.plot(thresholds, values, marker="o", markersize=4, label=name)
    axes.set(xlim=(min(thresholds) - 0.01, max(thresholds) + 0.01), ylim=(0, 1.03))
    if len(average_precision) > 1:
        axes.legend()
    return figure


@in_style
def category_plot(
    average_precision: Mapping[str, float],
    *,
    title: str = "AP by category",
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Plot AP as one bar per category, sorted; if there are more than 25, only the best and the worst."""
    defined = {name: value for name, value in average_precision.items() if not np.isnan(value)}
    names = sorted(defined, key=lambda name: -defined[name])
    drawn = names if len(names) <= _MAX_ROWS else [*names[: _MAX_ROWS // 2 + 1], *names[-(_MAX_ROWS // 2) :]]
    if len(drawn) < len(names):
        title += f": best and worst of {len(names)}"
    figure, axes = canvas.axes(title, xlabel="AP", size=(6.4, 1.3 + 0.24 * max(len(drawn), 1)))
    bars = axes.barh([_short(name) for name in drawn], [defined[name] for name in drawn], height=0.7)
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize="small")
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(xlim=(0, 1.08))
    return figure


@in_style
def confusion_plot(
    confusion: Confusion,
    *,
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Plot the row-normalised confusion matrix; if there are more than 25 categories, only those confused most."""
    drawn = _most_confused(confusion)
    counts = confusion.counts[np.ix_(drawn, drawn)]
    totals = confusion.counts[drawn].sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    shares[-1] = counts[-1] / max(counts[-1].max(), 1)  # background has no total: relative to its maximum
    names = [_short(name) for name in (*confusion.categories, "background")]
    names = [names[i] for i in drawn]
    title = "Confusion matrix"
    if len(drawn) < len(confusion.counts):
        title += f": {len(drawn) - 1} of {len(confusion.categories)} categories"
    side = 2.2 + 0.34 * len(drawn)
    figure, axes = canvas.axes(title, xlabel="predicted", ylabel="true", size=(max(side, 4), max(side - 0.3, 3.6)))
    axes.imshow(shares, cmap=canvas.shades, vmin=0, vmax=1)
    axes.set_xticks(range(len(drawn)), names, rotation=90)
    axes.set_yticks(range(len(drawn)), names)
    axes.grid(False)
    colours = canvas.shades
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = np.dot(colours(shares[row, column])[:3], (0.299, 0.587, 0.114)) < 0.5
            axes.text(
                column,
                row,
                _compact(int(count)),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
    return figure


@in_style
def error_cost_plot(
    delta_ap: Mapping[Error, float],
    counts: Mapping[Error, int],
    *,
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Plot the cost of each error type in AP (dAP of TIDE), with the number of errors."""
    figure, axes = canvas.axes("Cost of each error type", xlabel="gain in AP if all were corrected", size=(6.4, 3.2))
    names = [error.name.lower() for error in delta_ap]
    values = [0.0 if np.isnan(value) else value for value in delta_ap.values()]
    bars = axes.barh(names, values, color=CYCLE[: len(names)], height=0.7)
    axes.bar_label(bars, [f"{value:.3f}  ({counts[error]} errors)" for error, value in delta_ap.items()], padding=3)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(xlim=(0, max(*values, 0.01) * 1.45))
    return figure


@in_style
def calibration_plot(
    result: Calibration,
    *,
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Plot a reliability diagram: precision by score, and the number of detections; calibrated scores are on the
    diagonal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = np.diff(result.edges)
    upper.bar(
        result.edges[:-1], np.nan_to_num(result.precision), width, align="edge", edgecolor=canvas.quiet, alpha=0.85
    )
    upper.plot([0, 1], [0, 1], color=canvas.ink, linestyle="--", linewidth=1)
    upper.plot(result.confidence, result.precision, "o", color=canvas.ink, markersize=4, label="mean score of the bin")
    upper.set(title=f"Calibration, ECE {result.expected_error:.3f}", ylabel="precision", ylim=(0, 1.03))
    upper.legend(loc="upper left")
    lower.bar(result.edges[:-1], result.counts, width, align="edge", color=canvas.quiet)
    lower.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    for axes in (upper, lower):
        axes.grid(True, axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


@in_style
def threshold_plot(
    curve: ScoreCurve,
    *,
    title: str = "By score threshold, all categories",
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Plot precision, recall and F1 by score threshold, with the best F1 marked."""
    figure, axes = canvas.axes(title, xlabel="score threshold", ylabel="precision, recall, F1")
    for name in ("precision", "recall", "f1"):
        axes.step(curve.scores, getattr(curve, name), where="post", label=name.replace("f1", "F1"))
    if len(curve.scores) and not np.isnan(curve.f1).any():
        best = int(curve.f1.argmax())
        point = (float(curve.scores[best]), float(curve.f1[best]))
        axes.plot(*point, "o", color=canvas.ink)
        right = point[0] < 0.6
        axes.annotate(
            f"F1 {point[1]:.3f} at {point[0]:.3f}",
            point,
            xytext=(8 if right else -8, 6),
            textcoords="offset points",
            ha="left" if right else "right",
        )
    axes.set(ylim=(0, 1.03))
    figure.legend(loc="outside right upper")
    return figure


def _most_confused(confusion: Confusion) -> list[int]:
    """Return the indices of the categories to draw: those with the most errors, in their order, and background."""
    background = len(confusion.categories)
    errors = confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1) - 2 * np.diag(confusion.counts)
    present = np.flatnonzero((confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1))[:-1] > 0)
    chosen = present[np.argsort(-errors[present], kind="stable")][:_MAX_ROWS]
    return [*sorted(chosen.tolist()), background]


def _compact(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.0f}k"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
