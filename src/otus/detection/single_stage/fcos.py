"""FCOS: no anchors; each location inside an object says how far the object's four edges are.

Shape shorthand: A locations of all maps, N objects, S class slots, D numbers of a box.

Paper: "FCOS: Fully Convolutional One-Stage Object Detection" (Tian, Shen, Chen, He, ICCV 2019, arXiv:1904.01355): distances
to the edges (equation 1), each level for its range of sizes (section 3.2), centre-ness (equation 3). Centre sampling, GIoU
and centre-ness beside the boxes: the journal version (arXiv:2006.09214, section 2).
Reference: torchvision ``models.detection.fcos`` (BSD-3-Clause), whose layers' names and defaults are kept.

Departures, torchvision's: locations lie at multiples of the stride, not at centres of cells; "in the centre" is a square of
1.5 strides around the middle, as in the authors' code; ReLU in the place of the exponential; the score is the root of class
times centre-ness; the loss of boxes is not weighted by centre-ness; a size on the border of two levels belongs to neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.dense_parts import BackboneWithFPN, BoxCoder
from otus.detection.single_stage.dense_stages import DenseAssignment
from otus.detection.single_stage.retinanet import SMALL_DEPTH, efficientnet_lite0_levels, resnet50_levels
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.coding import LTRBCoder
from otus.parts.boxes.matching import NEGATIVE, NEUTRAL, pairwise_ioa
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.heads.dense_head import DenseOutputs, TowerHead
from otus.parts.heads.dense_scores import SigmoidScores
from otus.parts.losses import focal_loss
from otus.parts.postprocess import Postprocess
from otus.structures import Categories

POSTPROCESS = Postprocess(score_threshold=0.2, nms_iou=0.6, max_detections=100)


@dataclass(frozen=True)
class LocationMatcher:
    """Match locations to objects: near the centre, inside, of a size that is the level's; of several the smallest.

    Parameters
    ----------
    radius
        Half the side of the square around an object's centre, in strides.
    """

    radius: float = 1.5

    def __call__(
        self,
        locations: Float[Tensor, "a 4"],
        boxes: Float[Tensor, "n 4"],
        *,
        crowds: Float[Tensor, "c 4"] | None = None,
    ) -> Int[Tensor, "a"]:
        """The index of the object of each location, or NEGATIVE, or NEUTRAL within ``crowds``.

        ``locations`` are squares of the stride's size; a level is for objects whose farthest edge is 4 to 8 strides away,
        the finest for smaller ones too and the coarsest for larger.
        """
        points, strides = (locations[:, :2] + locations[:, 2:]) / 2, locations[:, 2] - locations[:, 0]
        matches = torch.full_like(strides, NEGATIVE, dtype=torch.int64)
        if len(boxes):
            edges, offsets, areas = self.geometry(points, boxes)
            farthest = edges.amax(dim=2)
            low = torch.where(strides == strides.min(), 0, strides * 4)[:, None]
            high = torch.where(strides == strides.max(), torch.inf, strides * 8)[:, None]
            fits = offsets.abs().amax(dim=2) < self.radius * strides[:, None]
            fits &= (edges.amin(dim=2) > 0) & (farthest > low) & (farthest < high)
            smallest, index = torch.where(fits, areas, torch.inf).min(dim=1)
            matches = torch.where(smallest.isfinite(), index, matches)
        if crowds is not None and len(crowds):
            matches[(matches == NEGATIVE) & (pairwise_ioa(locations, crowds) >= 0.5)] = NEUTRAL
        return matches

    def geometry(self, points: Float[Tensor, "a 2"], boxes: Float[Tensor, "n d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Distances to the four edges (A, N, 4), offsets from the centres (A, N, 2), areas (N,)."""
        corner, opposite = boxes[:, :2], boxes[:, 2:]
        edges = torch.cat([points[:, None] - corner, opposite - points[:, None]], dim=2)
        return edges, points[:, None] - (corner + opposite) / 2, (opposite - corner).prod(dim=1)


