"""The table of a comparison of models: as text, Markdown, CSV, plot and page."""

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otus._files import staged_file
from otus.data.dataset import Dataset
from otus.inference.predictor import SCORE_THRESHOLD
from otus.parts.tasks import DETECTION, Task
from otus.reports.canvas import Canvas, embed_plot, write_plot
from otus.reports.cost_plot import cost_plot
from otus.reports.page import Figure, Page, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure as PlotFigure


@dataclass(frozen=True)
class Row:
    """The metrics and costs of one model in a comparison.

    Parameters
    ----------
    model, weights, start
        Name, file of weights, and initial weights of the training: ImageNet, a file name or ``random``.
    figures
        Metrics by the names in ``comparison_metrics`` of the :class:`~otus.parts.tasks.Task`, without those that do not
        apply to the model or the data.
    label
        Name of the row (default: the model's).
    seconds
        Median seconds per image of ``proposals`` (if computed before the network), ``network`` and ``after`` it.
    parameters, memory_mb
        Number of parameters, and memory for activations in prediction (None if it cannot be measured).
    minutes, epochs
        Length of the training. These and ``start`` are None if the weights do not record it.
    """

    model: str
    weights: str
    start: str | None
    figures: Mapping[str, float]
    seconds: Mapping[str, float]
    parameters: int
    memory_mb: float | None
    minutes: float | None = None
    epochs: float | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """Name of the row in the table."""
        return self.label or self.model


@dataclass(frozen=True)
class Comparison:
    """A comparison of models on the same images.

    Parameters
    ----------
    data, images
        The data set, and the names of the images.
    rows
        One row per model.
    folder
        Folder to which the comparison is written.
    record
        Machine, versions and settings.
    task
        Task of the models.
    dataset
        The images with their labels (default: not available).
    """

    data: str
    images: Sequence[str]
    rows: Sequence[Row]
    folder: Path
    record: Mapping[str, Any]
    task: Task = DETECTION
    dataset: Dataset | None = None

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus compare --json`` prints."""
        return {
            "data": self.data,
            "protocol": self.task.protocol,
            "images": len(self.images),
            "rows": [self._flat(row) for row in self.rows],
            "folder": str(self.folder),
        }

    @property
    def evaluated_by(self) -> str:
        """The protocol, and the kind of its plotted metric: ``coco bbox``."""
        kind = self.task.comparison_metrics[self.task.plotted_metric][0].split("/")[0]
        return " ".join(dict.fromkeys([self.task.protocol, kind]))

    def table(self) -> list[dict[str, str]]:
        """Return the rows as text, with units in the column names."""
        available = {name for row in self.rows for name in row.figures}
        titles = {name: title for name, (_, title) in self.task.comparison_metrics.items() if name in available}
        return [
            {
                "model": row.name,
                **{title: _figure(row.figures.get(name)) for name, title in titles.items()},
                **{f"{part}, s": f"{row.seconds[part]:.3f}" for part in ("proposals", "network", "after")},
                "s per image": f"{sum(row.seconds.values()):.3f}",
                "parameters": f"{row.parameters / 1e6:.1f} M",
                "memory": "" if row.memory_mb is None else f"{row.memory_mb:.0f} MB",
                "trained": "" if row.minutes is None else f"{row.minutes:.0f} min, {row.epochs:.3g} epochs",
                "start": row.start or "",
            }
            for row in self.rows
        ]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        return markdown_table(self.table(), text=("model", "start"))

    def csv(self) -> str:
        """Return the metrics and costs as CSV, not rounded."""
        rows = []
        for row in self.rows:
            flat = self._flat(row)
            seconds = flat.pop("seconds")
            rows.append(flat | {f"seconds/{part}": value for part, value in seconds.items()})
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def plot(self) -> "PlotFigure":
        """Plot the task's main metric by seconds per image."""
        name = self.task.plotted_metric
        points = {row.name: (sum(row.seconds.values()), row.figures[name]) for row in self.rows}
        return cost_plot(points, quality=self.task.comparison_metrics[name][1])

    def _flat(self, row: Row) -> dict[str, Any]:
        """Return a row with its metrics among its fields; None for those that it does not have."""
        fields = asdict(row)
        figures = fields.pop("figures")
        return {
            **{name: fields.pop(name) for name in ("model", "weights", "start")},
            **{name: figures.get(name) for name in self.task.comparison_metrics},
            **fields,
        }

    def page(self) -> Page:
        """Return the HTML page: the table, and each model's predictions on a few images."""
        is_defined = any(not math.isnan(row.figures[self.task.plotted_metric]) for row in self.rows)
        figures = [embed_plot(self.plot())] if is_defined else []
        sections = [Section("Figures", f"Protocol: {self.evaluated_by}; seconds are medians.", figures, self.table())]
        for row in self.rows:
            overlays = sorted((self.folder / "images").glob(f"{file_stem(row.model, row.weights)}-*.jpg"))
            figures = [Figure(f"images/{path.name}", _caption(path), 320) for path in overlays]
            sections.append(Section(row.name, f"Detections with a score of at least {SCORE_THRESHOLD}.", figures))
        subtitle = f"{len(self.images)} images of {self.data}"
        return Page("Comparison", subtitle, sections)

    def write(self) -> None:
        """Write ``compare.md``, ``compare.csv``, ``compare.png``, ``index.html`` and ``run.json`` into the folder."""
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


def markdown_table(rows: Sequence[Mapping[str, str]], *, text: Collection[str] = ()) -> str:
    """Return rows as a Markdown table; columns are right-aligned except the first and those in ``text``."""
    names = list(rows[0])
    lines = [names, ["---" if name in (names[0], *text) else "---:" for name in names]]
    lines += [[row[name] for name in names] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def read_row(path: Path) -> Row:
    """Read the row that an earlier run wrote."""
    values = json.loads(path.read_text())["row"]
    values["figures"] = {name: math.nan if value is None else value for name, value in values["figures"].items()}
    return Row(**values)


def file_stem(model: str, weights: str) -> str:
    """Return the stem of the file names of a row's images."""
    return f"{model}-{hashlib.sha256(weights.encode()).hexdigest()[:6]}"


def jsonable(value: Any) -> Any:
    """Return a value that JSON can represent: NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def distinct_labels(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with distinct names: equal ones get the run's folder or the file of weights added."""
    counts = Counter(row.name for row in rows)
    labels = [f"{row.model}, {_origin(row)}" if counts[row.name] > 1 else row.label for row in rows]
    label_counts = Counter(labels)
    labels = [
        f"{label} ({row.weights})" if label and label_counts[label] > 1 else label
        for row, label in zip(rows, labels, strict=True)
    ]
    return [replace(row, label=label) for row, label in zip(rows, labels, strict=True)]


def _origin(row: Row) -> str:
    file = Path(row.weights)
    return file.parent.parent.name if file.parent.name == "weights" and file.parent.parent.name else file.name


def _figure(value: float | None) -> str:
    """Return a metric with three decimals, or an empty string if it is undefined (no objects)."""
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _caption(path: Path) -> str:
    return path.stem.split("-", 2)[-1]
