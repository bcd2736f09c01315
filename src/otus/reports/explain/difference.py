"""Explain the difference between two protocols on the same predictions: one rule changed after the other."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from otus.data.dataset import Dataset
from otus.metrics.detection.rules import COCO_IOU_THRESHOLDS, Rules
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.difference import Step, difference_steps
from otus.reports.canvas import Canvas, embed_plot
from otus.reports.page import Page, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

_MEANING = {
    "min_score": "Detections with lower scores are dropped first; their recall is lost.",
    "score_decimals": "Rounded scores tie, and tied detections count in the order of their images.",
    "inclusive_boxes": "Width and height are computed with + 1 pixel, which changes the IoU of small boxes.",
    "max_dets": "Maximum detections per image and category.",
    "matching": "A detection of an object that is matched already may match the next one (greedy), or is false "
    "(best_overlap).",
    "crowd": "Crowd objects are ignored, counted like others, or removed.",
    "difficult": "Difficult objects are ignored, counted like others, or removed.",
    "area": "Only objects of this area range count.",
    "iou_thresholds": "IoU that a true detection needs; the mean over several thresholds is stricter than 0.5 alone.",
    "interpolation": "Precision is sampled at 101 or 11 recalls, or the curve is integrated.",
    "average": "Whether categories with detections but without objects count in the mean, as 0.",
}


@dataclass(frozen=True, eq=False)
class DifferenceExplanation:
    """The steps from one protocol to another; see :func:`explain_difference`.

    Parameters
    ----------
    dataset
        Images and ground truth.
    names
        Names of the two protocols, with their settings.
    steps
        The first protocol, then one step for each rule that differs.
    """

    dataset: Dataset
    names: tuple[str, str]
    steps: list[Step]

    @property
    def difference(self) -> float:
        """mAP of the second protocol minus mAP of the first."""
        return self.steps[-1].average_precision - self.steps[0].average_precision

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain difference --json`` prints."""
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
                    "from": _format(step.before),
                    "to": _format(step.after),
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
        """Return the HTML page."""
        a, b = (step.average_precision for step in (self.steps[0], self.steps[-1]))
        title = f"Why mAP is {a:.4f} by {self.names[0]} and {b:.4f} by {self.names[1]}"
        return Page(title, f"{self.dataset.source}: {len(self.dataset)} images", tuple(self._sections()))

    def _sections(self) -> Iterator[Section]:
        facts = self.document()
        if not facts["steps"]:
            yield Section("No rule differs", "Both protocols have the same rules, so the results are equal.")
            return
        yield Section(
            "One rule after the other",
            f"The difference is {self.difference:+.6f}: the sum of the changes below. The effect of a rule depends on those "
            "changed before it; they are in the order in which an evaluation applies them.",
            [embed_plot(self._plot(), width=760)],
            [
                {
                    "rule": _title(step["rule"]),
                    "from": step["from"],
                    "to": step["to"],
                    "change": f"{step['change']:+.6f}",
                    "AP": f"{step['AP']:.6f}",
                    "objects": step["objects"],
                    "detections": step["detections"],
                    "true": step["true"],
                }
                for step in facts["steps"]
            ],
        )
        yield Section(
            "What the rules mean",
            "",
            (),
            [{"rule": _title(step["rule"]), "meaning": _MEANING[step["rule"]]} for step in facts["steps"]],
        )
        rows = [
            (name, pair["a"], pair["b"])
            for name, pair in facts["per_category"].items()
            if not np.isnan([*pair.values()]).any()
        ]
        rows.sort(key=lambda row: -abs(row[2] - row[1]))
        yield Section(
            "By category",
            "Sorted by absolute difference.",
            (),
            [{"category": n, self.names[0]: a, f"{self.names[1]} ": b, "difference": b - a} for n, a, b in rows],
        )

    def _plot(self) -> "Plot":
        """Plot the mAP after each step as a waterfall chart."""
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
) -> DifferenceExplanation:
    """Compute the steps from one protocol to another.

    Parameters
    ----------
    dataset, matcher
        Images; ground truth and predictions.
    names, rules
        Names and rules of the two protocols.
    """
    return DifferenceExplanation(dataset, names, difference_steps(matcher, *rules))


def _title(rule: str) -> str:
    return rule.replace("_", " ")


def _format(value: object) -> str:
    """Return a rule's value in a word or two."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == COCO_IOU_THRESHOLDS:
        return "0.50:0.05:0.95"
    if isinstance(value, tuple):
        return "/".join(f"{item:g}" for item in value)
    return str(value)
