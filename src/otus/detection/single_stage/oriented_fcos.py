"""Oriented FCOS: each location inside an object predicts its oriented box, e.g. for ships, cars and fields in aerial images.

Shape shorthand: A locations of all feature maps, N objects.

Paper: FCOS (arXiv:1904.01355), in the coordinate system of each object's own axes: a location is inside an object if it is
inside the oriented box, and the distances to the edges, which determine level and centre-ness, are along the box's axes.
The box loss is a distance of Gaussians (ProbIoU, arXiv:2106.06072; see :mod:`otus.parts.boxes.oriented`).

Departures: six numbers per location (centre, log sizes, double angle) instead of four distances, since the edges of an
oriented box are only defined with its angle. The Gaussian of a square has no direction, so the predicted angle of a square
is arbitrary. The target of an object without an oriented box is its upright box.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.parts.backbones.freezing import Freezing
from otus.parts.backbones.with_fpn import BackboneWithFPN, efficientnet_lite0_fpn
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.locations import LocationMatcher, location_generator
from otus.parts.boxes.oriented import OrientedBoxCoder, OrientedPostprocess, gaussian_distance, to_box_frame
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.heads.dense_head import SMALL_NUM_CONVS
from otus.parts.heads.dense_scores import SigmoidScores
from otus.parts.heads.location_head import LocationLoss, location_head
from otus.parts.postprocess import Postprocess
from otus.structures import Categories

POSTPROCESS = OrientedPostprocess(score_threshold=0.05, nms_iou=0.1, max_detections=300)


def ltrb_in_box_frame(offsets: Float[Tensor, "*n 2"], boxes: Float[Tensor, "*n 5"]) -> Float[Tensor, "*n 4"]:
    """Compute distances to the four sides of boxes xywhr from points at ``offsets`` from their centres."""
    rotated, half_size = to_box_frame(offsets, boxes), boxes[..., 2:4] / 2
    return torch.cat([half_size + rotated, half_size - rotated], dim=-1)


def oriented_geometry(points: Float[Tensor, "a 2"], boxes: Float[Tensor, "n 5"]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the :data:`~otus.parts.boxes.locations.Geometry` of boxes xywhr."""
    offsets = points[:, None] - boxes[:, :2]
    return ltrb_in_box_frame(offsets, boxes.expand(len(points), -1, -1)), offsets, boxes[:, 2] * boxes[:, 3]


def gaussian_loss(predicted: Float[Tensor, "p 5"], target: Float[Tensor, "p 5"]) -> Float[Tensor, ""]:
    """Compute the distance of the boxes' Gaussians, summed over the positives."""
    return gaussian_distance(predicted, target).sum()


def oriented_ltrb(boxes: Float[Tensor, "p 5"], locations: Float[Tensor, "p 4"]) -> Float[Tensor, "p 4"]:
    """Compute the distances of each location to the four sides of its box."""
    return ltrb_in_box_frame((locations[:, :2] + locations[:, 2:]) / 2 - boxes[:, :2], boxes)


def oriented_fcos(
    features: BackboneWithFPN,
    locations: GridAnchorGenerator,
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_convs: int = 4,
    postprocess: Postprocess = POSTPROCESS,
) -> DenseDetector:
    """Build oriented FCOS over any backbone with a feature pyramid.

    Parameters
    ----------
    features
        The backbone and its pyramid, whose channels are a multiple of 32.
    locations
        Generator of the locations of each level; see :func:`~otus.parts.boxes.locations.location_generator`.
    categories
        Names of the labels.
    class_indices
        Index of each label among the class logits (default: 0, 1, 2 …).
    num_convs
        Convolutions per tower of the head.
    postprocess
        Score thresholds, NMS and limit of the detections.
    """
    class_indices = class_indices_of(categories, class_indices, background=False)
    return DenseDetector(
        categories=categories,
        features=features,
        head=location_head(features.pyramid.out_channels, class_indices, box_dim=6, num_convs=num_convs),
        anchors=locations,
        assigner=LocationMatcher(geometry=oriented_geometry),
        box_coder=OrientedBoxCoder(),
        criterion=LocationLoss(box_loss=gaussian_loss, ltrb=oriented_ltrb),
        scores=SigmoidScores(top_k_per_level=500),
        class_indices=class_indices,
        postprocess=postprocess,
        oriented=True,
    )


def oriented_fcos_efficientnet_lite0_fpn(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing()
) -> DenseDetector:
    """Build a small oriented FCOS over EfficientNet-Lite0: four levels of 96 channels, one convolution per tower."""
    return oriented_fcos(
        efficientnet_lite0_fpn(freezing),
        location_generator((8, 16, 32, 64)),
        categories,
        class_indices=class_indices,
        num_convs=SMALL_NUM_CONVS,
    )
