"""The table of several models: as words, Markdown, CSV, a plot and a page with images."""

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otus._files import staged_file
from otus.inference.predictor import SCORE_THRESHOLD
from otus.reports.page import Figure, Page, Section
from otus.reports.plots import Canvas, cost_plot, embed_plot, write_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure as PlotFigure


@dataclass(frozen=True)
class Row:
    """What a comparison says of one model.

    Parameters
    ----------
    model, weights, start
        Which, from which file, and what its training started from: ImageNet, a file's name or nothing (``random``).
    AP, AP50
        Of boxes, by COCO's protocol.
    AP_masks
        Of masks; None where the model or the data have none.
    label
        What the row is called, if not by the model's name.
    seconds
        An image, the median: ``proposals`` finding them on the spot, ``network``, ``after`` it.
    parameters, memory_mb
        Numbers that it has, and what it needs beside them while predicting (None where it cannot be measured).
    minutes, epochs
        Of training. These and ``start`` are None where the weights do not say it.
    """

    model: str
    weights: str
    start: str | None
    AP: float
    AP50: float
    seconds: Mapping[str, float]
    parameters: int
    memory_mb: float | None
    minutes: float | None = None
    epochs: float | None = None
    AP_masks: float | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.label or self.model


@dataclass(frozen=True)
class Comparison:
    """The rows, where they lie, and what they have in common: ``record`` says of which machine, versions and settings."""

    data: str
    images: Sequence[str]
    rows: Sequence[Row]
    folder: Path
    record: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """What ``otus compare --json`` says."""
        return {
            "data": self.data,
            "protocol": "coco",
            "images": len(self.images),
            "rows": [asdict(row) for row in self.rows],
            "folder": str(self.folder),
        }

    def table(self) -> list[dict[str, str]]:
        """The rows as words, for people."""
        names = {"AP": "AP", "AP50": "AP50"}
        if any(row.AP_masks is not None for row in self.rows):
            names["AP_masks"] = "mask AP"
        return [
            {
                "model": row.name,
                **{title: _figure(getattr(row, name)) for name, title in names.items()},
                **{f"{part}, s": f"{row.seconds[part]:.3f}" for part in ("proposals", "network", "after")},
                "s an image": f"{sum(row.seconds.values()):.3f}",
                "parameters": f"{row.parameters / 1e6:.1f} M",
                "memory": "" if row.memory_mb is None else f"{row.memory_mb:.0f} MB",
                "trained": "" if row.minutes is None else f"{row.minutes:.0f} min, {row.epochs:.3g} epochs",
                "start": row.start or "",
            }
            for row in self.rows
        ]

    def markdown(self) -> str:
        """The table in Markdown."""
        table = self.table()
        names = list(table[0])
        lines = [names, ["---" if name in ("model", "start") else "---:" for name in names]]
        lines += [[row[name] for name in names] for row in table]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

    def csv(self) -> str:
        """The figures themselves, comma-separated."""
        rows = []
        for row in self.rows:
            flat = asdict(row)
            seconds = flat.pop("seconds")
            rows.append(flat | {f"seconds/{part}": value for part, value in seconds.items()})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def plot(self) -> "PlotFigure":
        """AP50 by seconds an image."""
        return cost_plot({row.name: (sum(row.seconds.values()), row.AP50) for row in self.rows})

    def page(self) -> Page:
        """The table, and what each model found on a few of the images."""
        known = any(not math.isnan(row.AP50) for row in self.rows)
        figures = [embed_plot(self.plot())] if known else []
        sections = [Section("Figures", "Judged by COCO's protocol (bbox); seconds are medians.", figures, self.table())]
        for row in self.rows:
            shown = sorted((self.folder / "images").glob(f"{file_stem(row.model, row.weights)}-*.jpg"))
            figures = [Figure(f"images/{path.name}", _caption(path), 320) for path in shown]
            sections.append(Section(row.name, f"What scores at least {SCORE_THRESHOLD}.", figures))
        subtitle = f"{len(self.images)} images of {self.data}"
        return Page("Comparison", subtitle, sections)

    def write(self) -> None:
        """``compare.md``, ``compare.csv``, ``compare.png``, ``index.html`` and ``run.json`` in the folder."""
        run = {**self.record, **self.document(), "files": list(self.images)}
        for name, text in (
            ("compare.md", self.markdown()),
            ("compare.csv", self.csv()),
            ("run.json", json.dumps(jsonable(run), indent=2, ensure_ascii=False, default=str) + "\n"),
        ):
            with staged_file(self.folder / name) as stage:
                stage.write_text(text, encoding="utf-8")
        write_plot(self.plot(), self.folder / "compare.png", Canvas())
        self.page().write(self.folder / "index.html")


def read_row(path: Path) -> Row:
    """A row that is kept on disk."""
    values = json.loads(path.read_text())["row"]
    undefined = {name: math.nan for name in ("AP", "AP50") if values[name] is None}  # null of JSON
    return Row(**values | undefined)


def file_stem(model: str, weights: str) -> str:
    """What a row's images are named after."""
    return f"{model}-{hashlib.sha256(weights.encode()).hexdigest()[:6]}"


def jsonable(value: Any) -> Any:
    """Fit for JSON: a figure that is not defined (NaN) becomes null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def distinct_labels(rows: Sequence[Row]) -> list[Row]:
    """The rows, with labels where two would be called the same: by their run's folder or their file's name."""
    counts = Counter(row.name for row in rows)
    labels = [f"{row.model}, {_origin(row)}" if counts[row.name] > 1 else row.label for row in rows]
    again = Counter(labels)
    labels = [
        f"{label} ({row.weights})" if label and again[label] > 1 else label
        for row, label in zip(rows, labels, strict=True)
    ]
    return [replace(row, label=label) for row, label in zip(rows, labels, strict=True)]


def _origin(row: Row) -> str:
    file = Path(row.weights)
    return file.parent.parent.name if file.parent.name == "weights" and file.parent.parent.name else file.name


def _figure(value: float | None) -> str:
    """Nothing where it is not defined: no objects were there to be found."""
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _caption(path: Path) -> str:
    return path.stem.split("-", 2)[-1]
