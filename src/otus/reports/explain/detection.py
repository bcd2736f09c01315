"""Explain a detector on one image, with the explanation of its kind of system."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from otus.detection.region_based.region_detector import RegionDetector
from otus.detection.regression import SingleObjectDetector
from otus.detection.set_prediction.set_detector import SetDetector
from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.yolo import YOLO
from otus.errors import UsageError
from otus.inference.predictor import Predictor
from otus.reports.explain.dense import explain_dense
from otus.reports.explain.explanation import ImageArray
from otus.reports.explain.region_based import explain_region_based
from otus.reports.explain.regression import explain_regression
from otus.reports.explain.set_prediction import explain_set
from otus.reports.explain.yolo import explain_yolo
from otus.reports.page import Page
from otus.structures import Instances


class Explanation(Protocol):
    """The stages of one pass, as JSON and as a page."""

    def document(self) -> dict[str, Any]: ...

    def page(self) -> Page: ...


EXPLANATIONS: Mapping[type, Callable[..., Explanation]] = {
    SingleObjectDetector: explain_regression,
    RegionDetector: explain_region_based,
    DenseDetector: explain_dense,
    YOLO: explain_yolo,
    SetDetector: explain_set,
}
"""The explanation of each kind of system."""


def explain_detection(
    predictor: Predictor,
    image: ImageArray,
    *,
    name: str,
    score_threshold: float | None = None,
    ground_truth: Instances | None = None,
) -> Explanation:
    """Run a detector on one image and return its stages.

    Parameters
    ----------
    predictor
        Predictor of a system in :data:`EXPLANATIONS`.
    image, name
        Image, uint8 (H, W, 3) RGB, and its name.
    score_threshold
        Minimum score (default: the predictor's own).
    ground_truth
        Labels of the image, with the model's categories, to show the assignment to them (default: none).

    Raises
    ------
    UsageError
        If there is no explanation for the system, or it does not take ground truth.
    """
    explain = EXPLANATIONS.get(type(predictor.system))
    if explain is None:
        raise UsageError(
            f"{predictor.name} has no explanation; there is one for "
            "models whose task is detection, instance or keypoints (otus models lists them)"
        )
    return explain(predictor, image, name=name, score_threshold=score_threshold, ground_truth=ground_truth)
