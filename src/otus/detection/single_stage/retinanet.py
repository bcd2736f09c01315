"""RetinaNet: anchors on every level of a pyramid predict classes; the focal loss keeps easy negatives from dominating.

Shape shorthand: A anchors of all feature maps, S class logits.

Paper: "Focal Loss for Dense Object Detection" (Lin, Goyal, Girshick, He, Dollár, ICCV 2017, arXiv:1708.02002): focal loss
(section 3, equation 5), the network (section 4, figure 3), anchors of three sizes per octave and three aspect ratios,
positive from IoU 0.5, negative below 0.4. Version 2: group normalisation in the head and GIoU (arXiv:1902.09630) instead of
the L1 loss, following "Bridging the Gap Between Anchor-based and Anchor-free Detection" (Zhang et al., CVPR 2020,
arXiv:1912.02424).
Reference: torchvision ``models.detection.retinanet`` (BSD-3-Clause), whose layer names and defaults are kept.

Departures, as in torchvision: the anchors of highest IoU with an object are positive too, as in Faster R-CNN; the box loss
is L1 instead of smooth L1; losses are divided by the number of positives of each image, then averaged over the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.interfaces import BoxCoder
from otus.parts.backbones.freezing import Freezing
from otus.parts.backbones.with_fpn import BackboneWithFPN, efficientnet_lite0_fpn, resnet50_fpn
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.coding import DeltaBoxCoder
from otus.parts.boxes.matching import NEUTRAL, IoUMatcher
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.heads.dense_head import SMALL_NUM_CONVS, DenseAssignment, DenseOutputs, TowerHead
from otus.parts.heads.dense_scores import SigmoidScores
from otus.parts.losses import focal_loss
from otus.parts.postprocess import Postprocess
from otus.structures import Categories

POSTPROCESS = Postprocess(score_threshold=0.05, nms_iou=0.5, max_detections=300)


@dataclass(frozen=True)
class RetinaNetLoss:
    """Focal loss over all anchors that are not neutral (``class``); L1 of the box deltas or GIoU of the boxes (``box``)."""

    boxes: Literal["l1", "giou"] = "l1"

    def __call__(
        self,
        outputs: DenseOutputs,
        anchors: Float[Tensor, "a 4"],
        assignments: Sequence[DenseAssignment],
        box_coder: BoxCoder,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of each image, divided by its number of positives, and their means over the images."""
        class_losses, box_losses = [], []
        for logits, box_deltas, assignment in zip(outputs.logits[0], outputs.box_deltas[0], assignments, strict=True):
            count = max(1, len(assignment.positives))
            not_neutral = torch.where(assignment.class_indices != NEUTRAL)[0]
            class_losses.append(focal_loss(logits[not_neutral], assignment.class_indices[not_neutral]) / count)
            positive_deltas, positive_anchors = box_deltas[assignment.positives], anchors[assignment.positives]
            if self.boxes == "l1":
                target_deltas = box_coder.encode(assignment.boxes, positive_anchors)
                box_loss = F.l1_loss(positive_deltas, target_deltas, reduction="sum")
            else:
                boxes = box_coder.decode(positive_deltas, positive_anchors)
                box_loss = generalized_box_iou_loss(boxes, assignment.boxes, reduction="sum")
            box_losses.append(box_loss / count)
        return {"class": torch.stack(class_losses).mean(), "box": torch.stack(box_losses).mean()}


def octave_scales(*sizes: int) -> list[tuple[int, int, int]]:
    """Return three anchor sizes per level: s, 2^(1/3) s and 2^(2/3) s, rounded down to whole pixels."""
    return [(size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in sizes]


def retinanet(
    features: BackboneWithFPN,
    anchors: GridAnchorGenerator,
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_convs: int = 4,
    head_norm: Literal["none", "group"] = "none",
    box_loss: Literal["l1", "giou"] = "l1",
    postprocess: Postprocess = POSTPROCESS,
) -> DenseDetector:
    """Build RetinaNet over any backbone with a feature pyramid.

    Parameters
    ----------
    features
        The backbone and its pyramid.
    anchors
        Generates the anchors of each level.
    categories
        Names of the labels.
    class_indices
        Index of each label among the class logits (default: 0, 1, 2 …).
    num_convs
        Convolutions per tower of the head.
    head_norm
        Normalisation after each of them: ``none``, or ``group`` for group normalisation of 32 groups.
    box_loss
        See :class:`RetinaNetLoss`.
    postprocess
        Score thresholds, NMS and limit of the detections.

    Examples
    --------
    >>> anchors = GridAnchorGenerator(octave_scales(32, 64, 128, 256))
    >>> detector = retinanet(efficientnet_lite0_fpn(Freezing()), anchors, Categories(("cat", "dog")))
    >>> detector.predict([{"image": torch.zeros(3, 64, 96)}])[0].size_hw
    (64, 96)
    """
    class_indices = class_indices_of(categories, class_indices, background=False)
    channels = features.pyramid.out_channels
    return DenseDetector(
        categories=categories,
        features=features,
        head=TowerHead(
            channels,
            anchors_per_location=anchors.anchors_per_location,
            num_logits=max(class_indices) + 1,
            num_convs=num_convs,
            norm_layer=partial(nn.GroupNorm, 32) if head_norm == "group" else None,
        ),
        anchors=anchors,
        assigner=IoUMatcher(positive_iou=0.5, negative_iou=0.4, keep_best=True),
        box_coder=DeltaBoxCoder(),
        criterion=RetinaNetLoss(box_loss),
        scores=SigmoidScores(),
        class_indices=class_indices,
        postprocess=postprocess,
    )


def retinanet_resnet50_fpn(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing()
) -> DenseDetector:
    """Build the paper's RetinaNet over ResNet-50; see :func:`retinanet`, ``freezing`` is that of the backbone."""
    anchors = GridAnchorGenerator(octave_scales(32, 64, 128, 256, 512))
    return retinanet(resnet50_fpn(freezing), anchors, categories, class_indices=class_indices)


def retinanet_resnet50_fpn_v2(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(norms=False),
) -> DenseDetector:
    """Build version 2: P6 computed from the backbone, batch norms trained, group normalisation in the head, GIoU loss."""
    features = resnet50_fpn(freezing, extra_from_backbone=True)
    anchors = GridAnchorGenerator(octave_scales(32, 64, 128, 256, 512))
    return retinanet(features, anchors, categories, class_indices=class_indices, head_norm="group", box_loss="giou")


def retinanet_efficientnet_lite0_fpn(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing()
) -> DenseDetector:
    """Build a small RetinaNet for images of about 320 pixels.

    It has 96 channels, anchors from 24 to 304 pixels, one convolution per tower, and the GIoU loss.
    """
    return retinanet(
        efficientnet_lite0_fpn(freezing),
        GridAnchorGenerator(octave_scales(24, 48, 96, 192)),
        categories,
        class_indices=class_indices,
        num_convs=SMALL_NUM_CONVS,
        head_norm="group",
        box_loss="giou",
    )
