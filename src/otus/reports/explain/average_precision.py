"""How average precision comes about, detection by detection: down the scores, each one a point on the curve.

The figures are those of :class:`~otus.metrics.detection.rules.Rules`; the last area so far is what ``otus evaluate`` says.
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
from otus.reports.page import Figure, Page, Section
from otus.reports.plots import Canvas, on_page
from otus.visualization.marks import RIGHT, TRUTH, UNCOUNTED, WRONG, Mark, image_or_ground, part_with_marks

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot

_GROUPS = 20  # rows that sum up the detections that are not shown one by one
_COLOURS = {"true": RIGHT, "false": WRONG, "ignored": UNCOUNTED}


def iou_word(iou: float) -> str:
    """What people call an overlap: more than 0.5 is decent, 0.7 pretty good, 0.9 almost perfect.

    >>> iou_word(0.93), iou_word(0.71), iou_word(0.5)
    ('almost perfect', 'pretty good', '')
    """
    words = {0.9: "almost perfect", 0.7: "pretty good", 0.5: "decent"}
    return next((word for limit, word in words.items() if iou > limit), "")


@dataclass(frozen=True, eq=False)
class ApConstruction:
    """The building of one category's AP. Made by :func:`explain_average_precision`.

    Parameters
    ----------
    dataset, comparison
        The images; labels and predictions of the category alone.
    protocol, rules
        The name, and what it means, with one IoU threshold.
    matches
        By the rules.
    label
        Of the category.
    shown
        How many detections the page shows one by one, with images.
    """

    dataset: Dataset
    matcher: DetectionMatcher
    protocol: str
    rules: Rules
    matches: Assignment
    label: int
    shown: int

    @property
    def category(self) -> str:
        """Its name."""
        return self.dataset.categories[self.label]

    @property
    def positives(self) -> int:
        """Objects to be found."""
        return int(self.matches.positives[self.label])

    @cached_property
    def _order(self) -> np.ndarray:
        return self.matches.by_score(self.label)

    @cached_property
    def _verdicts(self) -> np.ndarray:
        return self.matches.outcomes[self._order, 0]

    @cached_property
    def _areas(self) -> np.ndarray:
        """AP of the first n detections, for each n; it moves only where a detection is true."""
        true, false = self._verdicts == Outcome.TRUE_POSITIVE, self._verdicts == Outcome.FALSE_POSITIVE
        if not self.positives:
            return np.full(len(true), np.nan)
        areas = np.zeros(int(true.sum()) + 1)
        for n, last in enumerate(np.flatnonzero(true), start=1):
            areas[n] = self.rules.average_precision(true[: last + 1], false[: last + 1], self.positives)
        return areas[np.cumsum(true)]

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall after each detection."""
        true, false = self._verdicts == Outcome.TRUE_POSITIVE, self._verdicts == Outcome.FALSE_POSITIVE
        precision, _ = curve(true, false, 1)
        return precision, np.cumsum(true) / self.positives if self.positives else np.full(len(true), np.nan)

    @property
    def average_precision(self) -> float:
        """The area in the end; NaN where there is nothing to find."""
        if not self.positives:
            return float("nan")
        return float(self._areas[-1]) if len(self._areas) else 0.0

    @cached_property
    def detections(self) -> list[dict[str, Any]]:
        """Every detection that counts, best first, with all that the page says of it."""
        matches, truth = self.matches, self.matcher.truth
        precision, recall = self._points
        names = {Outcome.TRUE_POSITIVE: "true", Outcome.FALSE_POSITIVE: "false", Outcome.IGNORED: "ignored"}
        records = []
        for n, row in enumerate(self._order):
            verdict = names[Outcome(int(self._verdicts[n]))]
            about = int(matches.matched[row, 0] if matches.matched[row, 0] >= 0 else matches.best_truth[row])
            iou = float(matches.ious[row, 0] if matches.matched[row, 0] >= 0 else matches.best_ious[row])
            records.append(
                {
                    "rank": n + 1,
                    "file": self.dataset.images.files[matches.image_index[row]],
                    "score": float(matches.scores[row]),
                    "verdict": verdict,
                    "why": self._why(verdict, about, iou),
                    "iou": iou,
                    "word": iou_word(iou),
                    "box_xyxy": self.matcher.predictions.boxes_xyxy[matches.detections[row]].tolist(),
                    "object": None
                    if about < 0
                    else {"id": int(truth.ids[about]), "box_xyxy": truth.boxes_xyxy[about].tolist()},
                    "precision": float(precision[n]),
                    "recall": float(recall[n]),
                    "area_so_far": float(self._areas[n]),
                }
            )
        return records

    def _why(self, verdict: str, about: int, iou: float) -> str:
        needed = self.rules.iou_thresholds[0]
        if verdict == "true":
            return "takes an object that was free"
        if verdict == "ignored":
            if about >= 0 and iou >= needed and ignore_regions(self.matcher.truth)[about]:
                return "lies in a region in which nothing is judged"
            if about >= 0 and iou >= needed and not self.matches.is_positive[about]:
                return "takes an object that need not be found"
            return "its area does not count"
        if about < 0:
            return f"no {self.category} there"
        return (
            "the object was taken by a better one" if iou >= needed else f"overlaps too little ({iou:.2f} < {needed:g})"
        )

    def document(self) -> dict[str, Any]:
        """All figures of the page: what ``otus explain ap --json`` prints."""
        true = self._verdicts == Outcome.TRUE_POSITIVE
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
            "false": int((self._verdicts == Outcome.FALSE_POSITIVE).sum()),
            "ignored": int((self._verdicts == Outcome.IGNORED).sum()),
            "never_found": self.positives - int(true.sum()),
            "AP": self.average_precision,
            "shown": min(self.shown, len(self._order)),
            "groups": self._groups(),
            "detections": self.detections,
        }

    def _groups(self) -> list[dict[str, Any]]:
        """The detections after those that are shown, in about as many groups of equal size as fit on a screen."""
        rest = self.detections[self.shown :]
        size = max(1, -(-len(rest) // _GROUPS))
        groups = []
        for first in range(0, len(rest), size):
            group = rest[first : first + size]
            groups.append(
                {
                    "detections": f"{group[0]['rank']} to {group[-1]['rank']}",
                    "scores": f"{group[0]['score']:.3f} to {group[-1]['score']:.3f}",
                    **{name: sum(one["verdict"] == name for one in group) for name in _COLOURS},
                    "precision": group[-1]["precision"],
                    "recall": group[-1]["recall"],
                    "area so far": group[-1]["area_so_far"],
                }
            )
        return groups

    def page(self) -> Page:
        """The building as one HTML page."""
        facts = self.document()
        title = f"AP of {self.category}: {self.average_precision:.4f}"
        subtitle = (
            f"protocol {self.protocol}, IoU {facts['iou']:g}; {facts['images']} images, {self.positives} objects to find, "
            f"{facts['counted']} detections"
        )
        return Page(title, subtitle, tuple(self._sections(facts)))

    def _sections(self, facts: Mapping[str, Any]) -> Iterator[Section]:
        limit = self.rules.max_dets
        left_out = facts["predictions"] - facts["counted"]
        yield Section(
            "The rules",
            "Detections are taken from the highest score to the lowest. "
            + {
                "greedy": "Each takes the object of its category that it overlaps most among those that are still free; ",
                "best_overlap": "Each is about the object of its category that it overlaps most, free or not; ",
            }[self.rules.matching]
            + f"with an IoU of {facts['iou']:g} or more it is true, otherwise, or if the object is taken, false. "
            + (
                f"Of an image the best {limit} count" + (f"; {left_out} are left out. " if left_out else ". ")
                if limit is not None
                else "All detections count. "
            )
            + (f"{facts['objects_ignored']} objects need not be found. " if facts["objects_ignored"] else "")
            + "Precision = true / all so far; recall = true / objects to find.",
        )
        yield Section("The curve", self._reading(), [on_page(self._plot(), width=720)])
        if facts["shown"]:
            rest = len(self._order) - facts["shown"]
            yield Section(
                "Detection by detection",
                f"The first {facts['shown']} in full"
                + (f"; the other {rest} are summed up below, and are all in the JSON. " if rest else ". ")
                + "Blue is the labelled object, green a true detection, orange a false one, grey one that does not count. "
                "An IoU over 0.5 is decent, over 0.7 pretty good, over 0.9 almost perfect.",
                list(self._images(facts["shown"])),
                [_row(one) for one in self.detections[: facts["shown"]]],
            )
        if facts["groups"]:
            yield Section(
                "The rest, summed up",
                "Precision, recall and area are those at the end of each row.",
                (),
                facts["groups"],
            )
        yield Section(
            "In the end",
            f"{facts['true']} of {self.positives} objects are found, {facts['never_found']} never; {facts['false']} "
            f"detections are false, {facts['ignored']} do not count. The area is AP = {self.average_precision:.6f}.",
        )

    def _reading(self) -> str:
        how = {
            "101": "read at the 101 recalls 0, 0.01 … 1, and AP is the mean of the 101",
            "11": "read at the 11 recalls 0, 0.1 … 1, and AP is the mean of the 11",
            "area": "taken as it is, and AP is the whole area under it",
        }[self.rules.interpolation]
        return (
            "Each detection is a point. The dents are filled: at each recall counts the best precision at that recall or a "
            f"higher one. The curve is {how}."
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
                axes.step(*steps, where="pre", linewidth=1.6, label="dents filled")
                for name, verdict in (("true", Outcome.TRUE_POSITIVE), ("false", Outcome.FALSE_POSITIVE)):
                    here = self._verdicts == verdict
                    size = 3.5 if len(recall) < 400 else 1.5
                    colour = "#{:02x}{:02x}{:02x}".format(*_COLOURS[name])
                    axes.plot(
                        recall[here], precision[here], "o", markersize=size, color=colour, label=f"{name} detection",
                        rasterized=len(recall) > 4000,
                    )  # fmt: skip
                if self.rules.interpolation == "11":
                    place = np.searchsorted(recall, self.rules.recalls)
                    read = np.append(filled, 0)[np.minimum(place, len(filled))]
                    axes.plot(self.rules.recalls, read, "d", markersize=6, markerfacecolor="none", label="read here")
                axes.legend(loc="lower left")
            axes.set(xlim=(-0.01, 1.02), ylim=(0, 1.05))
        return figure

    def _images(self, count: int) -> Iterator[Figure]:
        for one, row in zip(self.detections[:count], self._order, strict=False):
            image, name = image_or_ground(self.dataset, int(self.matches.image_index[row]))
            marks = [Mark(f"{one['score']:.2f}", one["box_xyxy"], _COLOURS[one["verdict"]])]
            if one["object"] is not None:
                marks.insert(0, Mark(f"IoU {one['iou']:.2f}", one["object"]["box_xyxy"], TRUTH))
            word = f", {one['word']}" if one["word"] and one["verdict"] == "true" else ""
            caption = (
                f"{one['rank']}. {one['verdict']}{word}: {one['why']}. Precision {one['precision']:.3f}, recall "
                f"{one['recall']:.3f}, area {one['area_so_far']:.3f}. {name}"
            )
            yield Figure.of(part_with_marks(image, marks), caption, width=215)


def explain_average_precision(
    dataset: Dataset,
    matcher: DetectionMatcher,
    *,
    category: str,
    protocol: str = "coco",
    rules: Rules,
    show: int = 40,
) -> ApConstruction:
    """Build the AP of one category.

    Parameters
    ----------
    category
        Its name.
    protocol, rules
        The name of the protocol for the page, and its rules with one IoU threshold.
    shown
        How many detections are shown with images.

    Raises
    ------
    ShapeError
        If the category is none of the data set's.
    UsageError
        If ``show`` is negative.
    """
    if show < 0:
        raise UsageError(f"show: expected 0 or more detections, got {show}")
    label = dataset.categories.index(category)
    alone = matcher.of_category(label)
    matches = alone.match(rules, min_iou=np.nextafter(0, 1))
    return ApConstruction(dataset, alone, protocol, rules, matches, label, show)


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    names = ("rank", "file", "score", "verdict", "iou", "word", "why", "precision", "recall")
    return {name: one[name] for name in names} | {"area so far": one["area_so_far"]}
