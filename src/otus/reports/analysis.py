"""All metrics of predictions for a data set that plots and pages show, each computed once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from otus.errors import UsageError
from otus.metrics.detection.matching import Outcome
from otus.metrics.detection.precision_recall import curve, interpolate
from otus.metrics.detection.rules import Rules
from otus.metrics.diagnosis.assignment import Assignment, DetectionMatcher
from otus.metrics.diagnosis.calibration import Calibration, calibration
from otus.metrics.diagnosis.confusion import Confusion, confusion_matrix
from otus.metrics.diagnosis.label_errors import ImageCounts, LabelError, count_by_image, find_label_errors
from otus.metrics.diagnosis.thresholds import ScoreCurve, score_curve
from otus.metrics.diagnosis.tide import Errors, find_errors
from otus.reports import plots
from otus.reports.canvas import THEMES, Canvas, write_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORE_THRESHOLD = 0.5
"""Default minimum score for confusion matrix, images and label errors; curves and error costs use all detections."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """Metrics of predictions by COCO's rules, computed when first accessed.

    Parameters
    ----------
    matcher
        Ground truth and predictions.
    iou
        IoU threshold of all metrics that need a single threshold.
    background_iou
        See :func:`otus.metrics.diagnosis.tide.find_errors`.
    score_threshold
        Minimum score for confusion matrix, images and label errors.
    masks
        Compare masks instead of boxes.
    """

    matcher: DetectionMatcher
    iou: float = 0.5
    background_iou: float = 0.1
    score_threshold: float = SCORE_THRESHOLD
    masks: bool = False

    def __post_init__(self) -> None:
        for name in ("iou", "background_iou", "score_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}: expected 0 to 1, got {getattr(self, name)}")

    @cached_property
    def matches(self) -> Assignment:
        """Matches at COCO's ten IoU thresholds."""
        return self.matcher.match(Rules(), masks=self.masks)

    @cached_property
    def average_precision(self) -> Float[np.ndarray, "k t"]:
        """AP by category and IoU threshold."""
        return self.matches.average_precision()

    @cached_property
    def errors(self) -> Errors:
        """Errors by TIDE's types."""
        return find_errors(self.matcher, iou=self.iou, background_iou=self.background_iou, masks=self.masks)

    @cached_property
    def confusion(self) -> Confusion:
        """Confusion matrix at the score threshold."""
        return confusion_matrix(self.matcher, iou=self.iou, score_threshold=self.score_threshold, masks=self.masks)

    @cached_property
    def calibration(self) -> Calibration | None:
        """Calibration of scores; None if scores are not in [0, 1]."""
        scores = self.matcher.scores
        return calibration(self.errors.matches) if ((scores >= 0) & (scores <= 1)).all() else None

    @cached_property
    def score_curve(self) -> ScoreCurve:
        """Precision, recall and F1 by score threshold, over all categories."""
        return score_curve(self.errors.matches)

    @cached_property
    def images(self) -> ImageCounts:
        """True, false and missed objects of each image at the score threshold."""
        return count_by_image(self.matcher, self.errors, score_threshold=self.score_threshold)

    @cached_property
    def label_errors(self) -> list[LabelError]:
        """Labels that are probably wrong or missing."""
        return find_label_errors(self.matcher, self.errors, score_threshold=self.score_threshold)

    def precision_at_recalls(self) -> tuple[Float[np.ndarray, "r"], dict[str, Float[np.ndarray, "r"]]]:
        """Return COCO's 101 recalls, and the interpolated precision at them by category name."""
        matches = self.errors.matches
        curves = {}
        for label in np.flatnonzero(matches.positives).tolist():
            outcomes = matches.outcomes[matches.by_score(label), 0]
            points = curve(
                outcomes == Outcome.TRUE_POSITIVE, outcomes == Outcome.FALSE_POSITIVE, int(matches.positives[label])
            )
            curves[self.matcher.categories[label]] = interpolate(*points, matches.rules.recalls)
        return matches.rules.recalls, curves

    def by_iou(self) -> list[float]:
        """Return mAP at each of COCO's IoU thresholds."""
        rows = self.average_precision[self.matches.positives > 0]
        return rows.mean(axis=0).tolist() if len(rows) else [float("nan")] * self.average_precision.shape[1]

    def plots(self, canvas: Canvas) -> "dict[str, Figure]":
        """Return all plots by name."""
        names = list(self.matcher.categories)
        figures = {
            "precision-recall": plots.precision_recall_plot(
                *self.precision_at_recalls(), title=f"Precision-recall, IoU {self.iou:g}", canvas=canvas
            ),
            "ap-by-iou": plots.iou_threshold_plot(
                self.matches.rules.iou_thresholds, {"mAP": self.by_iou()}, canvas=canvas
            ),
            "ap-by-category": plots.category_plot(
                dict(zip(names, self.average_precision.mean(axis=1).tolist(), strict=True)), canvas=canvas
            ),
            "confusion": plots.confusion_plot(self.confusion, canvas=canvas),
            "error-costs": plots.error_cost_plot(self.errors.delta_ap(), self.errors.counts, canvas=canvas),
            "thresholds": plots.threshold_plot(self.score_curve, canvas=canvas),
        }
        if self.calibration is not None:
            figures["calibration"] = plots.calibration_plot(self.calibration, canvas=canvas)
        return figures

    def write_plots(self, folder: str | Path) -> list[Path]:
        """Write all plots in both themes as PNG and SVG (``confusion.png``, ``confusion-dark.svg`` …); return the paths."""
        written = []
        for theme in THEMES:
            canvas = Canvas(theme)
            for name, figure in self.plots(canvas).items():
                for suffix in ("png", "svg"):
                    path = Path(folder) / f"{name}{'' if theme == 'light' else f'-{theme}'}.{suffix}"
                    write_plot(figure, path, canvas)
                    written.append(path)
        return written
