"""RetinaNet: anchors on every level of a pyramid name classes at once, and a loss that does not drown in background.

Shape shorthand: A anchors of all maps, S classes of the head.

Paper: "Focal Loss for Dense Object Detection" (Lin, Goyal, Girshick, He, Dollár, ICCV 2017, arXiv:1708.02002): focal loss
(section 3, equation 5), the network (section 4, figure 3), anchors of three sizes an octave and three shapes, positive
from IoU 0.5, negative below 0.4. Version 2: group normalisation in the head and GIoU (arXiv:1902.09630) in the place of
distances, after "Bridging the Gap Between Anchor-based and Anchor-free Detection" (Zhang et al., CVPR 2020,
arXiv:1912.02424).
Reference: torchvision ``models.detection.retinanet`` (BSD-3-Clause), whose layers' names and defaults are kept.

Departures: the anchors that overlap an object most are positive too, as in Faster R-CNN; boxes by L1 and not smooth L1;
losses are divided by each image's own positives and averaged over the images.
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
    """``class``: focal loss over all anchors that are not neutral; ``box``: L1 of the codes, or GIoU of the boxes."""

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
        """Each image's loss divided by its positives; the mean over the images."""
        class_losses, box_losses = [], []
        for logits, box_deltas, assignment in zip(outputs.logits[0], outputs.box_deltas[0], assignments, strict=True):
            count = max(1, len(assignment.positives))
            known = torch.where(assignment.class_indices != NEUTRAL)[0]
            class_losses.append(focal_loss(logits[known], assignment.class_indices[known]) / count)
            box_deltas, origins = box_deltas[assignment.positives], anchors[assignment.positives]
            if self.boxes == "l1":
                wrong = F.l1_loss(box_deltas, box_coder.encode(assignment.boxes, origins), reduction="sum")
            else:
                wrong = generalized_box_iou_loss(
                    box_coder.decode(box_deltas, origins), assignment.boxes, reduction="sum"
                )
            box_losses.append(wrong / count)
        return {"class": torch.stack(class_losses).mean(), "box": torch.stack(box_losses).mean()}


def octave_scales(*sizes: int) -> list[tuple[int, int, int]]:
    """Anchor sizes of each level: s, 2^(1/3) s and 2^(2/3) s, in whole pixels."""
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
    """RetinaNet of any backbone.

    Parameters
    ----------
    features
        A backbone and its pyramid.
    anchors
        Of each level.
    class_indices
        Where each label stands among the head's classes; 0, 1, 2 … without it.
    num_convs, head_norm
        Convolutions of each tower of the head, and the normalisation after each; ``group`` in 32 groups.
    box_loss
        See :class:`RetinaNetLoss`.
    postprocess
        Which detections are reported.

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
    """Build the paper's RetinaNet over ResNet-50; parameters as of :func:`retinanet`, ``freezing`` of the backbone."""
    anchors = GridAnchorGenerator(octave_scales(32, 64, 128, 256, 512))
    return retinanet(resnet50_fpn(freezing), anchors, categories, class_indices=class_indices)


def retinanet_resnet50_fpn_v2(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    freezing: Freezing = Freezing(norms=False),
) -> DenseDetector:
    """Build version 2: P6 from the backbone, trained norms, group normalisation in the head, GIoU."""
    features = resnet50_fpn(freezing, extra_from_backbone=True)
    anchors = GridAnchorGenerator(octave_scales(32, 64, 128, 256, 512))
    return retinanet(features, anchors, categories, class_indices=class_indices, head_norm="group", box_loss="giou")


def retinanet_efficientnet_lite0_fpn(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing()
) -> DenseDetector:
    """Build a small one for images of about 320 pixels: 96 channels, anchors from 24 to 304 pixels, GIoU, small towers."""
    return retinanet(
        efficientnet_lite0_fpn(freezing),
        GridAnchorGenerator(octave_scales(24, 48, 96, 192)),
        categories,
        class_indices=class_indices,
        num_convs=SMALL_NUM_CONVS,
        head_norm="group",
        box_loss="giou",
    )
