"""Which steps of dense maps learn which object: those that are best at naming it and at placing it, several for each.

Shape shorthand: T steps of all maps, N objects, C categories.

Paper: TOOD (Feng et al., ICCV 2021, arXiv:2108.07755), section 3.3: alignment = score^alpha IoU^beta; the best steps within
each object are positive, and what they should say is their alignment, scaled so that the best of an object gets its IoU.
Departure: an object that holds no step's centre takes the nearest step.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_convert, box_iou


@dataclass(frozen=True)
class TaskAlignedAssigner:
    """Several steps for each object.

    Parameters
    ----------
    top_k
        Steps of an object at most.
    alpha, beta
        How much the score and the IoU weigh.
    """

    top_k: int = 10
    alpha: float = 1.0
    beta: float = 6.0

    @torch.no_grad()
    def __call__(
        self,
        scores: Float[Tensor, "t c"],
        boxes: Float[Tensor, "t 4"],
        centres: Float[Tensor, "t 2"],
        target_boxes: Float[Tensor, "n 4"],
        labels: Int[Tensor, "n"],
    ) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"], Float[Tensor, "p"]]:
        """The positive steps, the object of each, and what it should score.

        Parameters
        ----------
        scores, boxes
            What the steps say now; boxes and ``target_boxes`` as centre and size.
        centres
            Where the steps are.
        """
        if not len(target_boxes):
            return labels.new_zeros(0), labels.new_zeros(0), scores.new_zeros(0)
        off = (centres[None] - target_boxes[:, None, :2]).abs()
        inside = (off < target_boxes[:, None, 2:] / 2).all(dim=2)
        nearest = off.square().sum(dim=2).argmin(dim=1)
        inside[torch.arange(len(target_boxes), device=nearest.device), nearest] = True
        iou = box_iou(box_convert(target_boxes, "cxcywh", "xyxy"), box_convert(boxes, "cxcywh", "xyxy"))
        alignment = scores[:, labels].t() ** self.alpha * iou**self.beta * inside
        best, step = alignment.topk(min(self.top_k, len(boxes)), dim=1)
        chosen = torch.zeros_like(inside).scatter_(1, step, best > 0)
        of_step = (iou * chosen).argmax(dim=0)  # a step of two objects learns the one that it overlaps more
        positive = torch.where(chosen.any(dim=0))[0]
        objects = of_step[positive]
        mine = torch.zeros_like(chosen)
        mine[objects, positive] = True
        highest = (alignment * mine).amax(dim=1).clamp(min=torch.finfo(iou.dtype).tiny)
        quality = alignment[objects, positive] / highest[objects] * (iou * mine).amax(dim=1)[objects]
        return positive, objects, quality
