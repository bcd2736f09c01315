"""Explain the errors of predictions: TIDE's error types and costs, confusion, scores, NMS, worst images, label errors."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from otus.data.dataset import Dataset
from otus.metrics.detection.matching import Outcome
from otus.metrics.diagnosis.assignment import DetectionMatcher
from otus.metrics.diagnosis.label_errors import LabelError
from otus.metrics.diagnosis.thresholds import sweep_nms_iou
from otus.metrics.diagnosis.tide import ERROR_TYPES, Error
from otus.reports.analysis import Analysis
from otus.reports.canvas import Canvas, embed_plot
from otus.reports.page import Figure, Page, Section
from otus.visualization.marks import FALSE, TRUE, TRUTH, Mark, crop_around_marks, draw_marks, image_or_placeholder

NMS_IOUS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
_WORST, _SHOWN_LABEL_ERRORS, _EXAMPLES = 12, 24, 4
_LISTED = 200  # label errors in the JSON document

_MEANING = {
    Error.CLASSIFICATION: "of an object of another category",
    Error.LOCALISATION: "of an object of their category, with too low an IoU",
    Error.BOTH: "of an object of another category, with too low an IoU",
    Error.DUPLICATE: "of an object that a higher-scoring detection matches",
    Error.BACKGROUND: "of background: no labelled object",
    Error.MISSED: "none: no true detection, no classification or localisation error",
}
_LABEL_ERRORS = {
    "missing_label": "Confident detection without a label",
    "wrong_category": "Confident detection of another category than the label's",
    "no_detection": "Label without a detection near it",
}


@dataclass(frozen=True, eq=False)
class ErrorExplanation:
    """The errors of predictions for a data set, as JSON and as a page.

    Parameters
    ----------
    dataset
        Images and ground truth.
    analysis
        Analysis of the predictions.
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
            "protocol": "coco", "data": str(self.dataset.source), "kind": "segm" if analysis.masks else "bbox", "images":
            len(self.dataset), "iou": analysis.iou, "background_iou": analysis.background_iou, "score_threshold":
            analysis.score_threshold, "objects": int(matches.positives.sum()), "detections": len(matches.detections), "AP":
            float(defined.mean()) if defined.size else float("nan"), "AP_at_iou":
            float(np.nanmean(errors.average_precision())) if defined.size else float("nan"), "AP_by_iou":
            dict(zip(map(_two_decimals, analysis.matches.rules.iou_thresholds), analysis.by_iou(), strict=True)), "errors":
            {error.name.lower(): {"count": errors.counts[error], "cost": delta_ap[error]} for error in ERROR_TYPES},
            "false_positives": {"cost": errors.false_positive_cost()}, "false_negatives": {"cost":
            errors.false_negative_cost()}, "per_category": {name: self._of_category(k) for k, name in enumerate(names)},
            "confusion": {"categories": [*names, "background"], "counts": confusion.counts.tolist()}, "calibration": None
            if calibrated is None else {
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
            "by_nms_iou": [row._asdict() for row in sweep_nms_iou(self._matcher, NMS_IOUS, iou=analysis.iou)],
            "worst_images": [self._of_image(index) for index in analysis.images.worst(_WORST)],
            "label_errors": {
                "count": len(analysis.label_errors),
                "listed": [self._label_error_facts(label_error) for label_error in analysis.label_errors[:_LISTED]],
            },
        }  # fmt: skip

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: what ``otus explain errors --json`` prints."""
        return self._facts

    def _of_category(self, label: int) -> dict[str, Any]:
        errors = self.analysis.errors
        of_category = errors.matches.labels == label
        counts = {error.name.lower(): int((errors.types[of_category] == error).sum()) for error in ERROR_TYPES[:-1]}
        missed = int(errors.missed[errors.gt_labels == label].sum())
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
            **{
                name: int(getattr(counts, name)[index])
                for name in ("true_positives", "false_positives", "false_negatives")
            },
            "f1": float(counts.f1[index]),
        }

    def _label_error_facts(self, label_error: LabelError) -> dict[str, Any]:
        truth, predictions, names = self._matcher.ground_truth, self._matcher.predictions, self.dataset.categories
        record: dict[str, Any] = {"kind": label_error.kind, "file": self.dataset.images.files[label_error.image_index]}
        if label_error.ground_truth >= 0:
            record["label"] = {
                "id": int(truth.ids[label_error.ground_truth]),
                "category": names[int(truth.labels[label_error.ground_truth])],
                "box_xyxy": truth.boxes_xyxy[label_error.ground_truth].tolist(),
            }
        if label_error.detection >= 0:
            record["detection"] = {
                "category": names[int(predictions.labels[label_error.detection])],
                "score": label_error.score,
                "box_xyxy": predictions.boxes_xyxy[label_error.detection].tolist(),
            }
        return record

    def page(self) -> Page:
        """Return the HTML page."""
        facts = self._facts
        title = f"Errors: mAP {facts['AP']:.3f}, {facts['AP_at_iou']:.3f} at IoU {facts['iou']:g}"
        subtitle = (
            f"{facts['data']}: {facts['images']} images, {facts['objects']} objects, {facts['detections']} detections; "
            f"protocol coco, {facts['kind']}"
        )
        return Page(title, subtitle, tuple(self._sections(facts)))

    def _sections(self, facts: Mapping[str, Any]) -> Iterator[Section]:
        drawn = {name: embed_plot(figure) for name, figure in self.analysis.plots(Canvas()).items()}
        yield Section(
            "Cost of each error type",
            "Gain in AP if all errors of one type were corrected (dAP of TIDE). All false positives "
            f"together cost {facts['false_positives']['cost']:.3f}, all false negatives "
            f"{facts['false_negatives']['cost']:.3f}.",
            [drawn["error-costs"], drawn["ap-by-iou"]],
            [
                {"error": error.name.lower(), "detections": _MEANING[error], **facts["errors"][error.name.lower()]}
                for error in ERROR_TYPES
            ],
        )
        for error in ERROR_TYPES[:-1]:
            examples = list(self._examples(error))
            if examples:
                title = f"{error.name.capitalize()}: {facts['errors'][error.name.lower()]['count']}"
                yield Section(title, f"Detections {_MEANING[error]}; the highest-scoring.", examples)
        by_category: dict[str, dict[str, Any]] = facts["per_category"]
        rows = [{"category": name, **row} for name, row in by_category.items() if row["objects"]]
        rows.sort(key=lambda row: row["AP"])
        yield Section(
            "By category",
            "Number of errors of each type, and AP; sorted by AP, the lowest first.",
            [drawn["precision-recall"], drawn["ap-by-category"]],
            rows,
        )
        pairs = self.analysis.confusion.confused()[:15]
        yield Section(
            "Confusion matrix",
            f"Detections with a score of at least {facts['score_threshold']:g}, matched without regard to "
            "category. Background: "
            "missed objects in the last column, false positives without an object in the last row.",
            [drawn["confusion"]],
            [{"labelled": true, "predicted": predicted, "times": count} for true, predicted, count in pairs],
        )
        best = facts["best_threshold"]
        best_f1 = "" if best is None else f"F1 is best, {best['f1']:.3f}, at a score of {best['scores']:.3f}. "
        yield Section(
            "Scores",
            best_f1 + "otus evaluate --choose-thresholds finds the best threshold of each category.",
            [drawn["thresholds"], *([drawn["calibration"]] if "calibration" in drawn else [])],
        )
        yield Section(
            "Non-maximum suppression",
            "A further NMS within each category at several IoU thresholds, and the best F1 after it. The model's "
            "own NMS was "
            "applied before, so only a lower threshold changes anything; 1 changes nothing.",
            (),
            [{name.replace("_", " "): value for name, value in row.items()} for row in facts["by_nms_iou"]],
        )
        if facts["worst_images"]:
            yield Section(
                "The worst images",
                "Images with the most errors at the score threshold. Green: true positive; orange: false "
                "positive; blue: missed.",
                [self._worst_image(index) for index in self.analysis.images.worst(_WORST)],
            )
        label_errors = self.analysis.label_errors
        selected = _select_label_errors(label_errors)
        if label_errors:
            yield Section(
                "Labels to check",
                f"{len(label_errors)} labels that may be wrong or missing; {len(selected)} are shown. Blue: label; "
                "orange: detection.",
                [self._label_error_figure(label_error) for label_error in selected],
            )

    def _examples(self, error: Error) -> Iterator[Figure]:
        errors, predictions, names = self.analysis.errors, self._matcher.predictions, self.dataset.categories
        rows = np.flatnonzero(errors.types == error)
        for row in rows[np.argsort(-errors.matches.scores[rows], kind="stable")][:_EXAMPLES].tolist():
            index, image_index = int(errors.matches.detections[row]), int(errors.matches.image_index[row])
            text = f"{names[int(predictions.labels[index])]} {errors.matches.scores[row]:.2f}"
            marks = [
                *self._objects_near(image_index, predictions.boxes_xyxy[index]),
                Mark(text, predictions.boxes_xyxy[index], FALSE),
            ]
            image, name = image_or_placeholder(self.dataset, image_index)
            yield Figure.of(crop_around_marks(image, marks), name, width=260)

    def _objects_near(self, image: int, box: np.ndarray) -> list[Mark]:
        truth, names = self._matcher.ground_truth, self.dataset.categories
        marks = []
        for g in np.flatnonzero(truth.image_index == image).tolist():
            sides = np.minimum(truth.boxes_xyxy[g, 2:], box[2:]) - np.maximum(truth.boxes_xyxy[g, :2], box[:2])
            if (sides > 0).all():
                marks.append(Mark(names[int(truth.labels[g])], truth.boxes_xyxy[g], TRUTH))
        return marks

    def _worst_image(self, index: int) -> Figure:
        matches, truth, predictions = (
            self.analysis.errors.matches,
            self._matcher.ground_truth,
            self._matcher.predictions,
        )
        names = self.dataset.categories
        rows = np.flatnonzero((matches.image_index == index) & (matches.scores >= self.analysis.score_threshold))
        matched = matches.matched[rows, 0]
        marks = [
            Mark(names[int(truth.labels[g])], truth.boxes_xyxy[g], TRUTH)
            for g in np.flatnonzero((truth.image_index == index) & matches.is_positive)
            if g not in matched
        ]
        for row in rows:
            if matches.outcomes[row, 0] != Outcome.IGNORED:
                is_true = matches.outcomes[row, 0] == Outcome.TRUE_POSITIVE
                text = "" if is_true else f"{names[int(matches.labels[row])]} {matches.scores[row]:.2f}"
                marks.append(Mark(text, predictions.boxes_xyxy[matches.detections[row]], TRUE if is_true else FALSE))
        counts = self._of_image(index)
        image, name = image_or_placeholder(self.dataset, index)
        true, false, missed = (counts[name] for name in ("true_positives", "false_positives", "false_negatives"))
        caption = f"{name}: {true} true, {false} false, {missed} missed"
        return Figure.of(draw_marks(image, marks), caption, width=340)

    def _label_error_figure(self, label_error: LabelError) -> Figure:
        record = self._label_error_facts(label_error)
        marks = []
        if "label" in record:
            marks.append(Mark(record["label"]["category"], record["label"]["box_xyxy"], TRUTH))
        if "detection" in record:
            text = f"{record['detection']['category']} {label_error.score:.2f}"
            marks.append(Mark(text, record["detection"]["box_xyxy"], FALSE))
        image, name = image_or_placeholder(self.dataset, label_error.image_index)
        return Figure.of(
            crop_around_marks(image, marks, margin=0.8), f"{_LABEL_ERRORS[label_error.kind]}: {name}", width=260
        )


def _select_label_errors(label_errors: list[LabelError]) -> list[LabelError]:
    """Return the first few of each kind."""
    count = _SHOWN_LABEL_ERRORS // len(_LABEL_ERRORS)
    return [
        label_error for kind in _LABEL_ERRORS for label_error in [s for s in label_errors if s.kind == kind][:count]
    ]


def _two_decimals(value: float) -> str:
    return f"{value:.2f}"
