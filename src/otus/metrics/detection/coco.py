"""The COCO protocol: average precision over IoU 0.50:0.05:0.95, by area, with a limit on detections.

The rules of cocodataset.org/#detection-eval, bit for bit as in pycocotools 2.0 (``cocoeval.py``; BSD):

- per image and category only the ``max_dets`` highest-scoring detections are kept (ties: the first);
- crowds, objects outside the area range, and for keypoints objects without a labelled keypoint, are ignored: they are no
  positives, and a detection matched to one is ignored. A crowd may be matched any number of times. Ignore regions
  (:mod:`otus.metrics.detection.ignore_regions`), which COCO does not have, are crowds of every category;
- an unmatched detection outside the area range is ignored too. The area of a detection is that of its box (of its mask,
  if the file has masks without boxes); the area of an object is the one that the file states;
- precision is interpolated and read at 101 recall thresholds; AP is the mean over recalls, IoUs and categories.

Departures from pycocotools: an object with id 0 can be matched (there, its detection is a false positive); AP is also
computed if ``max_dets`` is not (1, 10, 100) (there -1); undefined figures are NaN (there -1).

Shape shorthand: T IoU thresholds, R recall thresholds, K categories, A area ranges, M limits on detections.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.errors import UsageError
from otus.metrics.detection.mask_pairs import mask_pairs
from otus.metrics.detection.matching import MatchResults, match_greedily
from otus.metrics.detection.pairs import Pairs, RankedDetections, Similarity, box_pairs, keypoint_pairs
from otus.metrics.detection.precision_recall import Curves, interpolated_curves
from otus.structures import Categories, Objects

Kind = Literal["bbox", "segm", "keypoints"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class AreaRange(NamedTuple):
    """Areas from ``low`` to ``high`` square pixels, both included; ``name`` ends the figure's name, e.g. AP + ``s``."""

    name: str
    low: float
    high: float


ALL = AreaRange("", 0, 1e5**2)
SMALL, MEDIUM, LARGE = AreaRange("s", 0, 32**2), AreaRange("m", 32**2, 96**2), AreaRange("l", 96**2, 1e5**2)


