"""The report of an ablation, in which one argument is varied, with several seeds each: as text, plot and page."""

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
    """One value of the varied argument, and its trainings, one for each seed."""

    name: str
    rows: Sequence[Row]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Variants of a model, each trained with several seeds.

    Parameters
    ----------
    varied
        Name of the varied argument.
    variants
        The variants, in the order in which they were given.
    comparison
        Comparison of all trainings, with the folder of the report.
    crop
        Image of the predictions of each variant for the same crop (default: not shown).
    """

    varied: str
    variants: Sequence[Variant]
    comparison: Comparison
    crop: UInt8[np.ndarray, "h w 3"] | None = None

    @property
    def figure(self) -> str:
        """Name of the metric that is compared."""
        return self.comparison.task.plotted_metric

    @property
    def seeds(self) -> int:
        """Number of trainings of each variant."""
        return len(self.variants[0].rows)

    @cached_property
    def summaries(self) -> list[dict[str, Any]]:
        """Mean, standard deviation and range of each variant's metric over the seeds, and its costs."""
        return [
            {
                "name": variant.name,
                "mean": float(np.mean(values)),  # NaN if one is, like all below
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
        """Pairs of variants whose ranges do not overlap: every seed of one is above every seed of the other."""
        if self.seeds == 1:
            return []
        return [
            {"higher": higher["name"], "lower": lower["name"]}
            for first, second in combinations(self.summaries, 2)
            for higher, lower in ((first, second), (second, first))
            if higher["least"] > lower["most"]
        ]

    @property
    def by_chance(self) -> float:
        """Probability that the ranges of two equal variants do not overlap."""
        return 2 / math.comb(2 * self.seeds, self.seeds)

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus compare --vary --json`` prints."""
        document = self.comparison.document()
        return {
            **{name: document[name] for name in ("data", "protocol", "images", "folder")},
            "varied": self.varied,
            "figure": self.figure,
            "seeds": self.seeds,
            "variants": jsonable(self.summaries),
            "apart": self.apart,
            "apart_by_chance": self.by_chance,
            "rows": document["rows"],
        }

    def table(self) -> list[dict[str, str]]:
        """Return the rows of the table as text, in the order of the variants."""
        title = self.comparison.task.comparison_metrics[self.figure][1]
        return [
            {
                self.varied: summary["name"],
                title: f"{summary['mean']:.3f}"
                + ("" if math.isnan(summary["deviation"]) else f" ± {summary['deviation']:.3f}"),
                "least": f"{summary['least']:.3f}",
                "most": f"{summary['most']:.3f}",
                "s per image": f"{summary['seconds']:.3f}",
                "parameters": f"{summary['parameters'] / 1e6:.2f} M",
            }
            for summary in self.summaries
        ]

    def verdict(self) -> str:
        """Return, as a sentence, which variants differ by more than the spread over seeds."""
        if self.seeds == 1:
            return "One seed each: no order is claimed."
        pairs = "; ".join(f"{pair['higher']} above {pair['lower']}" for pair in self.apart)
        order = f"Every seed of one is above every seed of the other: {pairs}." if pairs else "The ranges overlap."
        return (
            f"{order} No order is claimed of {'the others' if pairs else 'any two'}. With {self.seeds} seeds each, the "
            f"ranges of two equal variants do not overlap with probability {self.by_chance:.2g}."
        )

    def plot(self) -> "PlotFigure":
        """Plot the metric of every seed, and the mean of each variant."""
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
                    "Predictions of the first seed, at the network's resolution. Above: the predicted labels; below: "
                    "their probabilities, from dark (0) to bright (1), which show checkerboards, blocks and lost borders.",
                    [Figure("crop.png", "", self.crop.shape[1])],
                )
            )
        trainings = Section("All trainings", "", rows=self.comparison.table())
        subtitle = f"{len(self.comparison.images)} images of {self.comparison.data}, {self.comparison.evaluated_by}"
        return Page(f"Varied: {self.varied}", subtitle, (*sections, trainings))

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
        rows = [{**summary, "values": " ".join(map(str, summary["values"]))} for summary in self.summaries]
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


@in_style
def _plot(summaries: Sequence[dict[str, Any]], quality: str, *, canvas: Canvas = Canvas()) -> "PlotFigure":
    size = (7.2, 1.2 + 0.42 * len(summaries))
    figure, axes = canvas.axes(f"{quality} of every seed, and the mean", size=size, xlabel=quality)
    for row, summary in enumerate(summaries):
        axes.plot(summary["values"], [row] * len(summary["values"]), "o", color=CYCLE[5], markersize=6, alpha=0.7)
        axes.plot([summary["least"], summary["most"]], [row] * 2, color=CYCLE[5], linewidth=1.2)
        axes.plot([summary["mean"]], [row], "|", color=canvas.ink, markersize=16, markeredgewidth=2)
    axes.set_yticks(range(len(summaries)), [summary["name"] for summary in summaries])
    axes.invert_yaxis()
    return figure
