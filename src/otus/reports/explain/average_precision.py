"""Explain average precision: detections by descending score, each true or false, and a point on the curve.

The figures are those of :class:`~otus.metrics.detection.rules.Rules`; the final area is the AP of ``otus evaluate``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from otus.data.dataset import Dataset
from otus.errors import UsageError
from otus.metrics.detection.ignore_regions import ignore_regions
from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.precision_recall import curve, envelope
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis.assignment import Assignment, DetectionMatcher
from otus.reports.canvas import Canvas, embed_plot
from otus.reports.page import Figure, Page, Section
from otus.visualization.marks import FALSE, IGNORED, TRUE, TRUTH, Mark, crop_around_marks, image_or_placeholder

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

_GROUPS = 20  # rows that summarise the detections that are not shown with images
_COLOURS = {"true": TRUE, "false": FALSE, "ignored": IGNORED}


def iou_word(iou: float) -> str:
    """Return a word for an IoU: more than 0.5 is decent, 0.7 pretty good, 0.9 almost perfect.

    >>> iou_word(0.93), iou_word(0.71), iou_word(0.5)
    ('almost perfect', 'pretty good', '')
    """
    words = {0.9: "almost perfect", 0.7: "pretty good", 0.5: "decent"}
    return next((word for limit, word in words.items() if iou > limit), "")


@dataclass(frozen=True, eq=False)
class AveragePrecisionExplanation:
    """How the AP of one category is computed; see :func:`explain_average_precision`.

    Parameters
    ----------
    dataset, matcher
        The images; ground truth and predictions of the category alone.
    protocol, rules
        Name of the protocol, and its rules with one IoU threshold.
    matches
        Detections matched with objects by the rules.
    label
        Class index of the category.
    show
        Number of detections that the page shows with images.
    """

    dataset: Dataset
    matcher: DetectionMatcher
    protocol: str
    rules: Rules
    matches: Assignment
    label: int
    show: int

    @property
    def category(self) -> str:
        """Name of the category."""
        return self.dataset.categories[self.label]

    @property
    def positives(self) -> int:
        """Number of objects that count for recall."""
        return int(self.matches.positives[self.label])

    @cached_property
    def _order(self) -> np.ndarray:
        return self.matches.by_score(self.label)

    @cached_property
    def _outcomes(self) -> np.ndarray:
        return self.matches.outcomes[self._order, 0]

    @cached_property
    def _areas(self) -> np.ndarray:
        """AP of the first n detections, for each n; only true detections change it."""
        true, false = self._outcomes == Outcome.TRUE_POSITIVE, self._outcomes == Outcome.FALSE_POSITIVE
        if not self.positives:
            return np.full(len(true), np.nan)
        areas = np.zeros(int(true.sum()) + 1)
        for n, last in enumerate(np.flatnonzero(true), start=1):
            areas[n] = self.rules.average_precision(true[: last + 1], false[: last + 1], self.positives)
        return areas[np.cumsum(true)]

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall after each detection."""
        true, false = self._outcomes == Outcome.TRUE_POSITIVE, self._outcomes == Outcome.FALSE_POSITIVE
        precision, _ = curve(true, false, 1)
        return precision, np.cumsum(true) / self.positives if self.positives else np.full(len(true), np.nan)

    @property
    def average_precision(self) -> float:
        """The AP; NaN if there are no objects."""
        if not self.positives:
            return float("nan")
        return float(self._areas[-1]) if len(self._areas) else 0.0

    @cached_property
    def detections(self) -> list[dict[str, Any]]:
        """One record per detection within ``max_dets``, by descending score."""
        matches, truth = self.matches, self.matcher.ground_truth
        precision, recall = self._points
        names = {Outcome.TRUE_POSITIVE: "true", Outcome.FALSE_POSITIVE: "false", Outcome.IGNORED: "ignored"}
        records = []
        for n, row in enumerate(self._order):
            outcome = names[Outcome(int(self._outcomes[n]))]
            target = int(matches.matched[row, 0] if matches.matched[row, 0] >= 0 else matches.best_gt[row])
            iou = float(matches.ious[row, 0] if matches.matched[row, 0] >= 0 else matches.best_ious[row])
            records.append(
                {
                    "rank": n + 1,
                    "file": self.dataset.images.files[matches.image_index[row]],
                    "score": float(matches.scores[row]),
                    "outcome": outcome,
                    "why": self._why(outcome, target, iou),
                    "iou": iou,
                    "word": iou_word(iou),
                    "box_xyxy": self.matcher.predictions.boxes_xyxy[matches.detections[row]].tolist(),
                    "object": None
                    if target < 0
                    else {"id": int(truth.ids[target]), "box_xyxy": truth.boxes_xyxy[target].tolist()},
                    "precision": float(precision[n]),
                    "recall": float(recall[n]),
                    "area_so_far": float(self._areas[n]),
                }
            )
        return records

    def _why(self, outcome: str, target: int, iou: float) -> str:
        threshold = self.rules.iou_thresholds[0]
        if outcome == "true":
            return "matches an unmatched object"
        if outcome == "ignored":
            if target >= 0 and iou >= threshold and ignore_regions(self.matcher.ground_truth)[target]:
                return "is in an ignore region"
            if target >= 0 and iou >= threshold and not self.matches.is_positive[target]:
                return "matches an ignored object (crowd or difficult)"
            return "its area is outside the area range"
        if target < 0:
            return f"overlaps no {self.category}"
        return (
            "the object is matched by a higher-scoring detection"
            if iou >= threshold
            else f"IoU too low ({iou:.2f} < {threshold:g})"
        )

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain ap --json`` prints."""
        true = self._outcomes == Outcome.TRUE_POSITIVE
        settings = {name: value for name, value in asdict(self.rules).items() if name != "average"}
        return {
            "data": str(self.dataset.source),
            "protocol": self.protocol,
            "rules": settings,
            "category": self.category,
            "iou": self.rules.iou_thresholds[0],
            "images": len(self.dataset),
            "objects": self.positives,
            "objects_ignored": int((~self.matches.is_positive).sum()),
            "predictions": len(self.matcher.predictions),
            "counted": len(self._order),
            "true": int(true.sum()),
            "false": int((self._outcomes == Outcome.FALSE_POSITIVE).sum()),
            "ignored": int((self._outcomes == Outcome.IGNORED).sum()),
            "never_found": self.positives - int(true.sum()),
            "AP": self.average_precision,
            "shown": min(self.show, len(self._order)),
            "groups": self._groups(),
            "detections": self.detections,
        }

    def _groups(self) -> list[dict[str, Any]]:
        """Summarise the detections after those that are shown in about ``_GROUPS`` groups of equal size."""
        hidden = self.detections[self.show :]
        size = max(1, -(-len(hidden) // _GROUPS))
        groups = []
        for first in range(0, len(hidden), size):
            group = hidden[first : first + size]
            groups.append(
                {
                    "detections": f"{group[0]['rank']} to {group[-1]['rank']}",
                    "scores": f"{group[0]['score']:.3f} to {group[-1]['score']:.3f}",
                    **{name: sum(record["outcome"] == name for record in group) for name in _COLOURS},
                    "precision": group[-1]["precision"],
                    "recall": group[-1]["recall"],
                    "area so far": group[-1]["area_so_far"],
                }
            )
        return groups

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self.document()
        title = f"AP of {self.category}: {self.average_precision:.4f}"
        subtitle = (
            f"protocol {self.protocol}, IoU {facts['iou']:g}; {facts['images']} images, {self.positives} objects, "
            f"{facts['counted']} detections"
        )
        return Page(title, subtitle, tuple(self._sections(facts)))

    def _sections(self, facts: Mapping[str, Any]) -> Iterator[Section]:
        limit = self.rules.max_dets
        dropped = facts["predictions"] - facts["counted"]
        yield Section(
            "The rules",
            "Detections are matched in order of descending score. "
            + {
                "greedy": "Each is matched with the unmatched object of its category of highest IoU (greedy); ",
                "best_overlap": "Each is compared with the object of its category of highest IoU, matched or not "
                "(best overlap); ",
            }[self.rules.matching]
            + f"at an IoU of {facts['iou']:g} or more it is true, otherwise, or if the object is matched already, false. "
            + (
                f"At most {limit} per image count" + (f"; {dropped} are dropped. " if dropped else ". ")
                if limit is not None
                else "All detections count. "
            )
            + (f"{facts['objects_ignored']} objects are ignored. " if facts["objects_ignored"] else "")
            + "Precision = true / (true + false); recall = true / objects.",
        )
        yield Section("The curve", self._interpolation(), [embed_plot(self._plot(), width=720)])
        if facts["shown"]:
            hidden = len(self._order) - facts["shown"]
            yield Section(
                "Detection by detection",
                f"The {facts['shown']} highest-scoring"
                + (f"; the other {hidden} are summarised below, and listed in the JSON. " if hidden else ". ")
                + "Blue: ground truth; green: true detection; orange: false detection; grey: ignored detection. "
                "An IoU over 0.5 is decent, over 0.7 pretty good, over 0.9 almost perfect.",
                list(self._images(facts["shown"])),
                [_row(record) for record in self.detections[: facts["shown"]]],
            )
        if facts["groups"]:
            yield Section(
                "The others, summarised",
                "Precision, recall and area at the end of each group.",
                (),
                facts["groups"],
            )
        yield Section(
            "Result",
            f"{facts['true']} of {self.positives} objects are detected, {facts['never_found']} missed; {facts['false']} "
            f"detections are false, {facts['ignored']} ignored. The area is AP = {self.average_precision:.6f}.",
        )

    def _interpolation(self) -> str:
        rule = {
            "101": "sampled at the 101 recalls 0, 0.01 … 1, and AP is the mean of the samples",
            "11": "sampled at the 11 recalls 0, 0.1 … 1, and AP is the mean of the samples",
            "area": "integrated: AP is the area under it",
        }[self.rules.interpolation]
        return (
            "Each detection is a point. The precision is interpolated: at each recall, the maximum precision at that recall "
            f"or a higher one. The curve is {rule}."
        )

    def _plot(self) -> "Plot":
        canvas = Canvas(size=(8, 4.2))
        with canvas.style():
            figure, axes = canvas.axes("", xlabel="recall", ylabel="precision")
            precision, recall = self._points
            if self.positives and len(recall):
                filled = envelope(precision)
                steps = np.append(0, recall), np.append(filled[:1], filled)
                axes.fill_between(*steps, step="pre", alpha=0.25, linewidth=0)
                axes.step(*steps, where="pre", linewidth=1.6, label="interpolated")
                for name, outcome in (("true", Outcome.TRUE_POSITIVE), ("false", Outcome.FALSE_POSITIVE)):
                    selected = self._outcomes == outcome
                    size = 3.5 if len(recall) < 400 else 1.5
                    colour = "#{:02x}{:02x}{:02x}".format(*_COLOURS[name])
                    axes.plot(
                        recall[selected], precision[selected], "o", markersize=size, color=colour, label=f"{name} detection",
                        rasterized=len(recall) > 4000,
                    )  # fmt: skip
                if self.rules.interpolation == "11":
                    positions = np.searchsorted(recall, self.rules.recalls)
                    samples = np.append(filled, 0)[np.minimum(positions, len(filled))]
                    axes.plot(self.rules.recalls, samples, "d", markersize=6, markerfacecolor="none", label="samples")
                axes.legend(loc="lower left")
            axes.set(xlim=(-0.01, 1.02), ylim=(0, 1.05))
        return figure

    def _images(self, count: int) -> Iterator[Figure]:
        for record, row in zip(self.detections[:count], self._order, strict=False):
            image, name = image_or_placeholder(self.dataset, int(self.matches.image_index[row]))
            marks = [Mark(f"{record['score']:.2f}", record["box_xyxy"], _COLOURS[record["outcome"]])]
            if record["object"] is not None:
                marks.insert(0, Mark(f"IoU {record['iou']:.2f}", record["object"]["box_xyxy"], TRUTH))
            word = f", {record['word']}" if record["word"] and record["outcome"] == "true" else ""
            caption = (
                f"{record['rank']}. {record['outcome']}{word}: {record['why']}. Precision {record['precision']:.3f}, recall "
                f"{record['recall']:.3f}, area {record['area_so_far']:.3f}. {name}"
            )
            yield Figure.of(crop_around_marks(image, marks), caption, width=215)


def explain_average_precision(
    dataset: Dataset,
    matcher: DetectionMatcher,
    *,
    category: str,
    protocol: str = "coco",
    rules: Rules,
    show: int = 40,
) -> AveragePrecisionExplanation:
    """Explain how the AP of one category is computed.

    Parameters
    ----------
    dataset, matcher
        Images; ground truth and predictions.
    category
        Name of the category.
    protocol, rules
        Name of the protocol for the page, and its rules with one IoU threshold.
    show
        Number of detections to show with images.

    Raises
    ------
    ShapeError
        If the data set has no such category.
    UsageError
        If ``show`` is negative.
    """
    if show < 0:
        raise UsageError(f"show: expected 0 or more detections, got {show}")
    label = dataset.categories.index(category)
    of_category = matcher.of_category(label)
    matches = of_category.match(rules, min_iou=np.nextafter(0, 1))
    return AveragePrecisionExplanation(dataset, of_category, protocol, rules, matches, label, show)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    names = ("rank", "file", "score", "outcome", "iou", "word", "why", "precision", "recall")
    return {name: record[name] for name in names} | {"area so far": record["area_so_far"]}