@dataclass(frozen=True)
class CocoProtocol:
    """COCO's protocol for boxes, masks or keypoints, with all its parameters.

    Parameters
    ----------
    kind
        ``bbox``, ``segm`` or ``keypoints``.
    max_dets
        Limits on the detections per image and category (default: (1, 10, 100), for keypoints (20,)).
    area_ranges
        Ranges of area; AP without a suffix is of the first (default: all, small, medium, large; keypoints: no small).
    iou_thresholds
        Thresholds that AP is averaged over (default: 0.50, 0.55 … 0.95).
    recall_thresholds
        Recalls at which precision is read (default: 0, 0.01 … 1).
    similarity
        Similarity to use, e.g. :class:`otus.metrics.detection.oriented.OrientedBoxes` (default: IoU or OKS, by
        ``kind``).
    named_ious
        IoU thresholds whose AP is a separate figure: AP50, AP75.
    """

    kind: Kind = "bbox"
    max_dets: tuple[int, ...] = ()
    area_ranges: tuple[AreaRange, ...] = ()
    iou_thresholds: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    recall_thresholds: tuple[float, ...] = tuple(np.linspace(0, 1, 101).tolist())
    similarity: Similarity | None = None
    named_ious: tuple[float, ...] = (0.5, 0.75)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        is_keypoints = self.kind == "keypoints"
        max_dets = self.max_dets or ((20,) if is_keypoints else (1, 10, 100))
        object.__setattr__(self, "max_dets", tuple(sorted(max_dets)))
        if not self.area_ranges:
            object.__setattr__(
                self, "area_ranges", (ALL, MEDIUM, LARGE) if is_keypoints else (ALL, SMALL, MEDIUM, LARGE)
            )
        if self.max_dets[0] < 1:
            raise UsageError(f"max_dets: expected integers of 1 or more, got {self.max_dets}")
        for name in ("iou_thresholds", "recall_thresholds"):
            values = getattr(self, name)
            if not values or list(values) != sorted(values) or not (values[0] >= 0 and values[-1] <= 1):
                raise UsageError(f"{name}: expected ascending numbers from 0 to 1, got {values}")

    @property
    def detection_limit(self) -> int:
        """Maximum number of detections per image and label."""
        return self.max_dets[-1]

    def match(
        self,
        ground_truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        categories: Categories,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
    ) -> MatchResults:
        """Match the detections of ``ranked`` by COCO's rule; ``sizes_hw`` is needed for masks."""
        if self.similarity is not None:
            ground_truth, predictions = self.similarity.view(ground_truth, predictions, sizes_hw=sizes_hw)
        detections, ground_truths = ranked.detections, ranked.ground_truths
        crowd = ground_truth.is_crowd[ground_truths]
        ignored = self._outside_area_ranges(ground_truth.areas[ground_truths]) | crowd[:, None]
        if self.kind == "keypoints" and ground_truth.keypoints is not None:
            ignored |= ~np.any(ground_truth.keypoints[ground_truths, :, 2] > 0, axis=1, keepdims=True)
        ignored_unmatched = self._outside_area_ranges(predictions.areas[detections])
        rows, outcomes = match_greedily(
            self._pairs(ground_truth, predictions, ranked, categories, sizes_hw),
            thresholds=np.array(self.iou_thresholds),
            ignored=ignored,
            crowd=crowd,
            ignored_unmatched=ignored_unmatched,
        )
        gt_labels = ground_truth.labels[ground_truths]
        positives = [np.bincount(gt_labels[~column], minlength=len(categories)) for column in ignored.T]
        return MatchResults(
            labels=predictions.labels[detections],
            image_index=predictions.image_index[detections],
            ranks=ranked.ranks,
            scores=ranked.scores,
            ignored_unmatched=ignored_unmatched,
            rows=rows,
            outcomes=outcomes,
            positives=np.stack(positives, axis=1),
        )

    def _outside_area_ranges(self, areas: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n a"]:
        low = np.array([area.low for area in self.area_ranges], dtype=np.float64)
        high = np.array([area.high for area in self.area_ranges], dtype=np.float64)
        return np.less(areas[:, None], low) | np.greater(areas[:, None], high)

    def _pairs(
        self,
        ground_truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        categories: Categories,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
    ) -> Pairs:
        min_similarity = min(self.iou_thresholds[0], 1 - 1e-10)
        if self.similarity is not None:
            return self.similarity.pairs(
                ground_truth, predictions, ranked, sizes_hw=sizes_hw, min_similarity=min_similarity
            )
        match self.kind:
            case "bbox":
                return box_pairs(ground_truth, predictions, ranked, min_similarity=min_similarity)
            case "segm":
                return mask_pairs(ground_truth, predictions, ranked, sizes_hw=sizes_hw, min_similarity=min_similarity)
            case "keypoints":
                if categories.sigmas is None:
                    raise UsageError("keypoints: the categories have no keypoint names, so their sigmas are not known")
                return keypoint_pairs(
                    ground_truth, predictions, ranked, sigmas=categories.sigmas, min_similarity=min_similarity
                )

    def figures(self, matches: MatchResults, categories: Categories) -> "CocoResult":
        """Compute curves and figures."""
        recalls = np.array(self.recall_thresholds)
        return CocoResult(
            self, categories, interpolated_curves(matches, recall_thresholds=recalls, max_dets=self.max_dets)
        )


@dataclass(frozen=True, eq=False)
class CocoResult:
    """Curves in pycocotools' layout, and their figures.

    Parameters
    ----------
    protocol, categories
        Protocol and categories of the evaluation.
    curves
        ``precision``, ``recall`` and ``scores`` as in pycocotools' ``eval``.
    """

    protocol: CocoProtocol
    categories: Categories
    curves: Curves
    figures: Mapping[str, float] = field(init=False)
    """AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl; for keypoints AP, AP50, AP75, APm, APl, AR, AR50,
    AR75, ARm, ARl. NaN without positives."""
    per_category: Mapping[str, Mapping[str, float]] = field(init=False)
    """AP, AP50 and AP75 by category name; for keypoints only of the categories with keypoints."""

    def __post_init__(self) -> None:
        has_keypoints = {name for name, _ in self.categories.keypoints}
        per_category = {
            name: {
                "AP": self.mean("precision", label=label),
                **{
                    _figure_name("AP", iou): self.mean("precision", iou=iou, label=label)
                    for iou in self.protocol.named_ious
                },
            }
            for label, name in enumerate(self.categories)
            if self.protocol.kind != "keypoints" or name in has_keypoints
        }
        object.__setattr__(self, "figures", self._figures())
        object.__setattr__(self, "per_category", per_category)

    def _figures(self) -> dict[str, float]:
        protocol, mean = self.protocol, self.mean
        sub_ranges = list(enumerate(protocol.area_ranges))[1:]
        figures = {"AP": mean("precision")}
        figures |= {_figure_name("AP", iou): mean("precision", iou=iou) for iou in protocol.named_ious}
        figures |= {f"AP{area.name}": mean("precision", area=i) for i, area in sub_ranges}
        if protocol.kind == "keypoints":
            figures["AR"] = mean("recall")
            figures |= {_figure_name("AR", iou): mean("recall", iou=iou) for iou in protocol.named_ious}
        else:
            figures |= {f"AR{limit}": mean("recall", limit=i) for i, limit in enumerate(protocol.max_dets)}
        return figures | {f"AR{area.name}": mean("recall", area=i) for i, area in sub_ranges}

    def mean(
        self,
        of: Literal["precision", "recall"],
        *,
        iou: float | None = None,
        area: int = 0,
        limit: int = -1,
        label: int | None = None,
    ) -> float:
        """Return the mean of ``precision`` or ``recall`` over all axes that are not given; NaN if nothing is defined.

        Parameters
        ----------
        iou
            One of the protocol's IoU thresholds.
        area, limit
            Index into the protocol's area ranges and limits on detections.
        label
            One category.
        """
        values = getattr(self.curves, of)[..., area, limit]
        if iou is not None:
            values = values[np.abs(np.array(self.protocol.iou_thresholds) - iou) < 1e-9]
        if label is not None:
            values = values[..., label]
        defined = values[values > -1]
        return float(np.mean(defined)) if defined.size else float("nan")


def _figure_name(figure: str, iou: float) -> str:
    return f"{figure}{round(100 * iou)}"
