"""Boundary AP: COCO's rules over masks that must agree along their contours too.

Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021; code: bowenc0221/
boundary-iou-api (BSD). Mask IoU forgives large objects a coarse outline; here two masks are as similar as the smaller of
their IoU and the IoU of the bands of pixels along their contours (:meth:`otus.structures.Masks.boundary`). A crowd has no
contour of its own: against it the mask counts alone.
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
    """COCO's protocol over masks and their boundaries, under the name ``boundary``."""
    return {"boundary": CocoProtocol("segm", max_dets=tuple(max_dets), similarity=BoundaryMasks())}


@dataclass(frozen=True)
class BoundaryMasks:
    """Masks by the smaller of IoU and boundary IoU.

    ``dilation_ratio`` is the width of the band as a share of the image's diagonal.
    """

    dilation_ratio: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.dilation_ratio < 1:
            raise UsageError(f"dilation_ratio: expected a number over 0 and below 1, got {self.dilation_ratio}")

    def view(
        self, truth: Objects, predictions: Objects, *, sizes_hw: Int[np.ndarray, "m 2"] | None
    ) -> tuple[Objects, Objects]:
        """Both sides as they are."""
        return truth, predictions

    def pairs(
        self,
        truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        *,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
        min_similarity: float,
    ) -> Pairs:
        """Pairs of masks; the bands are made only of masks that are similar enough without."""
        whole = mask_pairs(truth, predictions, ranked, sizes_hw=sizes_hw, min_similarity=min_similarity)
        if sizes_hw is None or not len(whole.truths):
            return whole
        _, candidates = whole.rows()
        used, place = np.unique(whole.truths, return_inverse=True)
        found, found_rows = self._bands(predictions, ranked.detections[candidates], sizes_hw)
        true, true_rows = self._bands(truth, ranked.truths[used], sizes_hw)
        close = Pairs(np.append(whole.offsets[candidates], whole.offsets[-1]), place, whole.similarities)
        ious = mask_ious(close, true, true_rows, found, found_rows, sizes_hw=sizes_hw)
        crowd = truth.is_crowd[ranked.truths[whole.truths]]
        smaller = np.where(crowd, whole.similarities, np.minimum(whole.similarities, ious))
        return Pairs(whole.offsets, whole.truths, smaller).filter(min_similarity)

    def _bands(
        self, objects: Objects, wanted: Int[np.ndarray, "w"], sizes_hw: Int[np.ndarray, "m 2"]
    ) -> tuple[Objects, Int[np.ndarray, "w"]]:
        """The wanted objects with their bands for masks, and where each of them is."""
        assert objects.segmentations is not None
        rows = np.unique(wanted)
        counts = []
        for row in rows.tolist():
            height, width = sizes_hw[objects.image_index[row]].tolist()
            masks = objects.segmentations.masks([row], (height, width))
            assert masks is not None
            counts.append(masks.boundary(dilation_ratio=self.dilation_ratio).rle()[0]["counts"])
        outlines = Segmentations.build(counts)  # type: ignore[arg-type]
        return replace(objects.take(rows), segmentations=outlines), np.searchsorted(rows, wanted)
