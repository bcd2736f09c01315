"""Boundary AP: COCO's rules over masks that must agree along their contours too.

Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021; code: bowenc0221/
boundary-iou-api (BSD). Mask IoU is insensitive to coarse contours of large objects; here the similarity of two masks is
the smaller of their IoU and the IoU of the bands of pixels along their contours
(:meth:`otus.structures.Masks.boundary`). A crowd has no contour: with it, only mask IoU is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from otus.errors import UsageError
from otus.metrics.detection.coco import CocoProtocol
from otus.metrics.detection.mask_pairs import mask_ious, mask_pairs
from otus.metrics.detection.pairs import Pairs, RankedDetections
from otus.structures import Objects, Segmentations


def boundary_protocols(*, max_dets: Sequence[int] = ()) -> dict[str, CocoProtocol]:
    """Return COCO's protocol over masks and their boundaries, by name (``boundary``)."""
    return {"boundary": CocoProtocol("segm", max_dets=tuple(max_dets), similarity=BoundaryMasks())}


@dataclass(frozen=True)
class BoundaryMasks:
    """Similarity of masks: the smaller of IoU and boundary IoU.

    ``dilation_ratio`` is the width of the band as a fraction of the image's diagonal.
    """

    dilation_ratio: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.dilation_ratio < 1:
            raise UsageError(f"dilation_ratio: expected a number over 0 and below 1, got {self.dilation_ratio}")

    def view(
        self, ground_truth: Objects, predictions: Objects, *, sizes_hw: Int[np.ndarray, "m 2"] | None
    ) -> tuple[Objects, Objects]:
        """Return ground truth and predictions unchanged."""
        return ground_truth, predictions

    def pairs(
        self,
        ground_truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        *,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
        min_similarity: float,
    ) -> Pairs:
        """Return pairs of masks; boundaries are computed only for masks whose IoU is high enough."""
        by_mask = mask_pairs(ground_truth, predictions, ranked, sizes_hw=sizes_hw, min_similarity=min_similarity)
        if sizes_hw is None or not len(by_mask.ground_truths):
            return by_mask
        _, candidates = by_mask.rows()
        used_gt, positions = np.unique(by_mask.ground_truths, return_inverse=True)
        detection_bands, detection_rows = self._bands(predictions, ranked.detections[candidates], sizes_hw)
        gt_bands, gt_rows = self._bands(ground_truth, ranked.ground_truths[used_gt], sizes_hw)
        close = Pairs(np.append(by_mask.offsets[candidates], by_mask.offsets[-1]), positions, by_mask.similarities)
        ious = mask_ious(close, gt_bands, gt_rows, detection_bands, detection_rows, sizes_hw=sizes_hw)
        crowd = ground_truth.is_crowd[ranked.ground_truths[by_mask.ground_truths]]
        smaller = np.where(crowd, by_mask.similarities, np.minimum(by_mask.similarities, ious))
        return Pairs(by_mask.offsets, by_mask.ground_truths, smaller).filter(min_similarity)

    def _bands(
        self, objects: Objects, indices: Int[np.ndarray, "w"], sizes_hw: Int[np.ndarray, "m 2"]
    ) -> tuple[Objects, Int[np.ndarray, "w"]]:
        """Return the distinct objects at ``indices`` with their bands as masks, and the row of each index."""
        assert objects.segmentations is not None
        rows = np.unique(indices)
        counts = []
        for row in rows.tolist():
            height, width = sizes_hw[objects.image_index[row]].tolist()
            masks = objects.segmentations.masks([row], (height, width))
            assert masks is not None
            counts.append(masks.boundary(dilation_ratio=self.dilation_ratio).rle()[0]["counts"])
        segmentations = Segmentations.build(counts)  # type: ignore[arg-type]
        return replace(objects.take(rows), segmentations=segmentations), np.searchsorted(rows, indices)