def centerness(edges: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """1 in the middle of a box, 0 at its edges: the root of the products of shorter by longer distance (equation 3)."""
    one, other = edges[:, [0, 1]], edges[:, [2, 3]]
    return (torch.minimum(one, other) / torch.maximum(one, other)).prod(dim=1).sqrt()


@dataclass(frozen=True)
class FCOSLoss:
    """``class``: focal loss; ``box``: GIoU; ``centerness``: cross-entropy. All are divided by the positives of the batch."""

    def __call__(
        self,
        outputs: DenseOutputs,
        anchors: Float[Tensor, "a 4"],
        assignments: Sequence[DenseAssignment],
        box_coder: BoxCoder,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Of all images together."""
        assert outputs.centerness is not None
        class_indices = torch.stack([one.class_indices for one in assignments])
        known, positive = class_indices != NEUTRAL, class_indices >= 0
        origins = torch.cat([anchors[one.positives] for one in assignments])
        boxes = torch.cat([one.boxes for one in assignments])
        box_deltas, quality = outputs.box_deltas[0][positive], outputs.centerness[0][positive]
        count = max(1, len(boxes))
        losses = {
            "class": focal_loss(outputs.logits[0][known], class_indices[known]),
            "box": self.of_boxes(box_coder.decode(box_deltas, origins), boxes),
            "centerness": F.binary_cross_entropy_with_logits(
                quality, centerness(self.edges(boxes, origins)), reduction="sum"
            ),
        }
        return {name: loss / count for name, loss in losses.items()}

    def edges(self, boxes: Float[Tensor, "p d"], locations: Float[Tensor, "p 4"]) -> Float[Tensor, "p 4"]:
        """Distances to the four edges."""
        return LTRBCoder().encode(boxes, locations)

    def of_boxes(self, found: Float[Tensor, "p d"], boxes: Float[Tensor, "p d"]) -> Float[Tensor, ""]:
        """The sum over the positives."""
        return generalized_box_iou_loss(found, boxes, reduction="sum")


def location_generator(strides: Sequence[int]) -> GridAnchorGenerator:
    """Of each map with such a stride the locations, as squares of the stride's size."""
    return GridAnchorGenerator([(stride,) for stride in strides], aspect_ratios=(1.0,))


def fcos(
    features: BackboneWithFPN,
    locations: GridAnchorGenerator,
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_convs: int = 4,
) -> DenseDetector:
    """FCOS of any backbone whose pyramid's channels are a multiple of 32.

    Parameters
    ----------
    features
        A backbone and its pyramid.
    locations
        Of each level; see :func:`location_generator`.
    class_indices
        Where each label stands among the head's classes; 0, 1, 2 … without it.
    num_convs
        Convolutions of each tower of the head.
    """
    class_indices = class_indices_of(categories, class_indices, background=False)
    return DenseDetector(
        categories=categories,
        features=features,
        head=fcos_head(features, class_indices, num_convs=num_convs),
        anchors=locations,
        assigner=LocationMatcher(),
        box_coder=LTRBCoder(),
        criterion=FCOSLoss(),
        scores=SigmoidScores(),
        class_indices=class_indices,
        postprocess=POSTPROCESS,
    )


def fcos_head(
    features: BackboneWithFPN, class_indices: Sequence[int], *, box_dim: int = 4, num_convs: int = 4
) -> TowerHead:
    """The head: group normalisation, and centre-ness beside the boxes."""
    return TowerHead(
        features.pyramid.out_channels,
        anchors_per_location=1,
        num_logits=max(class_indices) + 1,
        box_dim=box_dim,
        has_centerness=True,
        num_convs=num_convs,
        norm_layer=partial(nn.GroupNorm, 32),
        bias=True,
    )


def fcos_resnet50_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    norm_eps: float | None = None,
    frozen_norms: bool = True,
    frozen_level: int = 2,
) -> DenseDetector:
    """The paper's, over ResNet-50; arguments as of :func:`~otus.detection.region_based.faster_rcnn.faster_rcnn_resnet50_fpn`."""
    maps = resnet50_levels(frozen_norms=frozen_norms, norm_eps=norm_eps, frozen_level=frozen_level)
    return fcos(maps, location_generator((8, 16, 32, 64, 128)), categories, class_indices=class_indices)


def fcos_efficientnet_lite0_fpn(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    frozen_norms: bool = True,
    frozen_level: int = 2,
) -> DenseDetector:
    """A small one for images of about 320 pixels: four levels of 96 channels, low towers."""
    maps = efficientnet_lite0_levels(frozen_norms=frozen_norms, frozen_level=frozen_level)
    detector = fcos(
        maps, location_generator((8, 16, 32, 64)), categories, class_indices=class_indices, num_convs=SMALL_DEPTH
    )
    detector.postprocess = Postprocess(score_threshold=0.05, nms_iou=0.55)
    return detector
