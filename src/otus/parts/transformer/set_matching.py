"""Bipartite matching of predictions and objects, and the box losses of the pairs.

Shape shorthand: Q queries, N objects of one image, M = min(Q, N) pairs. Boxes are cxcywh normalised by the image's size.

Paper: DETR (Carion et al., ECCV 2020, arXiv:2005.12872), section 3.1: the assignment of minimum total cost ("Hungarian
algorithm"; scipy's ``linear_sum_assignment``), and L1 and generalised IoU (Rezatofighi et al., CVPR 2019,
arXiv:1902.09630) for boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss

from otus.parts.batching import Target
from otus.parts.boxes.matching import pairwise_ioa

L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
"""Weights of the two box losses, and of the two box costs of the matching, in DETR and its successors."""


@dataclass(frozen=True)
class Match:
    """The matched pairs of one image: indices of queries and of objects. With more objects than queries, some have none."""

    queries: Int[Tensor, "m"]
    objects: Int[Tensor, "m"]


@dataclass(frozen=True)
class HungarianMatcher:
    """Match one query to each object so that the total cost is minimal.

    Parameters
    ----------
    class_weight, l1_weight, giou_weight
        Weights of the three costs (default: the paper's).
    """

    class_weight: float = 1.0
    l1_weight: float = L1_WEIGHT
    giou_weight: float = GIOU_WEIGHT

    @torch.no_grad()
    def __call__(
        self, class_cost: Float[Tensor, "q n"], boxes: Float[Tensor, "q 4"], target_boxes: Float[Tensor, "n 4"]
    ) -> Match:
        """Match predictions to objects.

        Predictions that are not finite get a high cost instead of raising an error: the loss will show them.

        Parameters
        ----------
        class_cost
            Cost of each query's class prediction for each object.
        boxes, target_boxes
            Predicted and ground-truth boxes, cxcywh normalised by the image's size.
        """
        from scipy.optimize import linear_sum_assignment  # slow to import, and needed in training only

        corners, target_corners = (box_convert(cxcywh, "cxcywh", "xyxy") for cxcywh in (boxes, target_boxes))
        cost = (
            self.class_weight * class_cost
            + self.l1_weight * torch.cdist(boxes, target_boxes, p=1)
            - self.giou_weight * generalized_box_iou(corners, target_corners)
        )
        pairs = linear_sum_assignment(cost.nan_to_num(1e8, 1e8, -1e8).cpu().numpy())
        queries, objects = (torch.from_numpy(index).to(boxes.device) for index in pairs)
        return Match(queries, objects)


def normalize_boxes(boxes: Float[Tensor, "n 4"], size_hw: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """Convert boxes xyxy in pixels to cxcywh normalised by the image's size."""
    height, width = size_hw
    return box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])


def denormalize_boxes(boxes: Float[Tensor, "n 4"], size_hw: tuple[int, int]) -> Float[Tensor, "n 4"]:
    """Convert boxes cxcywh normalised by the image's size to xyxy in pixels, clipped to the image."""
    height, width = size_hw
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum((box_convert(boxes, "cxcywh", "xyxy") * limit).clamp(min=0), limit)


def box_losses(
    boxes: Float[Tensor, "b q 4"],
    matches: Sequence[Match],
    targets: Sequence[Target],
    sizes_hw: Sequence[tuple[int, int]],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Compute L1 and 1 - GIoU losses, summed over all pairs and divided by the number of objects.

    Without objects both are 0, with a gradient of zeros.
    """
    predicted = torch.cat([boxes[i, match.queries] for i, match in enumerate(matches)])
    target_boxes = torch.cat(
        [
            normalize_boxes(target.boxes[match.objects], size_hw)
            for target, match, size_hw in zip(targets, matches, sizes_hw, strict=True)
        ]
    )
    count = max(1, sum(len(target.boxes) for target in targets))
    corners, target_corners = (box_convert(cxcywh, "cxcywh", "xyxy") for cxcywh in (predicted, target_boxes))
    l1 = (predicted - target_boxes).abs().sum() / count
    return l1, generalized_box_iou_loss(corners, target_corners, reduction="sum") / count


def inside_crowd(boxes: Float[Tensor, "q 4"], target: Target, size_hw: tuple[int, int]) -> Bool[Tensor, "q"]:
    """Return which predicted boxes lie at least half inside a crowd: whether they are correct is unknown, so they have no
    loss."""
    if not len(target.crowds):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    return pairwise_ioa(denormalize_boxes(boxes.detach(), size_hw), target.crowds) >= 0.5
