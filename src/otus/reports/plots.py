"""Curves and matrices of an evaluation, drawn by matplotlib: PNG or SVG, on light or dark ground.

Each function returns a matplotlib ``Figure``. matplotlib is imported when something is drawn, and never by way of pyplot,
whose state would be shared.
"""

import base64
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, cast

import numpy as np
from jaxtyping import Float

from otus._files import staged_file
from otus.metrics.diagnosis.calibration import Calibration
from otus.metrics.diagnosis.confusion import Confusion
from otus.metrics.diagnosis.thresholds import ScoreCurve
from otus.metrics.diagnosis.tide import Error
from otus.reports.page import Figure as PageFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

P = ParamSpec("P")
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
_COLOURS: dict[Theme, dict[str, str]] = {
    "light": {"ground": "#ffffff", "ink": "#1a1a1a", "quiet": "#8a8a8a", "line": "#dddddd", "full": "#00588f"},
    "dark": {"ground": "#16181b", "ink": "#eeeeee", "quiet": "#9a9a9a", "line": "#3a3d42", "full": "#8fd0f5"},
}
# Okabe and Ito's colours, told apart by people who see few; the black of theirs is left out.
_CYCLE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#7f5aa8")
_TURNED = "@media (prefers-color-scheme: dark) { svg { filter: invert(1) hue-rotate(180deg); } }"
_NAMED = 7  # curves that get a colour and a name; the others are thin lines
_BESIDE = (  # where a point's name can stand: offset in points, and which side of the name is there
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
    ((7, 0), "left", "center"),
    ((-7, 0), "right", "center"),
    ((5, -3), "left", "top"),
    ((-5, -3), "right", "top"),
    ((5, 3), "left", "bottom"),
    ((-5, 3), "right", "bottom"),
)
_KINDS = {"bbox": "boxes", "segm": "masks"}
_ROWS = 25  # categories that a bar chart or a matrix shows


