"""Curves of a training run: losses and validation metrics by epoch."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from otus.reports.canvas import Canvas, in_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = {"bbox": "boxes", "segm": "masks"}


@in_style
def training_plot(history: Sequence[Mapping[str, float | None]], *, canvas: Canvas = Canvas()) -> "Figure":
    """Plot losses and validation metrics by epoch, one axes for each group.

    Parameters
    ----------
    history
        One row per epoch: ``epoch``, losses (``loss``, ``loss/…``), and metrics by kind (``bbox/AP50``). A curve skips the
        rows without its value.
    """
    from matplotlib.figure import Figure

    # The first row may be the validation before training, without losses.
    available = dict.fromkeys(name for row in reversed(history) for name, value in row.items() if value is not None)
    groups = _curve_groups(list(available))
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
            emphasis = {"color": canvas.ink, "linewidth": 2.2} if label in ("loss", "AP", "top1") else {}
            axes.plot(*values, marker="o", markersize=3 if len(rows_with) > 1 else 7, label=label, **emphasis)
        axes.set(title=title, xlabel="epoch", xlim=span)
        axes.set_ylim(bottom=0, **({} if title == "loss" else {"top": 1.03}))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        # Beside the curves: loc="best" is slow with many of them.
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
    for axes in plots[len(groups) :]:
        axes.set_axis_off()
    return figure


def _curve_groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Group losses and metrics by the title of their axes, few enough for each to have its own colour."""
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
