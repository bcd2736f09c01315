"""Task-aligned assignment: an object's positives are the locations that classify and localise it best, several per object.

Shape shorthand: T locations of all feature maps, N objects, C categories.

Paper: TOOD (Feng et al., ICCV 2021, arXiv:2108.07755), section 3.3: alignment = score^alpha IoU^beta; the best
locations within each object are positive, and their target score is their alignment, scaled so that its maximum over the
object's positives equals the maximum of their IoU. Departure: an object that contains no location gets the nearest one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_convert, box_iou


@dataclass(frozen=True)
class TaskAlignedAssigner:
    """Assign several locations to each object.

    Parameters
    ----------
    top_k
        Maximum positives per object.
    alpha, beta
        Exponents of the score and of the IoU.
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
        """Return the indices of the positive locations, the index of each one's object, and its target score.

        Parameters
        ----------
        scores, boxes
            The current predictions: class probabilities, and boxes cxcywh.
        centres
            x and y of the locations.
        target_boxes, labels
            Boxes cxcywh and labels of the objects.
        """
        if not len(target_boxes):
            return labels.new_zeros(0), labels.new_zeros(0), scores.new_zeros(0)
        distances = (centres[None] - target_boxes[:, None, :2]).abs()
        inside = (distances < target_boxes[:, None, 2:] / 2).all(dim=2)
        nearest = distances.square().sum(dim=2).argmin(dim=1)
        inside[torch.arange(len(target_boxes), device=nearest.device), nearest] = True
        iou = box_iou(box_convert(target_boxes, "cxcywh", "xyxy"), box_convert(boxes, "cxcywh", "xyxy"))
        alignment = scores[:, labels].t() ** self.alpha * iou**self.beta * inside
        best, location = alignment.topk(min(self.top_k, len(boxes)), dim=1)
        chosen = torch.zeros_like(inside).scatter_(1, location, best > 0)
        best_object = (iou * chosen).argmax(dim=0)  # a location chosen by several objects gets that of the highest IoU
        positive = torch.where(chosen.any(dim=0))[0]
        objects = best_object[positive]
        assigned = torch.zeros_like(chosen)
        assigned[objects, positive] = True
        max_alignment = (alignment * assigned).amax(dim=1).clamp(min=torch.finfo(iou.dtype).tiny)
        max_iou = (iou * assigned).amax(dim=1)
        target_scores = alignment[objects, positive] / max_alignment[objects] * max_iou[objects]
        return positive, objects, target_scores
