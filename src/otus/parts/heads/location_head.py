"""Head and losses of anchor-free detectors: per location, class logits, a box, and the location's centre-ness in it.

Shape shorthand: A locations of all feature maps, P positives, D numbers per box (4: xyxy, 5: xywhr).

Paper: FCOS (arXiv:1904.01355), section 3; centre-ness beside the boxes: arXiv:2006.09214, section 2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from otus.parts.boxes.coding import LTRBCoder
from otus.parts.boxes.locations import centerness
from otus.parts.boxes.matching import NEUTRAL
from otus.parts.heads.dense_head import DenseAssignment, DenseOutputs, TowerHead
from otus.parts.losses import focal_loss


class BoxDecoder(Protocol):
    """Decodes predicted deltas, relative to anchors, to boxes."""

    def decode(self, box_deltas: Tensor, anchors: Tensor, /) -> Tensor: ...


def location_head(in_channels: int, class_indices: Sequence[int], *, box_dim: int = 4, num_convs: int = 4) -> TowerHead:
    """Build FCOS's head: towers with group normalisation, and centre-ness predicted beside the box.

    Parameters
    ----------
    in_channels
        Channels of the feature maps, a multiple of 32.
    class_indices
        Index of each label among the class logits.
    box_dim, num_convs
        See :class:`~otus.parts.heads.dense_head.TowerHead`.
    """
    return TowerHead(
        in_channels,
        anchors_per_location=1,
        num_logits=max(class_indices) + 1,
        box_dim=box_dim,
        has_centerness=True,
        num_convs=num_convs,
        norm_layer=partial(nn.GroupNorm, 32),
        bias=True,
    )


def giou_loss(predicted: Float[Tensor, "p 4"], target: Float[Tensor, "p 4"]) -> Float[Tensor, ""]:
    """Compute 1 - GIoU, summed over the positives."""
    return generalized_box_iou_loss(predicted, target, reduction="sum")


@dataclass(frozen=True)
class LocationLoss:
    """Focal loss of classes, box loss, and binary cross-entropy of centre-ness, each divided by the number of positives.

    Parameters
    ----------
    box_loss
        Loss of predicted and target boxes (P, D), summed over the positives (default: GIoU).
    ltrb
        Distances (P, 4) of locations to the edges of their target boxes, for centre-ness (default: for boxes xyxy).
    """

    box_loss: Callable[[Tensor, Tensor], Tensor] = giou_loss
    ltrb: Callable[[Tensor, Tensor], Tensor] = LTRBCoder().encode

    def __call__(
        self,
        outputs: DenseOutputs,
        anchors: Float[Tensor, "a 4"],
        assignments: Sequence[DenseAssignment],
        box_coder: BoxDecoder,
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses over the locations of all images together."""
        assert outputs.centerness is not None
        class_indices = torch.stack([assignment.class_indices for assignment in assignments])
        not_neutral, positive = class_indices != NEUTRAL, class_indices >= 0
        locations = torch.cat([anchors[assignment.positives] for assignment in assignments])
        boxes = torch.cat([assignment.boxes for assignment in assignments])
        predicted = box_coder.decode(outputs.box_deltas[0][positive], locations)
        losses = {
            "class": focal_loss(outputs.logits[0][not_neutral], class_indices[not_neutral]),
            "box": self.box_loss(predicted, boxes),
            "centerness": F.binary_cross_entropy_with_logits(
                outputs.centerness[0][positive], centerness(self.ltrb(boxes, locations)), reduction="sum"
            ),
        }
        return {name: loss / max(1, len(boxes)) for name, loss in losses.items()}
