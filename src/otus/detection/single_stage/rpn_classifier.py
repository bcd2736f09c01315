"""The simplest single-stage detector: a region proposal network that predicts classes, without a second stage.

Shape shorthand: A anchors of all feature maps, K anchors per location, S class logits (background included).

The question is the lecture's: is the second stage needed? Faster R-CNN's RPN (Ren et al., NeurIPS 2015, arXiv:1506.01497,
section 3.1) classifies each of K anchors per location as object or background; if it predicts one of C categories or
background instead, it is a detector. Nothing else is changed: a 3x3 convolution and two 1x1 ones over all levels of a
pyramid, positive from IoU 0.7, negative below 0.3, 256 sampled anchors per image, up to half of them positive.

It shows the problem that RetinaNet and SSD solve: 256 random samples of 20,000 anchors rarely contain the hard negatives.
Departure from the RPN: one softmax over classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from otus.detection.single_stage.dense_detector import DenseDetector
from otus.detection.single_stage.interfaces import BoxCoder
from otus.parts.backbones.freezing import Freezing
from otus.parts.backbones.with_fpn import BackboneWithFPN, efficientnet_lite0_fpn
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.coding import DeltaBoxCoder
from otus.parts.boxes.matching import IoUMatcher
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.heads.dense_head import DenseAssignment, DenseOutputs, permute_and_flatten
from otus.parts.heads.dense_scores import SoftmaxScores
from otus.parts.losses import box_delta_loss
from otus.parts.postprocess import Postprocess
from otus.structures import Categories

ANCHOR_SAMPLER = BalancedSampler(batch_size_per_image=256, positive_fraction=0.5)


class RPNClassHead(nn.Module):
    """Predict class logits and box deltas of K anchors at each location."""

    def __init__(self, channels: int, anchors_per_location: int, *, num_logits: int) -> None:
        super().__init__()
        self.num_logits = num_logits
        self.conv = Conv2dNormActivation(channels, channels, 3, norm_layer=None)
        self.cls_logits = nn.Conv2d(channels, anchors_per_location * num_logits, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors_per_location * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Float[Tensor, "b c _ _"]]) -> DenseOutputs:
        """Return class logits and box deltas of the anchors of each feature map."""
        shared = [self.conv(x) for x in maps]
        return DenseOutputs(
            [permute_and_flatten(self.cls_logits(x), self.num_logits) for x in shared],
            [permute_and_flatten(self.bbox_pred(x), 4) for x in shared],
        )


@dataclass(frozen=True)
class SampledLoss:
    """Cross-entropy over randomly sampled anchors (``class``), and smooth L1 of the positives among them (``box``)."""

    sampler: BalancedSampler = ANCHOR_SAMPLER

    def __call__(
        self,
        outputs: DenseOutputs,
        anchors: Float[Tensor, "a 4"],
        assignments: Sequence[DenseAssignment],
        box_coder: BoxCoder,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Compute both losses, divided by the number of sampled anchors of the batch."""
        class_losses, box_losses, sampled = [], [], 0
        for logits, box_deltas, assignment in zip(outputs.logits[0], outputs.box_deltas[0], assignments, strict=True):
            positives, negatives = self.sampler(assignment.matches, generator=generator)
            chosen = torch.cat([positives, negatives])
            class_losses.append(
                F.cross_entropy(logits[chosen], assignment.class_indices[chosen].clamp(min=0), reduction="sum")
            )
            boxes = assignment.boxes[torch.searchsorted(assignment.positives, positives)]
            box_losses.append(
                box_delta_loss(box_deltas[positives], box_coder.encode(boxes, anchors[positives]), count=1)
            )
            sampled += len(chosen)
        count = max(1, sampled)
        return {"class": torch.stack(class_losses).sum() / count, "box": torch.stack(box_losses).sum() / count}


def rpn_classifier(
    features: BackboneWithFPN,
    anchors: GridAnchorGenerator,
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    postprocess: Postprocess = Postprocess(),
) -> DenseDetector:
    """Build an RPN classifier over any backbone with a feature pyramid.

    Parameters
    ----------
    features
        The backbone and its pyramid.
    anchors
        Generates the anchors of each level.
    categories
        Names of the labels.
    class_indices
        Index of each label among the class logits, 0 being background (default: 1, 2, 3 …).
    postprocess
        Score thresholds, NMS and limit of the detections.
    """
    class_indices = class_indices_of(categories, class_indices, background=True)
    return DenseDetector(
        categories=categories,
        features=features,
        head=RPNClassHead(
            features.pyramid.out_channels, anchors.anchors_per_location, num_logits=max(class_indices) + 1
        ),
        anchors=anchors,
        assigner=IoUMatcher(positive_iou=0.7, negative_iou=0.3, keep_best=True),
        box_coder=DeltaBoxCoder(),
        criterion=SampledLoss(),
        scores=SoftmaxScores(),
        class_indices=class_indices,
        postprocess=postprocess,
    )


def rpn_classifier_efficientnet_lite0_fpn(
    categories: Categories, *, class_indices: Sequence[int] | None = None, freezing: Freezing = Freezing()
) -> DenseDetector:
    """Build a small RPN classifier for images of about 320 pixels, with the anchors of the small Mask R-CNN."""
    anchors = GridAnchorGenerator([(20, 30), (45, 65), (95, 135), (190, 270)])
    return rpn_classifier(efficientnet_lite0_fpn(freezing), anchors, categories, class_indices=class_indices)
