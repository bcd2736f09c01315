"""The table of an ablation: one argument varied, everything else equal, several seeds of each; as text, plot and page."""

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from otus._files import staged_file
from otus.data.image_writing import write_image
from otus.reports.canvas import CYCLE, Canvas, embed_plot, in_style, write_plot
from otus.reports.comparison import Comparison, Row, jsonable, markdown_table
from otus.reports.page import Figure, Page, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure as PlotFigure


@dataclass(frozen=True)
class Variant:
    """One way of building a model, and its trainings, one for each seed."""

    name: str
    rows: Sequence[Row]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Variants of a model, each trained with several seeds.

    Parameters
    ----------
    varied
        What was varied, in words.
    variants
        In the order in which they were named, which is not by quality.
    comparison
        All trainings, and where they are written.
    crop
        The same crop under each variant, as one image; None where there is nothing to show.
    """

    varied: str
    variants: Sequence[Variant]
    comparison: Comparison
    crop: UInt8[np.ndarray, "h w 3"] | None = None

    @property
    def figure(self) -> str:
        """Name of the figure that is compared."""
        return self.comparison.task.plotted_metric

    @property
    def seeds(self) -> int:
        """Trainings of each variant."""
        return len(self.variants[0].rows)

    @cached_property
    def summaries(self) -> list[dict[str, Any]]:
        """Mean and spread of each variant's figure over the seeds, and its costs."""
        return [
            {
                "name": variant.name,
                "mean": float(np.mean(values)),  # NaN where one is, as all below
                "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                "least": float(np.min(values)),
                "most": float(np.max(values)),
                "values": values,
                "seconds": statistics.median(sum(row.seconds.values()) for row in variant.rows),
                "parameters": variant.rows[0].parameters,
            }
            for variant in self.variants
            for values in [[row.figures.get(self.figure, math.nan) for row in variant.rows]]
        ]

    @cached_property
    def apart(self) -> list[dict[str, str]]:
        """Pairs of variants whose figures do not overlap: every seed of one is above every seed of the other."""
        if self.seeds == 1:
            return []
        return [
            {"higher": above["name"], "lower": below["name"]}
            for one, other in combinations(self.summaries, 2)
            for above, below in ((one, other), (other, one))
            if above["least"] > below["most"]
        ]

    @property
    def by_chance(self) -> float:
        """Share of pairs of equal variants whose figures do not overlap by chance alone."""
        return 2 / math.comb(2 * self.seeds, self.seeds)

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus compare --vary --json`` prints."""
        whole = self.comparison.document()
        return {
            **{name: whole[name] for name in ("data", "protocol", "images", "folder")},
            "varied": self.varied,
            "figure": self.figure,
            "seeds": self.seeds,
            "variants": jsonable(self.summaries),
            "apart": self.apart,
            "apart_by_chance": self.by_chance,
            "rows": whole["rows"],
        }

    def table(self) -> list[dict[str, str]]:
        """Return the variants as text, in the order in which they were named."""
        title = self.comparison.task.comparison_metrics[self.figure][1]
        return [
            {
                self.varied: one["name"],
                title: f"{one['mean']:.3f}" + ("" if math.isnan(one["deviation"]) else f" ± {one['deviation']:.3f}"),
                "least": f"{one['least']:.3f}",
                "most": f"{one['most']:.3f}",
                "s per image": f"{one['seconds']:.3f}",
                "parameters": f"{one['parameters'] / 1e6:.2f} M",
            }
            for one in self.summaries
        ]

    def verdict(self) -> str:
        """Return what can be said of the order of the variants, in words."""
        if self.seeds == 1:
            return "One seed each: no order is claimed."
        pairs = "; ".join(f"{pair['higher']} above {pair['lower']}" for pair in self.apart)
        said = f"Every seed of one is above every seed of the other: {pairs}." if pairs else "The spreads overlap."
        return (
            f"{said} No order is claimed of {'the others' if pairs else 'any two'}. By chance alone, of {self.seeds} seeds "
            f"each, {self.by_chance:.2g} of the pairs of equal variants do not overlap."
        )

    def plot(self) -> "PlotFigure":
        """Plot every seed's figure, and the mean of each variant."""
        return _plot(self.summaries, self.comparison.task.comparison_metrics[self.figure][1])

    def page(self) -> Page:
        """Return the HTML page."""
        sections = [
            Section(
                f"{self.varied}: mean ± standard deviation over {self.seeds} seeds",
                self.verdict(),
                [embed_plot(self.plot())],
                self.table(),
            )
        ]
        if self.crop is not None:
            sections.append(
                Section(
                    "The same crop under each",
                    "Of the first seed, at the size of the network's images. Above the labels, below how certain they are, "
                    "from dark (0) to bright (1): checkerboards, blocks and lost borders show there.",
                    [Figure("crop.png", "", self.crop.shape[1])],
                )
            )
        every = Section("Every training", "", rows=self.comparison.table())
        subtitle = f"{len(self.comparison.images)} images of {self.comparison.data}, {self.comparison.evaluated_by}"
        return Page(f"Varied: {self.varied}", subtitle, (*sections, every))

    def write(self) -> None:
        """Write ``ablation.md``, ``.csv``, ``.json``, ``.png`` and ``.html`` into the comparison's folder, and
        ``crop.png``."""
        folder = self.comparison.folder
        for name, text in (
            ("ablation.md", f"{markdown_table(self.table())}\n{self.verdict()}\n"),
            ("ablation.csv", self._csv()),
            ("ablation.json", json.dumps(jsonable(self.document()), indent=2, ensure_ascii=False) + "\n"),
        ):
            with staged_file(folder / name) as stage:
                stage.write_text(text, encoding="utf-8")
        if self.crop is not None:
            write_image(folder / "crop.png", self.crop)
        write_plot(self.plot(), folder / "ablation.png", Canvas())
        self.page().write(folder / "ablation.html")

    def _csv(self) -> str:
        text = io.StringIO()
        rows = [{**one, "values": " ".join(map(str, one["values"]))} for one in self.summaries]
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


@in_style
def _plot(summaries: Sequence[dict[str, Any]], quality: str, *, canvas: Canvas = Canvas()) -> "PlotFigure":
    size = (7.2, 1.2 + 0.42 * len(summaries))
    figure, axes = canvas.axes(f"{quality} of every seed, and the mean", size=size, xlabel=quality)
    for place, one in enumerate(summaries):
        axes.plot(one["values"], [place] * len(one["values"]), "o", color=CYCLE[5], markersize=6, alpha=0.7)
        axes.plot([one["least"], one["most"]], [place] * 2, color=CYCLE[5], linewidth=1.2)
        axes.plot([one["mean"]], [place], "|", color=canvas.ink, markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(summaries)), [one["name"] for one in summaries])
    axes.invert_yaxis()
    return figure
