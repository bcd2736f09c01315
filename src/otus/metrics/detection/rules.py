"""The rules in which evaluation protocols differ, as separate settings.

:class:`~otus.metrics.detection.coco.CocoProtocol` and :class:`~otus.metrics.detection.voc.VocProtocol` are fast and
exact for two combinations of rules; here each rule can be changed alone, to explain a difference of figures
(:mod:`otus.metrics.diagnosis.assignment`).
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from otus.errors import UsageError, did_you_mean
from otus.metrics.detection.coco import ALL, LARGE, MEDIUM, SMALL, AreaRange
from otus.metrics.detection.precision_recall import curve, interpolate
from otus.metrics.detection.voc import area_under_curve

Matching = Literal["greedy", "best_overlap"]
Interpolation = Literal["101", "11", "area"]
Special = Literal["ignored", "counted", "dropped"]
Average = Literal["with_objects", "with_objects_or_detections"]
AREAS = {"all": ALL, "small": SMALL, "medium": MEDIUM, "large": LARGE}
COCO_IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())

_CHOICES = {
    "matching": get_args(Matching),
    "interpolation": get_args(Interpolation),
    "crowd": get_args(Special),
    "difficult": get_args(Special),
    "average": get_args(Average),
    "area": tuple(AREAS),
}


@dataclass(frozen=True)
class Rules:
    """The settings of one evaluation; the defaults are COCO's.

    Parameters
    ----------
    min_score
        Minimum score of a detection.
    score_decimals
        Decimals to round scores to, which makes ties (default: no rounding).
    inclusive_boxes
        Whether to add 1 to x2 and y2, as code for inclusive integer corners does.
    max_dets
        Maximum number of detections per image and category, None for no limit.
    matching
        ``greedy``: each detection is matched to the unmatched ground truth of highest IoU (COCO). ``best_overlap``:
        each is compared only with the ground truth of highest IoU, and is a false positive if that is matched already
        (Pascal VOC).
    crowd, difficult
        Whether these objects are ``ignored`` (no positives, and detections matched to them are ignored), ``counted``
        like all others, or ``dropped`` (detections on them are false positives).
    area
        Area range of the positives: ``all``, ``small``, ``medium`` or ``large``.
    iou_thresholds
        Minimum IoUs of a match; AP is the mean over these thresholds.
    interpolation
        Precision is averaged over ``101`` or ``11`` recalls, or the ``area`` under the curve is computed.
    average
        Mean over categories ``with_objects``, or ``with_objects_or_detections``, where AP is 0 without objects.
    """

    min_score: float = 0.0
    score_decimals: int | None = None
    inclusive_boxes: bool = False
    max_dets: int | None = 100
    matching: Matching = "greedy"
    crowd: Special = "ignored"
    difficult: Special = "counted"
    area: str = "all"
    iou_thresholds: tuple[float, ...] = COCO_IOU_THRESHOLDS
    interpolation: Interpolation = "101"
    average: Average = "with_objects"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not math.isfinite(self.min_score):
            raise UsageError(f"min_score: expected a finite number, got {self.min_score}")
        if self.max_dets is not None and self.max_dets < 1:
            raise UsageError(f"max_dets: expected 1 or more, or none, got {self.max_dets}")
        if not self.iou_thresholds or not all(0 < iou <= 1 for iou in self.iou_thresholds):
            raise UsageError(f"iou_thresholds: expected numbers in (0, 1], got {self.iou_thresholds}")
        if self.score_decimals is not None and self.score_decimals < 0:
            raise UsageError(f"score_decimals: expected 0 or more, got {self.score_decimals}")

    @property
    def area_range(self) -> AreaRange:
        """The limits of the area range."""
        return AREAS[self.area]

    def average_precision(
        self, is_true: Bool[np.ndarray, "d"], is_false: Bool[np.ndarray, "d"], positives: int
    ) -> float:
        """Return AP of one category from its detections in descending order of score; NaN without positives."""
        if positives == 0:
            return float("nan")
        precision, recall = curve(is_true, is_false, positives)
        if self.interpolation == "area":
            return area_under_curve(precision, recall)
        return float(interpolate(precision, recall, self.recalls).mean())

    @property
    def recalls(self) -> Float[np.ndarray, "r"]:
        """Recalls at which precision is read; empty for ``area``."""
        return {"101": np.linspace(0, 1, 101), "11": np.arange(11) * 0.1, "area": np.zeros(0)}[self.interpolation]


_VOC: dict[str, Any] = {
    "max_dets": None, "matching": "best_overlap", "difficult": "ignored", "iou_thresholds": (0.5,)
}  # fmt: skip
RULES = {
    "coco": Rules(),
    "voc07": Rules(**_VOC, interpolation="11"),
    "voc12": Rules(**_VOC, interpolation="area"),
}
"""Rules by name of the protocol."""


def parse_rules(text: str) -> Rules:
    """Parse a protocol's name and settings, e.g. ``coco`` or ``coco:max_dets=10:min_score=0.05``.

    Raises
    ------
    UsageError
        If a protocol or setting is unknown, or a value is invalid.

    Examples
    --------
    >>> parse_rules("voc07:max_dets=100:iou_thresholds=0.75").iou_thresholds
    (0.75,)
    """
    name, *settings = text.split(":")
    if name not in RULES:
        raise UsageError(f"protocol: expected one of {', '.join(RULES)}, got {name!r}{did_you_mean(name, RULES)}")
    values = {field.name: getattr(RULES[name], field.name) for field in fields(Rules)}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if key not in values or not separator:
            known = ", ".join(values)
            raise UsageError(
                f"{text}: expected NAME=VALUE with one of {known}, got {setting!r}{did_you_mean(key, values)}"
            )
        values[key] = _parse_value(key, value)
    return Rules(**values)


def _parse_value(key: str, value: str) -> Any:
    try:
        match key:
            case "min_score":
                return float(value)
            case "max_dets" | "score_decimals":
                return None if value == "none" else int(value)
            case "inclusive_boxes":
                return {"yes": True, "no": False}[value]
            case "iou_thresholds":
                return COCO_IOU_THRESHOLDS if value == "coco" else tuple(float(iou) for iou in value.split("/"))
    except (ValueError, KeyError):
        expected = {"inclusive_boxes": "yes or no", "iou_thresholds": "coco, or numbers such as 0.5/0.75"}
        raise UsageError(f"{key}: expected {expected.get(key, 'a number')}, got {value!r}") from None
    return value
