"""Matching by IoU: which regions (anchors, proposals) are positive, for which object, negative, or neutral.

Shape shorthand: R regions (anchors or proposals), N objects.

Papers: R-CNN (arXiv:1311.2524, section 2.3: positive, negative, and neutral, which are ignored); Faster R-CNN
(arXiv:1506.01497, section 3.1.2: the anchors of highest IoU with each object are positive too, however low that IoU is).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_area, box_iou

NEGATIVE = -1
NEUTRAL = -2


@dataclass(frozen=True)
class IoUMatcher:
    """Match regions to objects.

    Parameters
    ----------
    positive_iou
        A region with at least this IoU with an object is positive; its object is the one with the highest IoU.
    negative_iou
        A region whose IoU with every object is below this is negative; in between it is neutral, and not trained on.
    keep_best
        Whether the regions of highest IoU with each object (ties included) are positive too, if that IoU is above 0
        (torchvision's ``allow_low_quality_matches``).
    """

    positive_iou: float
    negative_iou: float
    keep_best: bool = False

    def __call__(
        self,
        regions: Float[Tensor, "r 4"],
        boxes: Float[Tensor, "n 4"],
        *,
        crowds: Float[Tensor, "c 4"] | None = None,
    ) -> Int[Tensor, "r"]:
        """Return the index of each region's object, or ``NEGATIVE`` (-1) or ``NEUTRAL`` (-2).

        ``crowds`` are boxes of many objects at once, which are never matched: a negative region of which at least half
        lies in one is neutral, because it may show an object that is not annotated by itself.
        """
        matches = torch.full((len(regions),), NEGATIVE, dtype=torch.int64, device=regions.device)
        if len(boxes) and len(regions):
            iou = box_iou(boxes, regions)
            best_iou, matches = iou.max(dim=0)
            best_matches = matches.clone()
            matches[best_iou < self.positive_iou] = NEUTRAL
            matches[best_iou < self.negative_iou] = NEGATIVE
            if self.keep_best:
                best_iou_of_object = iou.max(dim=1, keepdim=True).values
                is_best = ((iou == best_iou_of_object) & (best_iou_of_object > 0)).any(dim=0)
                matches[is_best] = best_matches[is_best]
        if crowds is not None and len(crowds):
            matches[(matches == NEGATIVE) & (pairwise_ioa(regions, crowds) >= 0.5)] = NEUTRAL
        return matches


def pairwise_ioa(regions: Float[Tensor, "r 4"], boxes: Float[Tensor, "c 4"]) -> Float[Tensor, "r"]:
    """Return the largest fraction of each region's area that lies in one of the boxes (intersection over area)."""
    top_left = torch.maximum(regions[:, None, :2], boxes[None, :, :2])
    bottom_right = torch.minimum(regions[:, None, 2:], boxes[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=2).amax(dim=1)
    return overlap / box_area(regions).clamp(min=torch.finfo(regions.dtype).tiny)


def paired_iou(boxes: Float[Tensor, "*n 4"], others: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n"]:
    """Return the IoU of each box with the other of the same index; leading axes broadcast."""
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) + (others[..., 2:] - others[..., :2]).prod(dim=-1)
    return overlap / (areas - overlap).clamp(min=torch.finfo(boxes.dtype).tiny)
