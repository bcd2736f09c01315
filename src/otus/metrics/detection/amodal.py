"""Amodal AP: COCO's rules over amodal boxes and masks, also by the occlusion of the objects.

Zhu et al., Semantic Amodal Segmentation, CVPR 2017, section 5: occlusion is none, partial (up to a quarter) or heavy.
The occlusion rate of an object is the column ``occlude_rate`` (of COCO amodal), else computed from its amodal mask,
else from its amodal box.

- An object or prediction without an amodal box or mask is not occluded: its visible box or mask is used.
- The paper reports recall by occlusion (AR_none, AR_partial, AR_heavy), because an unmatched detection has no
  occlusion. AP by occlusion is reported too: an unmatched detection is a false positive in each range, so compare these
  AP between models, not between ranges.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.errors import UsageError
from otus.metrics.detection.coco import AreaRange, CocoProtocol
from otus.metrics.detection.mask_pairs import mask_areas, mask_pairs
from otus.metrics.detection.pairs import Pairs, RankedDetections, box_pairs
from otus.structures import Objects, SegmentationKind, Segmentations, boxes

AmodalKind = Literal["bbox", "segm"]

# Ranges of the occlusion rate, which replaces the area of COCO's protocol.
_OCCLUSION = (
    AreaRange("", 0, 1),
    AreaRange("_none", 0, 0),
    AreaRange("_partial", float(np.nextafter(0, 1)), 0.25),
    AreaRange("_heavy", float(np.nextafter(0.25, 1)), 1),
)


def amodal_protocols(*, max_dets: Sequence[int] = ()) -> dict[str, CocoProtocol]:
    """Return COCO's protocols over amodal boxes and over amodal masks, by name."""
    return {
        f"amodal_{kind}": CocoProtocol(
            kind, max_dets=tuple(max_dets), area_ranges=_OCCLUSION, similarity=AmodalObjects(kind)
        )
        for kind in get_args(AmodalKind)
    }


@dataclass(frozen=True)
class AmodalObjects:
    """Objects by IoU of their amodal boxes (``bbox``) or masks (``segm``)."""

    kind: AmodalKind = "bbox"

    def __post_init__(self) -> None:
        if self.kind not in get_args(AmodalKind):
            raise UsageError(f"kind: expected one of {', '.join(get_args(AmodalKind))}, got {self.kind!r}")

    def view(
        self, ground_truth: Objects, predictions: Objects, *, sizes_hw: Int[np.ndarray, "m 2"] | None
    ) -> tuple[Objects, Objects]:
        """Return ground truth and predictions with amodal boxes and masks; their areas are occlusion rates."""
        amodal = ground_truth.amodal_boxes_xyxy if self.kind == "bbox" else ground_truth.amodal_segmentations
        if amodal is None and len(ground_truth):
            raise UsageError(
                f"amodal {self.kind}: the ground truth has no amodal {'boxes' if self.kind == 'bbox' else 'masks'}"
            )
        # A detection has no occlusion rate; NaN lies outside no range.
        rates = occlusion_rates(ground_truth, sizes_hw=sizes_hw), np.full(len(predictions), np.nan)
        amodal_ground_truth, amodal_predictions = (
            replace(_with_amodal(objects), areas=areas)
            for objects, areas in zip((ground_truth, predictions), rates, strict=True)
        )
        return amodal_ground_truth, amodal_predictions

    def pairs(
        self,
        ground_truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        *,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
        min_similarity: float,
    ) -> Pairs:
        """Return pairs of amodal boxes or masks."""
        if self.kind == "bbox":
            return box_pairs(ground_truth, predictions, ranked, min_similarity=min_similarity)
        return mask_pairs(ground_truth, predictions, ranked, sizes_hw=sizes_hw, min_similarity=min_similarity)


def occlusion_rates(objects: Objects, *, sizes_hw: Int[np.ndarray, "m 2"] | None = None) -> Float[np.ndarray, "n"]:
    """Return the occlusion rate of each object, in [0, 1]; for masks, ``sizes_hw`` of the images is needed.

    >>> visible, amodal = [[0, 0, 6, 10]], np.array([[0.0, 0, 10, 10]])
    >>> objects = Objects.build(image_index=[0], labels=[0], boxes_xyxy=visible, amodal_boxes_xyxy=amodal)
    >>> occlusion_rates(objects).tolist()
    [0.4]
    """
    rates = np.zeros(len(objects))
    if objects.amodal_boxes_xyxy is not None:
        amodal = boxes.area(objects.amodal_boxes_xyxy)
        rates = _hidden_fraction(boxes.area(objects.boxes_xyxy), amodal, rates)
    if objects.amodal_segmentations is not None and objects.segmentations is not None and sizes_hw is not None:
        has_masks = (objects.amodal_segmentations.kinds != SegmentationKind.NONE) & (
            objects.segmentations.kinds != SegmentationKind.NONE
        )
        rows = np.flatnonzero(has_masks)
        with_masks = objects.take(rows)
        visible, amodal = (
            mask_areas(replace(with_masks, segmentations=segmentations), sizes_hw=sizes_hw, side="ground_truth")
            for segmentations in (with_masks.segmentations, with_masks.amodal_segmentations)
        )
        rates[rows] = _hidden_fraction(visible, amodal, rates[rows])
    if "occlude_rate" in objects.columns:
        stated = objects.columns["occlude_rate"].astype(np.float64)
        rates = np.where(np.isnan(stated), rates, stated)
    return np.clip(rates, 0, 1)


def _hidden_fraction(visible: np.ndarray, amodal: np.ndarray, default: np.ndarray) -> Float[np.ndarray, "n"]:
    is_known: Bool[np.ndarray, "n"] = np.greater(amodal, 0)  # False for NaN too
    return np.where(is_known, 1 - np.divide(visible, amodal, out=np.ones_like(amodal), where=is_known), default)


def _with_amodal(objects: Objects) -> Objects:
    """Return the objects with amodal boxes and masks in place of the visible ones, where present."""
    amodal = objects.amodal_boxes_xyxy
    if amodal is not None:
        is_amodal = np.isfinite(amodal).all(axis=1, keepdims=True)
        columns = {name: column for name, column in objects.columns.items() if name != "box_sizes_wh"}
        objects = replace(objects, boxes_xyxy=np.where(is_amodal, amodal, objects.boxes_xyxy), columns=columns)
    segmentations = objects.amodal_segmentations
    if segmentations is None:
        return objects
    visible, is_amodal = objects.segmentations, segmentations.kinds != SegmentationKind.NONE
    if visible is not None and not is_amodal.all():
        segmentations = Segmentations.build(
            (segmentations if is_amodal[row] else visible).segmentation(row) for row in range(len(objects))
        )
    return replace(objects, segmentations=segmentations)
