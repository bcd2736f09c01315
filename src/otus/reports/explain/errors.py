"""What goes wrong in predictions, and what it costs, as facts and as a page with the images to look at first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from otus.data.dataset import Dataset
from otus.metrics.detection.matching import Outcome
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.label_errors import Suspect
from otus.metrics.diagnosis.thresholds import sweep_nms_iou
from otus.metrics.diagnosis.tide import WRONG, Error
from otus.reports.analysis import Analysis
from otus.reports.page import Figure, Page, Section
from otus.reports.plots import Canvas, on_page
from otus.visualization.marks import RIGHT, TRUTH, Mark, image_or_ground, marked, part_with_marks
from otus.visualization.marks import WRONG as RED

NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
_WORST, _SUSPECTS, _EXAMPLES = 12, 24, 4
_LISTED = 200  # suspects in the document

_MEANING = {
    Error.CLASSIFICATION: "on an object of another category",
    Error.LOCALISATION: "on an object of their category that they overlap too little",
    Error.BOTH: "on an object of another category that they overlap too little",
    Error.DUPLICATE: "on an object that a better one took",
    Error.BACKGROUND: "on nothing that is labelled",
    Error.MISSED: "objects that nothing comes near enough",
}
_SUSPICION = {
    "missing_label": "A confident detection where nothing is labelled",
    "wrong_category": "A confident detection of another category than the label's",
    "nobody_finds": "A label that no detection comes near",
}


@dataclass(frozen=True, eq=False)
class ErrorsExplained:
    """The errors of predictions for a data set.

    Parameters
    ----------
    dataset
        Images and labels.
    analysis
        Of the predictions.
    """

    dataset: Dataset
    analysis: Analysis

    @property
    def _matcher(self) -> DetectionMatcher:
        return self.analysis.matcher

    @cached_property
    def _facts(self) -> dict[str, Any]:
        analysis, errors = self.analysis, self.analysis.errors
        figures, matches = analysis.average_precision, errors.matches
        defined = figures[analysis.matches.positives > 0]
        names, delta_ap = list(self.dataset.categories), errors.delta_ap()
        best = int(np.argmax(analysis.score_curve.f1)) if len(analysis.score_curve.scores) else None
        confusion, calibrated = analysis.confusion, analysis.calibration
        return {
            "protocol": "coco",
            "data": str(self.dataset.source),
            "kind": "segm" if analysis.masks else "bbox",
            "images": len(self.dataset),
            "iou": analysis.iou,
            "background_iou": analysis.background_iou,
            "score_threshold": analysis.score_threshold,
            "objects": int(matches.positives.sum()),
            "detections": len(matches.detections),
            "AP": float(defined.mean()) if defined.size else float("nan"),
            "AP_at_iou": float(np.nanmean(errors.average_precision())) if defined.size else float("nan"),
            "AP_by_iou": dict(zip(map(_two, analysis.matches.rules.iou_thresholds), analysis.by_iou(), strict=True)),
            "errors": {one.name.lower(): {"count": errors.counts[one], "cost": delta_ap[one]} for one in WRONG},
            "false_positives": {"cost": errors.false_positive_cost()},
            "false_negatives": {"cost": errors.false_negative_cost()},
            "per_category": {name: self._of_category(k) for k, name in enumerate(names)},
            "confusion": {"categories": [*names, "background"], "counts": confusion.counts.tolist()},
            "calibration": None
            if calibrated is None
            else {
                "ECE": calibrated.expected_error,
                "MCE": calibrated.maximum_error,
                "bins": [
                    {"from": float(low), "to": float(high), "detections": int(n), "score": float(s), "precision": float(p)}
                    for low, high, n, s, p in zip(
                        calibrated.edges[:-1], calibrated.edges[1:], calibrated.counts, calibrated.confidence,
                        calibrated.precision, strict=True,
                    )
                ],
            },
            "best_threshold": None
            if best is None
            else {
                name: float(getattr(analysis.score_curve, name)[best])
                for name in ("scores", "precision", "recall", "f1")
            },
            "by_nms_iou": [one._asdict() for one in sweep_nms_iou(self._matcher, NMS_IOUS, iou=analysis.iou)],
            "worst_images": [self._of_image(index) for index in analysis.images.worst(_WORST)],
            "label_errors": {
                "count": len(analysis.suspects),
                "listed": [self._of_suspect(one) for one in analysis.suspects[:_LISTED]],
            },
        }  # fmt: skip

    def document(self) -> dict[str, Any]:
        """All figures of the page: what ``otus explain errors --json`` prints."""
        return self._facts

    def _of_category(self, label: int) -> dict[str, Any]:
        errors = self.analysis.errors
        here = errors.matches.labels == label
        counts = {one.name.lower(): int((errors.types[here] == one).sum()) for one in WRONG[:-1]}
        missed = int(errors.missed[errors.truth_labels == label].sum())
        row = self.analysis.average_precision[label]
        return {
            "objects": int(errors.matches.positives[label]),
            "AP": float(row.mean()),
            "AP50": float(row[0]),
            **counts,
            "missed": missed,
        }

    def _of_image(self, index: int) -> dict[str, Any]:
        counts = self.analysis.images
        return {
            "file": self.dataset.images.files[index],
            **{name: int(getattr(counts, name)[index]) for name in ("right", "false", "unfound")},
            "f1": float(counts.f1[index]),
        }

    def _of_suspect(self, one: Suspect) -> dict[str, Any]:
        truth, found, names = self._matcher.truth, self._matcher.predictions, self.dataset.categories
        record: dict[str, Any] = {"kind": one.kind, "file": self.dataset.images.files[one.image_index]}
        if one.truth >= 0:
            record["label"] = {
                "id": int(truth.ids[one.truth]),
                "category": names[int(truth.labels[one.truth])],
                "box_xyxy": truth.boxes_xyxy[one.truth].tolist(),
            }
        if one.detection >= 0:
            record["detection"] = {
                "category": names[int(found.labels[one.detection])],
                "score": one.score,
                "box_xyxy": found.boxes_xyxy[one.detection].tolist(),
            }
        return record

    def page(self) -> Page:
        """The errors as one HTML page."""
        facts = self._facts
        title = f"What goes wrong: mAP {facts['AP']:.3f}, {facts['AP_at_iou']:.3f} at IoU {facts['iou']:g}"
        subtitle = (
            f"{facts['data']}: {facts['images']} images, {facts['objects']} objects, {facts['detections']} detections; "
            f"protocol coco, {facts['kind']}"
        )
        return Page(title, subtitle, tuple(self._sections(facts)))

    def _sections(self, facts: Mapping[str, Any]) -> Iterator[Section]:
        drawn = {name: on_page(figure) for name, figure in self.analysis.plots(Canvas()).items()}
        yield Section(
            "What each type of error costs",
            "How much mAP would rise if all errors of a type were mended, each by itself (TIDE). All false detections "
            f"together cost {facts['false_positives']['cost']:.3f}, all objects that are not found "
            f"{facts['false_negatives']['cost']:.3f}.",
            [drawn["error-costs"], drawn["ap-by-iou"]],
            [
                {"error": one.name.lower(), "detections": _MEANING[one], **facts["errors"][one.name.lower()]}
                for one in WRONG
            ],
        )
        for one in WRONG[:-1]:
            examples = list(self._examples(one))
            if examples:
                title = f"{one.name.capitalize()}: {facts['errors'][one.name.lower()]['count']}"
                yield Section(title, f"Detections {_MEANING[one]}; the most confident.", examples)
        by_category: dict[str, dict[str, Any]] = facts["per_category"]
        rows = [{"category": name, **row} for name, row in by_category.items() if row["objects"]]
        rows.sort(key=lambda row: row["AP"])
        yield Section(
            "By category",
            "Errors of each type, and AP; the lowest first.",
            [drawn["precision-recall"], drawn["ap-by-category"]],
            rows,
        )
        pairs = self.analysis.confusion.confused()[:15]
        yield Section(
            "Who is taken for whom",
            f"Of detections that score at least {facts['score_threshold']:g}, whatever their category. Background: objects "
            "that nothing finds, on the right; detections on nothing, below.",
            [drawn["confusion"]],
            [{"labelled": true, "predicted": predicted, "times": count} for true, predicted, count in pairs],
        )
        best = facts["best_threshold"]
        told = "" if best is None else f"F1 is best, {best['f1']:.3f}, at a score of {best['scores']:.3f}. "
        yield Section(
            "Scores",
            told + "otus evaluate --choose-thresholds finds the best threshold of each category.",
            [drawn["thresholds"], *([drawn["calibration"]] if "calibration" in drawn else [])],
        )
        yield Section(
            "Non-maximum suppression",
            "What is left when of two detections of a category with more IoU only the better stays, and the best F1 then. "
            "The model's own suppression came before, so only a stricter one changes anything; 1 changes nothing.",
            (),
            [{name.replace("_", " "): value for name, value in row.items()} for row in facts["by_nms_iou"]],
        )
        if facts["worst_images"]:
            yield Section(
                "The worst images",
                "Those with the most mistakes, of what is shown. Green: right; orange: false; blue: not found.",
                [self._worst(index) for index in self.analysis.images.worst(_WORST)],
            )
        suspects = self.analysis.suspects
        looked_at = _mixed(suspects)
        if suspects:
            yield Section(
                "Labels to look at",
                f"{len(suspects)} records where it may be the label that is wrong; {len(looked_at)} are shown. "
                "Blue: what is labelled; orange: what was detected.",
                [self._suspect(one) for one in looked_at],
            )

    def _examples(self, error: Error) -> Iterator[Figure]:
        errors, found, names = self.analysis.errors, self._matcher.predictions, self.dataset.categories
        rows = np.flatnonzero(errors.types == error)
        for row in rows[np.argsort(-errors.matches.scores[rows], kind="stable")][:_EXAMPLES].tolist():
            index, image_index = int(errors.matches.detections[row]), int(errors.matches.image_index[row])
            text = f"{names[int(found.labels[index])]} {errors.matches.scores[row]:.2f}"
            marks = [
                *self._objects_near(image_index, found.boxes_xyxy[index]),
                Mark(text, found.boxes_xyxy[index], RED),
            ]
            image, name = image_or_ground(self.dataset, image_index)
            yield Figure.of(part_with_marks(image, marks), name, width=260)

    def _objects_near(self, image: int, box: np.ndarray) -> list[Mark]:
        truth, names = self._matcher.truth, self.dataset.categories
        near = []
        for g in np.flatnonzero(truth.image_index == image).tolist():
            sides = np.minimum(truth.boxes_xyxy[g, 2:], box[2:]) - np.maximum(truth.boxes_xyxy[g, :2], box[:2])
            if (sides > 0).all():
                near.append(Mark(names[int(truth.labels[g])], truth.boxes_xyxy[g], TRUTH))
        return near

    def _worst(self, index: int) -> Figure:
        matches, truth, found = self.analysis.errors.matches, self._matcher.truth, self._matcher.predictions
        names = self.dataset.categories
        shown = np.flatnonzero((matches.image_index == index) & (matches.scores >= self.analysis.score_threshold))
        taken = matches.matched[shown, 0]
        marks = [
            Mark(names[int(truth.labels[g])], truth.boxes_xyxy[g], TRUTH)
            for g in np.flatnonzero((truth.image_index == index) & matches.is_positive)
            if g not in taken
        ]
        for row in shown:
            if matches.outcomes[row, 0] != Outcome.IGNORED:
                right = matches.outcomes[row, 0] == Outcome.TRUE_POSITIVE
                text = "" if right else f"{names[int(matches.labels[row])]} {matches.scores[row]:.2f}"
                marks.append(Mark(text, found.boxes_xyxy[matches.detections[row]], RIGHT if right else RED))
        one = self._of_image(index)
        image, name = image_or_ground(self.dataset, index)
        caption = f"{name}: {one['right']} right, {one['false']} false, {one['unfound']} not found"
        return Figure.of(marked(image, marks), caption, width=340)

    def _suspect(self, one: Suspect) -> Figure:
        record = self._of_suspect(one)
        marks = []
        if "label" in record:
            marks.append(Mark(record["label"]["category"], record["label"]["box_xyxy"], TRUTH))
        if "detection" in record:
            text = f"{record['detection']['category']} {one.score:.2f}"
            marks.append(Mark(text, record["detection"]["box_xyxy"], RED))
        image, name = image_or_ground(self.dataset, one.image_index)
        return Figure.of(part_with_marks(image, marks, margin=0.8), f"{_SUSPICION[one.kind]}: {name}", width=260)


def _mixed(suspects: list[Suspect]) -> list[Suspect]:
    """Some of each kind, in their order."""
    share = _SUSPECTS // len(_SUSPICION)
    return [one for kind in _SUSPICION for one in [s for s in suspects if s.kind == kind][:share]]


def _two(value: float) -> str:
    return f"{value:.2f}"
