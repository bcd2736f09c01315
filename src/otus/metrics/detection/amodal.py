"""Amodal AP: COCO's rules over amodal boxes and masks, and by the occlusion of the objects.

Zhu et al., Semantic Amodal Segmentation, CVPR 2017, section 5: occlusion is none, partial (up to a
quarter) or heavy. The occlusion rate of an object is the column ``occlude_rate`` (of COCO amodal), else it is computed from
its amodal mask, else from its amodal box.

- An object or prediction without an amodal box or mask is not occluded: its box or mask is used.
- The paper gives recall by occlusion (AR_none, AR_partial, AR_heavy), because a detection that finds nothing has no
  occlusion. AP by occlusion is there too: such a detection counts as false in each part, so compare these AP between
  models, not between parts.
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
from otus.structures import Objects, Outline, Segmentations, boxes

AmodalKind = Literal["bbox", "segm"]

# Ranges of the occlusion rate, which takes the place of COCO's area.
_OCCLUSION = (
    AreaRange("", 0, 1),
    AreaRange("_none", 0, 0),
    AreaRange("_partial", float(np.nextafter(0, 1)), 0.25),
    AreaRange("_heavy", float(np.nextafter(0.25, 1)), 1),
)


def amodal_protocols(*, max_dets: Sequence[int] = ()) -> dict[str, CocoProtocol]:
    """Return COCO's protocol over amodal boxes and over amodal masks, by name."""
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
        """Return both sides with amodal boxes and masks; the areas are occlusion rates."""
        amodal = ground_truth.amodal_boxes_xyxy if self.kind == "bbox" else ground_truth.amodal_segmentations
        if amodal is None and len(ground_truth):
            raise UsageError(
                f"amodal {self.kind}: the truth has no amodal {'boxes' if self.kind == 'bbox' else 'masks'}"
            )
        # A detection has no occlusion rate; NaN is outside no range.
        shares = occlusion_rates(ground_truth, sizes_hw=sizes_hw), np.full(len(predictions), np.nan)
        whole_ground_truth, whole_predictions = (
            replace(_whole(objects), areas=areas)
            for objects, areas in zip((ground_truth, predictions), shares, strict=True)
        )
        return whole_ground_truth, whole_predictions

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
    """Return the occlusion rate of each object, in [0, 1]; ``sizes_hw`` of the images is needed for masks.

    >>> visible, whole = [[0, 0, 6, 10]], np.array([[0.0, 0, 10, 10]])
    >>> one = Objects.build(image_index=[0], labels=[0], boxes_xyxy=visible, amodal_boxes_xyxy=whole)
    >>> occlusion_rates(one).tolist()
    [0.4]
    """
    shares = np.zeros(len(objects))
    if objects.amodal_boxes_xyxy is not None:
        whole = boxes.area(objects.amodal_boxes_xyxy)
        shares = _hidden(boxes.area(objects.boxes_xyxy), whole, shares)
    if objects.amodal_segmentations is not None and objects.segmentations is not None and sizes_hw is not None:
        outlined = (objects.amodal_segmentations.kinds != Outline.NONE) & (objects.segmentations.kinds != Outline.NONE)
        rows = np.flatnonzero(outlined)
        some = objects.take(rows)
        visible, whole = (
            mask_areas(replace(some, segmentations=outlines), sizes_hw=sizes_hw, side="truth")
            for outlines in (some.segmentations, some.amodal_segmentations)
        )
        shares[rows] = _hidden(visible, whole, shares[rows])
    if "occlude_rate" in objects.columns:
        stated = objects.columns["occlude_rate"].astype(np.float64)
        shares = np.where(np.isnan(stated), shares, stated)
    return np.clip(shares, 0, 1)


def _hidden(visible: np.ndarray, whole: np.ndarray, otherwise: np.ndarray) -> Float[np.ndarray, "n"]:
    known: Bool[np.ndarray, "n"] = np.greater(whole, 0)  # False for NaN too
    return np.where(known, 1 - np.divide(visible, whole, out=np.ones_like(whole), where=known), otherwise)


def _whole(objects: Objects) -> Objects:
    """Return the objects with amodal boxes and masks in place of the visible ones, where present."""
    amodal = objects.amodal_boxes_xyxy
    if amodal is not None:
        is_amodal = np.isfinite(amodal).all(axis=1, keepdims=True)
        columns = {name: column for name, column in objects.columns.items() if name != "box_sizes_wh"}
        objects = replace(objects, boxes_xyxy=np.where(is_amodal, amodal, objects.boxes_xyxy), columns=columns)
    outlines = objects.amodal_segmentations
    if outlines is None:
        return objects
    visible, is_amodal = objects.segmentations, outlines.kinds != Outline.NONE
    if visible is not None and not is_amodal.all():
        outlines = Segmentations.build(
            (outlines if is_amodal[row] else visible).outline(row) for row in range(len(objects))
        )
    return replace(objects, segmentations=outlines)
