"""AP of cuboids: COCO's rules over the exact IoU of their volumes (3D), or of their footprints (bird's eye view, BEV).

Two conventions are in use:

- Brazil et al., Omni3D, CVPR 2023: AP is the mean over IoU 0.05:0.05:0.50, because cuboids are hard to localise; in
  addition AP15, AP25 and AP50;
- Geiger et al., KITTI, CVPR 2012, with the 40 recall points of Simonelli et al., Disentangling Monocular 3D Object
  Detection, ICCV 2019: the interpolated precision at recall 1/40, 2/40 … 1 (not at 0) with IoU 0.5 and 0.7.

Departures from KITTI's development kit: matching is COCO's, the curve uses all scores instead of 40, and there are no
levels of difficulty. As in the kit, a crowd without a cuboid (KITTI's DontCare) matches nothing, since image regions
have no position in space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from otus.errors import UsageError
from otus.metrics.detection.coco import ALL, CocoProtocol
from otus.metrics.detection.oriented import iou_from_intersections
from otus.metrics.detection.pairs import Pairs, RankedDetections, pairs_by
from otus.metrics.detection.required_fields import require_field
from otus.structures import Objects, oriented

CuboidKind = Literal["3d", "bev"]


def cuboid_protocols(*, max_dets: Sequence[int] = ()) -> dict[str, CocoProtocol]:
    """Return Omni3D's protocol and KITTI's with 40 recall points, each for volumes and for footprints, by name."""
    protocols = {}
    for name, kind in (("cuboid", "3d"), ("birds_eye", "bev")):
        similarity = Cuboids(kind)  # type: ignore[arg-type]
        protocols[name] = CocoProtocol(
            max_dets=tuple(max_dets),
            area_ranges=(ALL,),
            iou_thresholds=tuple((np.arange(1, 11) / 20).tolist()),
            named_ious=(0.15, 0.25, 0.5),
            similarity=similarity,
        )
        protocols[f"{name}_r40"] = CocoProtocol(
            max_dets=tuple(max_dets),
            area_ranges=(ALL,),
            iou_thresholds=(0.5, 0.7),
            recall_thresholds=tuple((np.arange(1, 41) / 40).tolist()),
            named_ious=(0.5, 0.7),
            similarity=similarity,
        )
    return protocols


@dataclass(frozen=True)
class Cuboids:
    """Similarity of cuboids: IoU of their volumes (``3d``) or of their footprints (``bev``)."""

    kind: CuboidKind = "3d"

    def __post_init__(self) -> None:
        if self.kind not in get_args(CuboidKind):
            raise UsageError(f"kind: expected one of {', '.join(get_args(CuboidKind))}, got {self.kind!r}")

    def view(
        self, ground_truth: Objects, predictions: Objects, *, sizes_hw: Int[np.ndarray, "m 2"] | None
    ) -> tuple[Objects, Objects]:
        """Return ground truth and predictions unchanged; raise if they have no cuboids."""
        require_field(ground_truth, "cuboids", "ground_truth")
        require_field(predictions, "cuboids", "predictions")
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
        """Return pairs of cuboids."""
        gt_cuboids, cuboids = _cuboids(ground_truth), _cuboids(predictions)
        size_columns = slice(3, 6) if self.kind == "3d" else slice(3, 5)

        def iou(ground_truths: Int[np.ndarray, "p"], detections: Int[np.ndarray, "p"]) -> Float[np.ndarray, "p"]:
            a, b = cuboids[detections], gt_cuboids[ground_truths]
            if self.kind == "3d":
                intersection = oriented.cuboid_intersections(a, b)
            else:
                intersection = oriented.oriented_intersections(oriented.footprints(a), oriented.footprints(b))
            sizes, gt_sizes = np.prod(a[:, size_columns], axis=1), np.prod(b[:, size_columns], axis=1)
            return iou_from_intersections(intersection, sizes, gt_sizes, ground_truth.is_crowd[ground_truths])

        return pairs_by(iou, ranked, min_similarity=min_similarity)


def _cuboids(objects: Objects) -> Float[np.ndarray, "n 7"]:
    """Return the cuboids; those that crowds lack become empty, with IoU 0."""
    return np.zeros((len(objects), 7)) if objects.cuboids is None else np.nan_to_num(objects.cuboids)
