"""Why two protocols' numbers for the same predictions differ, term by term, as facts and as a page."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from otus.data.dataset import Dataset
from otus.metrics.detection.rules import COCO_IOU_THRESHOLDS, Rules
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.difference import Step, difference_steps
from otus.reports.page import Page, Section
from otus.reports.plots import Canvas, on_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

_MEANING = {
    "min_score": "Detections that score lower are dropped before anything else; their recall is lost.",
    "score_decimals": "Rounded scores tie, and tied detections count in the order of their images.",
    "inclusive_boxes": "Boxes are a pixel wider and higher, so small boxes overlap differently.",
    "max_dets": "Of each image and category only the best so many detections count.",
    "matching": "A detection on an object that is taken may take the next best (greedy), or is false (best_overlap).",
    "crowd": "What is labelled as a crowd is ignored, to be found like all else, or not there.",
    "difficult": "What is marked difficult is ignored, to be found like all else, or not there.",
    "area": "Only objects of that size count.",
    "iou_thresholds": "How much a true detection must overlap; the mean over several thresholds is stricter than 0.5 alone.",
    "interpolation": "Precision is read at 101 or 11 recalls, or the whole area under the curve is taken.",
    "average": "Whether categories without objects, but with detections, are in the mean, as 0.",
}


@dataclass(frozen=True, eq=False)
class DifferenceExplained:
    """The way from one protocol to another. Made by :func:`explain_difference`.

    Parameters
    ----------
    dataset
        The images and labels.
    names
        Of the two protocols, with their settings.
    steps
        The start, and a step for each rule that differs.
    """

    dataset: Dataset
    names: tuple[str, str]
    steps: list[Step]

    @property
    def difference(self) -> float:
        """The second protocol's mAP less the first's."""
        return self.steps[-1].average_precision - self.steps[0].average_precision

    def document(self) -> dict[str, Any]:
        """All figures of the page: what ``otus explain difference --json`` prints."""
        first, last = self.steps[0], self.steps[-1]
        return {
            "data": str(self.dataset.source),
            "images": len(self.dataset),
            "a": {"protocol": self.names[0], "AP": first.average_precision, "rules": asdict(first.rules)},
            "b": {"protocol": self.names[1], "AP": last.average_precision, "rules": asdict(last.rules)},
            "difference": self.difference,
            "steps": [
                {
                    "rule": step.rule,
                    "from": _shown(step.before),
                    "to": _shown(step.after),
                    "change": step.average_precision - before.average_precision,
                    "AP": step.average_precision,
                    "objects": step.objects,
                    "detections": step.detections,
                    "true": step.true,
                }
                for before, step in pairwise(self.steps)
            ],
            "per_category": {
                name: {"a": float(first.by_category[k]), "b": float(last.by_category[k])}
                for k, name in enumerate(self.dataset.categories)
            },
        }

    def page(self) -> Page:
        """The way as one HTML page."""
        a, b = (step.average_precision for step in (self.steps[0], self.steps[-1]))
        title = f"Why {self.names[0]} says {a:.4f} and {self.names[1]} says {b:.4f}"
        return Page(title, f"{self.dataset.source}: {len(self.dataset)} images", tuple(self._sections()))

    def _sections(self) -> Iterator[Section]:
        facts = self.document()
        if not facts["steps"]:
            yield Section("No rule differs", "Both names stand for the same rules, and so for the same number.")
            return
        yield Section(
            "One rule after the other",
            f"The difference is {self.difference:+.6f}: the sum of the changes below. What a rule brings depends on what "
            "was changed before it; the order is that in which rules are applied.",
            [on_page(self._plot(), width=760)],
            [
                {
                    "rule": _title(one["rule"]),
                    "from": one["from"],
                    "to": one["to"],
                    "change": f"{one['change']:+.6f}",
                    "AP then": f"{one['AP']:.6f}",
                    "objects": one["objects"],
                    "detections": one["detections"],
                    "true": one["true"],
                }
                for one in facts["steps"]
            ],
        )
        yield Section(
            "What the rules mean",
            "",
            (),
            [{"rule": _title(one["rule"]), "meaning": _MEANING[one["rule"]]} for one in facts["steps"]],
        )
        rows = [
            (name, one["a"], one["b"])
            for name, one in facts["per_category"].items()
            if not np.isnan([*one.values()]).any()
        ]
        rows.sort(key=lambda row: -abs(row[2] - row[1]))
        yield Section(
            "By category",
            "Those that differ most first.",
            (),
            [{"category": n, self.names[0]: a, f"{self.names[1]} ": b, "difference": b - a} for n, a, b in rows],
        )

    def _plot(self) -> "Plot":
        """A waterfall: where each rule takes the number."""
        canvas = Canvas()
        values = np.nan_to_num([step.average_precision for step in self.steps]).tolist()
        short = [name if len(name) <= 24 else f"{name.partition(':')[0]}:…" for name in self.names]
        names = [short[0], *(_title(step.rule) for step in self.steps[1:]), short[1]]
        with canvas.style():
            figure, axes = canvas.axes("", xlabel="mAP", size=(8, 0.9 + 0.42 * len(names)))
            rows = range(len(names))
            ends = [(0.0, values[0]), *pairwise(values), (0.0, values[-1])]
            colours = ["#56b4e9", *("#009e73" if b >= a else "#d55e00" for a, b in pairwise(values)), "#56b4e9"]
            widths = [abs(b - a) for a, b in ends]
            axes.barh(rows, widths, left=[min(pair) for pair in ends], color=colours, height=0.62)
            texts = [f"{values[0]:.4f}", *(f"{b - a:+.4f}" for a, b in pairwise(values)), f"{values[-1]:.4f}"]
            for row, (a, b), text in zip(rows, ends, texts, strict=True):
                axes.text(max(a, b), row, f" {text}", va="center")
            axes.set_yticks(rows, names)
            axes.invert_yaxis()
            axes.grid(False, axis="y")
            axes.set(xlim=(0, max(*values, 0.01) * 1.15))
        return figure


def explain_difference(
    dataset: Dataset, matcher: DetectionMatcher, names: tuple[str, str], rules: tuple[Rules, Rules]
) -> DifferenceExplained:
    """Walk from one protocol to another.

    Parameters
    ----------
    names
        What to call them.
    rules
        What they are.
    """
    return DifferenceExplained(dataset, names, difference_steps(matcher, *rules))


def _title(rule: str) -> str:
    return rule.replace("_", " ")


def _shown(value: object) -> str:
    """A rule's value in a word or two."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == COCO_IOU_THRESHOLDS:
        return "0.50:0.05:0.95"
    if isinstance(value, tuple):
        return "/".join(f"{one:g}" for one in value)
    return str(value)
