"""Oriented FCOS: each location inside an object says where its turned box lies. For ships, cars and fields seen from above.

Shape shorthand: A locations of all maps, N objects.

Paper: FCOS (arXiv:1904.01355; see :mod:`otus.detection.single_stage.fcos`), in the frame of each object's own axes: a location is inside
if it is inside the turned box, and distances to edges are along its sides, for the level and for centre-ness alike.
The loss of boxes is a distance of Gaussians (arXiv:2106.06072; see :mod:`otus.parts.boxes.oriented`).

Departures: six numbers a location (centre, sizes in log space, double angle) in the place of four distances, since the
edges of a turned box cannot be told before its angle. A Gaussian of a square has no direction, so squares are found with
any angle. An object without an oriented box is learned upright.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.dense_parts import BackboneWithFPN
from otus.detection.single_stage.fcos import FCOSLoss, LocationMatcher, fcos_head, location_generator
from otus.detection.single_stage.retinanet import SMALL_DEPTH, efficientnet_lite0_levels
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.oriented import OrientedBoxCoder, OrientedPostprocess, gaussian_distance, in_frame_of
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.heads.dense_scores import SigmoidScores
from otus.structures import Categories

POSTPROCESS = OrientedPostprocess(score_threshold=0.05, nms_iou=0.1, max_detections=300)


def ltrb_in_box_frame(offsets: Float[Tensor, "*n 2"], boxes: Float[Tensor, "*n 5"]) -> Float[Tensor, "*n 4"]:
    """How far the four sides of turned boxes are from points at such offsets from their centres."""
    own, half = in_frame_of(offsets, boxes), boxes[..., 2:4] / 2
    return torch.cat([half + own, half - own], dim=-1)


@dataclass(frozen=True)
class OrientedLocationMatcher(LocationMatcher):
    """A :class:`~otus.detection.single_stage.fcos.LocationMatcher` of boxes xywhr."""

    def geometry(self, points: Float[Tensor, "a 2"], boxes: Float[Tensor, "n 5"]) -> tuple[Tensor, Tensor, Tensor]:
        """Distances to the four sides (A, N, 4), offsets from the centres (A, N, 2), areas (N,)."""
        offsets = points[:, None] - boxes[:, :2]
        return ltrb_in_box_frame(offsets, boxes.expand(len(points), -1, -1)), offsets, boxes[:, 2] * boxes[:, 3]


@dataclass(frozen=True)
class OrientedFCOSLoss(FCOSLoss):
    """:class:`~otus.detection.single_stage.fcos.FCOSLoss` with the distance of Gaussians for ``box``."""

    def of_boxes(self, found: Float[Tensor, "p 5"], boxes: Float[Tensor, "p 5"]) -> Float[Tensor, ""]:
        """The sum over the positives."""
        return gaussian_distance(found, boxes).sum()

    def edges(self, boxes: Float[Tensor, "p 5"], locations: Float[Tensor, "p 4"]) -> Float[Tensor, "p 4"]:
        """Distances to the four sides."""
        return ltrb_in_box_frame((locations[:, :2] + locations[:, 2:]) / 2 - boxes[:, :2], boxes)


def oriented_fcos(
    features: BackboneWithFPN,
    locations: GridAnchorGenerator,
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_convs: int = 4,
) -> DenseDetector:
    """Oriented FCOS of any backbone; arguments as of :func:`~otus.detection.single_stage.fcos.fcos`."""
    class_indices = class_indices_of(categories, class_indices, background=False)
    return DenseDetector(
        categories=categories,
        features=features,
        head=fcos_head(features, class_indices, box_dim=6, num_convs=num_convs),
        anchors=locations,
        assigner=OrientedLocationMatcher(),
        box_coder=OrientedBoxCoder(),
        criterion=OrientedFCOSLoss(),
        scores=SigmoidScores(top_k_per_level=500),
        class_indices=class_indices,
        postprocess=POSTPROCESS,
        oriented=True,
    )


def oriented_fcos_efficientnet_lite0_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    frozen_norms: bool = True,
    frozen_level: int = 2,
) -> DenseDetector:
    """A small one over EfficientNet-Lite0: four levels of 96 channels."""
    maps = efficientnet_lite0_levels(frozen_norms=frozen_norms, frozen_level=frozen_level)
    return oriented_fcos(
        maps, location_generator((8, 16, 32, 64)), categories, class_indices=class_indices, num_convs=SMALL_DEPTH
    )