@dataclass(frozen=True)
class Canvas:
    """How figures look: the theme, and the size in inches of one plot."""

    theme: Theme = "light"
    size: tuple[float, float] = (6.4, 4.4)

    def style(self) -> AbstractContextManager[None]:
        """matplotlib's settings while a figure is made and while it is written."""
        from matplotlib import rc_context
        from matplotlib.rcsetup import cycler

        colours = _COLOURS[self.theme]
        return rc_context(
            {
                "text.color": colours["ink"],
                "axes.labelcolor": colours["ink"],
                "xtick.color": colours["ink"],
                "ytick.color": colours["ink"],
                "figure.facecolor": colours["ground"],
                "axes.facecolor": colours["ground"],
                "savefig.facecolor": colours["ground"],
                "axes.edgecolor": colours["quiet"],
                "grid.color": colours["line"],
                "legend.frameon": False,
                "legend.fontsize": "small",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.prop_cycle": cycler(color=_CYCLE),
                "axes.titlesize": "medium",
                "axes.titlelocation": "left",
                "axes.titleweight": "bold",
                "svg.hashsalt": "otus",
                "svg.fonttype": "none",
            }
        )

    @property
    def quiet(self) -> str:
        """The colour of what is in the background."""
        return _COLOURS[self.theme]["quiet"]

    @property
    def shades(self) -> "Colormap":
        """Colours from nothing, the ground, to all."""
        from matplotlib.colors import LinearSegmentedColormap

        colours = _COLOURS[self.theme]
        return LinearSegmentedColormap.from_list("shares", [colours["ground"], colours["full"]])

    def axes(self, title: str, *, size: tuple[float, float] | None = None, **labels: str) -> "tuple[Figure, Axes]":
        """An empty plot."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=size or self.size, layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, **labels)
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        return figure, axes


def _in_style(draw: Callable[P, "Figure"]) -> Callable[P, "Figure"]:
    """Draw in the style of the argument ``canvas``."""

    @functools.wraps(draw)
    def run(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        with cast(Canvas, kwargs.get("canvas", Canvas())).style():
            return draw(*args, **kwargs)

    return run


@_in_style
def precision_recall_plot(
    recalls: Float[np.ndarray, "r"],
    precision: Mapping[str, Float[np.ndarray, "r"]],
    *,
    title: str = "Precision by recall",
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Interpolated curves by category, the best and the worst in colour, and their mean."""
    figure, axes = canvas.axes(title, xlabel="recall", ylabel="precision", size=(7.6, 4.6))
    means = {name: float(np.mean(values)) for name, values in precision.items() if not np.isnan(values).any()}
    names = sorted(means, key=lambda name: -means[name])
    half = _NAMED // 2
    named = names if len(names) <= _NAMED else [*names[: half + 1], *names[-half:]]
    faint = 0.6 if len(names) <= _ROWS else 0.3
    for name in names:
        if name not in named:
            axes.plot(recalls, precision[name], color=canvas.quiet, linewidth=0.5, alpha=faint)
    for name in named:
        axes.plot(recalls, precision[name], linewidth=1.4, label=f"{_short(name)} {means[name]:.3f}")
    if len(names) > 1:
        mean = np.mean([precision[name] for name in names], axis=0)
        axes.plot(recalls, mean, color=_ink(canvas), linewidth=2.4, label=f"mean of {len(names)}: {mean.mean():.3f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    if names:
        figure.legend(loc="outside right upper")
    return figure


@_in_style
def iou_threshold_plot(
    thresholds: Sequence[float],
    average_precision: Mapping[str, Sequence[float]],
    *,
    canvas: Canvas = Canvas(),
) -> "Figure":
    """mAP by IoU threshold, a line for each set of predictions, on the words for IoU."""
    figure, axes = canvas.axes("AP by IoU threshold", xlabel="IoU that a detection needs", ylabel="AP")
    for low, high, word in ((0.5, 0.7, "decent"), (0.7, 0.9, "pretty good"), (0.9, 1.0, "almost perfect")):
        axes.axvspan(low, high, color=canvas.quiet, alpha=0.06 + 0.3 * (low - 0.5), linewidth=0)
        place = (low + high) / 2 if high < 1 else 0.925
        axes.text(place, 1.0, word, ha="center", va="top", fontsize="small", color=canvas.quiet)
    for name, values in average_precision.items():
        axes.plot(thresholds, values, marker="o", markersize=4, label=name)
    axes.set(xlim=(min(thresholds) - 0.01, max(thresholds) + 0.01), ylim=(0, 1.03))
    if len(average_precision) > 1:
        axes.legend()
    return figure


@_in_style
def category_plot(
    average_precision: Mapping[str, float],
    *,
    title: str = "AP by category",
    canvas: Canvas = Canvas(),
) -> "Figure":
    """A bar for each category, the best on top; of many the best and the worst."""
    known = {name: value for name, value in average_precision.items() if not np.isnan(value)}
    names = sorted(known, key=lambda name: -known[name])
    shown = names if len(names) <= _ROWS else [*names[: _ROWS // 2 + 1], *names[-(_ROWS // 2) :]]
    if len(shown) < len(names):
        title += f": best and worst of {len(names)}"
    figure, axes = canvas.axes(title, xlabel="AP", size=(6.4, 1.3 + 0.24 * max(len(shown), 1)))
    bars = axes.barh([_short(name) for name in shown], [known[name] for name in shown], height=0.7)
    axes.bar_label(bars, fmt="%.3f", padding=3, fontsize="small")
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(xlim=(0, 1.08))
    return figure


@_in_style
def confusion_plot(
    confusion: Confusion,
    *,
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Shares of each true category, with background; of many categories those that are confused most."""
    shown = _most_confused(confusion)
    counts = confusion.counts[np.ix_(shown, shown)]
    whole = confusion.counts[shown].sum(axis=1, keepdims=True)
    shares = np.divide(counts, whole, out=np.zeros(counts.shape), where=whole > 0)
    shares[-1] = counts[-1] / max(counts[-1].max(), 1)  # what is imagined has no whole: the most frequent is full
    names = [_short(name) for name in (*confusion.categories, "background")]
    names = [names[i] for i in shown]
    title = "Who is taken for whom"
    if len(shown) < len(confusion.counts):
        title += f": {len(shown) - 1} of {len(confusion.categories)} categories"
    side = 2.2 + 0.34 * len(shown)
    figure, axes = canvas.axes(title, xlabel="predicted", ylabel="true", size=(max(side, 4), max(side - 0.3, 3.6)))
    axes.imshow(shares, cmap=canvas.shades, vmin=0, vmax=1)
    axes.set_xticks(range(len(shown)), names, rotation=90)
    axes.set_yticks(range(len(shown)), names)
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


@_in_style
def error_cost_plot(
    delta_ap: Mapping[Error, float],
    counts: Mapping[Error, int],
    *,
    canvas: Canvas = Canvas(),
) -> "Figure":
    """What each type of error costs in AP, with how many there are."""
    figure, axes = canvas.axes(
        "What each type of error costs", xlabel="AP that mending all of them brings", size=(6.4, 3.2)
    )
    names = [one.name.lower() for one in delta_ap]
    values = [0.0 if np.isnan(value) else value for value in delta_ap.values()]
    bars = axes.barh(names, values, color=_CYCLE[: len(names)], height=0.7)
    axes.bar_label(bars, [f"{value:.3f}  ({counts[one]} errors)" for one, value in delta_ap.items()], padding=3)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set(xlim=(0, max(*values, 0.01) * 1.45))
    return figure


@_in_style
def calibration_plot(
    result: Calibration,
    *,
    canvas: Canvas = Canvas(),
) -> "Figure":
    """The precision of detections by their score, and how many there are: on the diagonal scores mean what they say."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = np.diff(result.edges)
    upper.bar(
        result.edges[:-1], np.nan_to_num(result.precision), width, align="edge", edgecolor=canvas.quiet, alpha=0.85
    )
    upper.plot([0, 1], [0, 1], color=_ink(canvas), linestyle="--", linewidth=1)
    upper.plot(
        result.confidence, result.precision, "o", color=_ink(canvas), markersize=4, label="mean score of the bin"
    )
    upper.set(
        title=f"Do scores mean what they say? ECE {result.expected_error:.3f}", ylabel="precision", ylim=(0, 1.03)
    )
    upper.legend(loc="upper left")
    lower.bar(result.edges[:-1], result.counts, width, align="edge", color=canvas.quiet)
    lower.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    for axes in (upper, lower):
        axes.grid(True, axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure


@_in_style
def threshold_plot(
    curve: ScoreCurve,
    *,
    title: str = "By score threshold, all categories together",
    canvas: Canvas = Canvas(),
) -> "Figure":
    """Precision, recall and F1 as the score threshold rises, with the best F1 marked."""
    figure, axes = canvas.axes(title, xlabel="score threshold", ylabel="share")
    for name in ("precision", "recall", "f1"):
        axes.step(curve.scores, getattr(curve, name), where="post", label=name.replace("f1", "F1"))
    if len(curve.scores) and not np.isnan(curve.f1).any():
        best = int(curve.f1.argmax())
        place = (float(curve.scores[best]), float(curve.f1[best]))
        axes.plot(*place, "o", color=_ink(canvas))
        right = place[0] < 0.6
        axes.annotate(
            f"F1 {place[1]:.3f} at {place[0]:.3f}",
            place,
            xytext=(8 if right else -8, 6),
            textcoords="offset points",
            ha="left" if right else "right",
        )
    axes.set(ylim=(0, 1.03))
    figure.legend(loc="outside right upper")
    return figure


@_in_style
def cost_plot(
    models: Mapping[str, tuple[float, float]],
    *,
    quality: str = "AP50",
    canvas: Canvas = Canvas(),
) -> "Figure":
    """What each model costs, seconds an image, and what it is worth; above and to the left is better."""
    figure, axes = canvas.axes(
        f"{quality} by seconds an image", xlabel="seconds an image", ylabel=quality, size=(8.4, 4.8)
    )
    known = {name: point for name, point in models.items() if not np.isnan(point).any()}
    if known:
        axes.plot(*zip(*known.values(), strict=True), "o", color=_CYCLE[5], markersize=7)
        axes.set_xscale("log")
    axes.set_ylim(0, 1.15 * max([0.1, *(value for _, value in known.values())]))
    axes.margins(x=0.15)
    _name_points(axes, known)
    return figure


@_in_style
def training_plot(history: Sequence[Mapping[str, float | None]], *, canvas: Canvas = Canvas()) -> "Figure":
    """Losses and validation figures by epoch, a plot for each group of figures that are read together.

    Parameters
    ----------
    history
        A row an epoch: ``epoch``, losses (``loss``, ``loss/…``), and figures by kind (``bbox/AP50``); what a row does not
        have is left out of its line.
    """
    from matplotlib.figure import Figure

    # The first row may be of the start, which has no losses.
    known = dict.fromkeys(name for row in reversed(history) for name, value in row.items() if value is not None)
    groups = _curve_groups(list(known))
    columns = min(len(groups), 2 if len(groups) <= 4 else 4)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    plots = figure.subplots(rows, columns, squeeze=False).ravel()
    epochs = [row["epoch"] or 0 for row in history]
    span = (min(epochs) - 0.4, max(epochs) + 0.4)
    for axes, (title, names) in zip(plots, groups.items(), strict=False):
        for name in names:
            rows_with = [row for row in history if row.get(name) is not None]
            values = [row["epoch"] for row in rows_with], [row[name] for row in rows_with]
            label = name.rpartition("/")[2]
            strong = {"color": _ink(canvas), "linewidth": 2.2} if label in ("loss", "AP", "top1") else {}
            axes.plot(*values, marker="o", markersize=3 if len(rows_with) > 1 else 7, label=label, **strong)
        axes.set(title=title, xlabel="epoch", xlim=span)
        axes.set_ylim(bottom=0, **({} if title == "loss" else {"top": 1.03}))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        # Beside the curves: to find a free place among many is slow.
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
    for axes in plots[len(groups) :]:
        axes.set_axis_off()
    return figure


def _curve_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of figures that stand in one plot, by its title: few enough for each to have its own colour."""
    groups: dict[str, list[str]] = {}
    for name in names:
        kind, _, figure = name.partition("/")
        if kind == "loss":
            groups.setdefault("loss", []).append(name)
        elif figure and "/" not in figure:
            group = "by size" if figure in ("APs", "APm", "APl") else "recall" if figure.startswith("AR") else ""
            title = f"{_KINDS.get(kind, kind)} {group}".strip()
            groups.setdefault(title, []).append(name)
    return groups


def _name_points(axes: "Axes", points: Mapping[str, tuple[float, float]]) -> None:
    """Each name beside its point, where it covers least."""
    from matplotlib.transforms import Bbox

    axes.get_figure().draw_without_rendering()  # type: ignore[union-attr]  # settles where the points are
    places = [axes.transData.transform(point) for point in points.values()]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in places]
    left, right = axes.bbox.x0, axes.bbox.x1
    for name, point in points.items():
        labels = [
            axes.annotate(name, point, xytext=offset, textcoords="offset points", ha=ha, va=va, fontsize="small")
            for offset, ha, va in _BESIDE
        ]
        boxes = [label.get_window_extent() for label in labels]
        covers = [box.count_overlaps(taken) + (box.x0 < left or box.x1 > right) for box in boxes]
        best = covers.index(min(covers))
        taken.append(boxes[best])
        for label in labels[:best] + labels[best + 1 :]:
            label.remove()


def embed_plot(figure: "Figure", caption: str = "", *, width: int | None = None) -> PageFigure:
    """A figure on light ground as a page carries it: letters and lines turn light where the reader's screen is dark."""
    buffer = io.StringIO()
    with Canvas().style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    head, start, rest = buffer.getvalue().partition("<defs>")
    svg = f"{head}<style>{_TURNED}</style>{start}{rest}"
    data = base64.b64encode(svg.encode()).decode("ascii")
    return PageFigure(f"data:image/svg+xml;base64,{data}", caption, width or round(figure.get_figwidth() * 80))


def write_plot(figure: "Figure", path: str | Path, canvas: Canvas) -> None:
    """Write a figure in the format of the path's suffix; nothing half-written is left."""
    path = Path(path)
    with canvas.style(), staged_file(path) as stage:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(stage, format=path.suffix.removeprefix("."), dpi=150, metadata=metadata)


def _most_confused(confusion: Confusion) -> list[int]:
    """Rows of the matrix that are shown: all, or those with most mistakes, in their order, and background."""
    background = len(confusion.categories)
    mistakes = confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1) - 2 * np.diag(confusion.counts)
    present = np.flatnonzero((confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1))[:-1] > 0)
    chosen = present[np.argsort(-mistakes[present], kind="stable")][:_ROWS]
    return [*sorted(chosen.tolist()), background]


def _compact(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.0f}k"


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _ink(canvas: Canvas) -> str:
    return _COLOURS[canvas.theme]["ink"]
