"""The style of all plots: colours on light and dark background, sizes, and writing to files and pages.

matplotlib is imported when something is drawn, and pyplot is not used, because its state is global.
"""

import base64
import functools
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, ParamSpec, cast

from otus._files import staged_file
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
# Okabe and Ito's colours, distinct with colour blindness, without their black.
CYCLE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#7f5aa8")
_INVERTED = "@media (prefers-color-scheme: dark) { svg { filter: invert(1) hue-rotate(180deg); } }"


@dataclass(frozen=True)
class Canvas:
    """The style of a plot: its theme, and its size in inches."""

    theme: Theme = "light"
    size: tuple[float, float] = (6.4, 4.4)

    def style(self) -> AbstractContextManager[None]:
        """Return a context of matplotlib settings, in which figures are made and written."""
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
                "axes.prop_cycle": cycler(color=CYCLE),
                "axes.titlesize": "medium",
                "axes.titlelocation": "left",
                "axes.titleweight": "bold",
                "svg.hashsalt": "otus",
                "svg.fonttype": "none",
            }
        )

    @property
    def ink(self) -> str:
        """Colour of text and of emphasised lines."""
        return _COLOURS[self.theme]["ink"]

    @property
    def quiet(self) -> str:
        """Colour of secondary lines and text."""
        return _COLOURS[self.theme]["quiet"]

    @property
    def shades(self) -> "Colormap":
        """Colormap from the background (0) to a full colour (1)."""
        from matplotlib.colors import LinearSegmentedColormap

        colours = _COLOURS[self.theme]
        return LinearSegmentedColormap.from_list("shares", [colours["ground"], colours["full"]])

    def axes(self, title: str, *, size: tuple[float, float] | None = None, **labels: str) -> "tuple[Figure, Axes]":
        """Return a figure with one empty axes."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=size or self.size, layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, **labels)
        axes.grid(True, linewidth=0.6)
        axes.set_axisbelow(True)
        return figure, axes


def in_style(draw: Callable[P, "Figure"]) -> Callable[P, "Figure"]:
    """Decorate a plot function so that it draws in the style of its argument ``canvas``."""

    @functools.wraps(draw)
    def run(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        with cast(Canvas, kwargs.get("canvas", Canvas())).style():
            return draw(*args, **kwargs)

    return run


def embed_plot(figure: "Figure", caption: str = "", *, width: int | None = None) -> PageFigure:
    """Return a light-theme plot as an SVG figure of a page; it is inverted where the reader prefers a dark screen."""
    buffer = io.StringIO()
    with Canvas().style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    head, start, rest = buffer.getvalue().partition("<defs>")
    svg = f"{head}<style>{_INVERTED}</style>{start}{rest}"
    data = base64.b64encode(svg.encode()).decode("ascii")
    return PageFigure(f"data:image/svg+xml;base64,{data}", caption, width or round(figure.get_figwidth() * 80))


def write_plot(figure: "Figure", path: str | Path, canvas: Canvas) -> None:
    """Write a figure as PNG, SVG or PDF, by the suffix of the path; the file is written completely or not at all."""
    path = Path(path)
    with canvas.style(), staged_file(path) as stage:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(stage, format=path.suffix.removeprefix("."), dpi=150, metadata=metadata)
