"""AP of oriented boxes: COCO's and Pascal VOC's rules over the exact IoU of rotated rectangles.

Xia et al., DOTA: A Large-scale Dataset for Object Detection in Aerial Images, CVPR 2018, uses VOC's rules at IoU 0.5
(its development kit those of VOC 2007); later work adds COCO's mean over IoUs. Areas are those of the oriented boxes.

Departure: quadrilaterals that are not exactly rectangles are replaced by the rectangles of
:func:`otus.structures.oriented.from_corners`; DOTA's kit intersects the quadrilaterals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from otus.metrics.detection.coco import CocoProtocol
from otus.metrics.detection.pairs import Pairs, RankedDetections, pairs_by
from otus.metrics.detection.required_fields import require_field
from otus.metrics.detection.voc import VocProtocol
from otus.structures import Objects, oriented


def oriented_protocols(*, max_dets: Sequence[int] = ()) -> dict[str, CocoProtocol | VocProtocol]:
    """Return COCO's protocol and both of VOC's, by name; ``max_dets`` applies to COCO's."""
    similarity = OrientedBoxes()
    return {
        "oriented": CocoProtocol(max_dets=tuple(max_dets), similarity=similarity),
        "oriented_voc07": VocProtocol(2007, similarity=similarity),
        "oriented_voc12": VocProtocol(2012, similarity=similarity),
    }


@dataclass(frozen=True)
class OrientedBoxes:
    """Similarity of oriented boxes (``corners_xy``): IoU; with a crowd, intersection / area of the detection."""

    def view(
        self, ground_truth: Objects, predictions: Objects, *, sizes_hw: Int[np.ndarray, "m 2"] | None
    ) -> tuple[Objects, Objects]:
        """Return ground truth and predictions with the areas of their oriented boxes."""
        sides = []
        for side, objects in (("ground_truth", ground_truth), ("predictions", predictions)):
            require_field(objects, "corners_xy", side)
            areas = np.nan_to_num(np.prod(_oriented_boxes(objects)[:, 2:4], axis=1))  # a crowd may have no corners
            sides.append(replace(objects, areas=areas))
        return sides[0], sides[1]

    def pairs(
        self,
        ground_truth: Objects,
        predictions: Objects,
        ranked: RankedDetections,
        *,
        sizes_hw: Int[np.ndarray, "m 2"] | None,
        min_similarity: float,
    ) -> Pairs:
        """Return pairs of oriented boxes."""
        gt_boxes, boxes = _oriented_boxes(ground_truth), _oriented_boxes(predictions)

        def iou(ground_truths: Int[np.ndarray, "p"], detections: Int[np.ndarray, "p"]) -> Float[np.ndarray, "p"]:
            return iou_from_intersections(
                oriented.oriented_intersections(boxes[detections], gt_boxes[ground_truths]),
                predictions.areas[detections],
                ground_truth.areas[ground_truths],
                ground_truth.is_crowd[ground_truths],
            )

        return pairs_by(iou, ranked, min_similarity=min_similarity)


def _oriented_boxes(objects: Objects) -> Float[np.ndarray, "n 5"]:
    return oriented.from_corners(np.zeros((0, 4, 2)) if objects.corners_xy is None else objects.corners_xy)


def iou_from_intersections(
    intersections: Float[np.ndarray, "p"],
    sizes: Float[np.ndarray, "p"],
    gt_sizes: Float[np.ndarray, "p"],
    is_crowd: np.ndarray,
) -> Float[np.ndarray, "p"]:
    """Return the IoU of pairs from intersections and sizes, 0 if both are empty; for crowds, intersection / size."""
    union = np.where(is_crowd, sizes, sizes + gt_sizes - intersections)
    return np.divide(intersections, union, out=np.zeros_like(intersections), where=union > 0)
