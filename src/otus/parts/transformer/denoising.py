"""Objects with noise as additional queries: a decoder learns from its first step to bring a box back to its object.

Shape shorthand: B images, N objects of one, P noisy queries, Q others.

Papers: DN-DETR (Li et al., CVPR 2022, arXiv:2203.01305), section 4: noise on boxes and labels, groups that do not see one
another; DINO (Zhang et al., ICLR 2023, arXiv:2203.03605), section 3.3: for each object one box nearby, to be brought back,
and one further away, to be refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_convert

from otus.parts.batching import Target
from otus.parts.transformer.set_matching import Match, normalize_boxes


@dataclass(frozen=True)
class DenoisingQueries:
    """Queries made of objects.

    Parameters
    ----------
    labels, boxes
        What they say: (B, P) and (B, P, 4), centre and size in shares of the image.
    matches
        Of each image which of them are to find which object; the others are to say that there is none.
    used
        (B, P) False where an image has fewer objects than others: nothing is learned there.
    group
        (P,) the group of each.
    """

    labels: Int[Tensor, "b p"]
    boxes: Float[Tensor, "b p 4"]
    matches: list[Match]
    valid: Bool[Tensor, "b p"]
    group: Int[Tensor, "p"]

    def attention_mask(self, others: int) -> Bool[Tensor, "n n"]:
        """Who may look at whom, the noisy first: each within its group and at the ``others``, these at one another only."""
        group = torch.cat([self.group, self.group.new_full((others,), -1)])
        return (group[:, None] == group) | (group == -1)


@dataclass(frozen=True)
class Denoising:
    """How noisy queries are made.

    Parameters
    ----------
    num_queries
        About so many of an image.
    label_noise_ratio
        Share of labels that are drawn anew.
    box_noise_scale
        Corners move by up to so many halves of the box's size, those to be refused by up to twice that.
    """

    num_queries: int = 100
    label_noise_ratio: float = 0.25
    box_noise_scale: float = 1.0

    @torch.no_grad()
    def __call__(
        self,
        targets: Sequence[Target],
        sizes_hw: Sequence[tuple[int, int]],
        *,
        category_count: int,
        generator: torch.Generator | None = None,
    ) -> DenoisingQueries | None:
        """Queries for a batch; None where it has no objects."""
        most = min(max(len(target.boxes) for target in targets), max(1, self.num_queries // 2))
        if most == 0:
            return None
        device = targets[0].boxes.device
        groups = max(1, self.num_queries // (2 * most))
        shape = (len(targets), groups, 2, most)  # first those near their object, then those to be refused
        labels = torch.zeros(shape, dtype=torch.int64, device=device)
        boxes = torch.full((*shape, 4), 0.5, device=device)
        valid = torch.zeros(shape, dtype=torch.bool, device=device)
        for i, (target, size_hw) in enumerate(zip(targets, sizes_hw, strict=True)):
            count = min(len(target.boxes), most)
            labels[i, ..., :count] = target.labels[:count]
            boxes[i, ..., :count, :] = normalize_boxes(target.boxes[:count], size_hw)
            valid[i, ..., :count] = True

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).to(device)  # the generator is a CPU's

        drawn = (uniform(*shape) * category_count).long().clamp(max=category_count - 1)
        labels = torch.where(uniform(*shape) < self.label_noise_ratio, drawn, labels)
        distance = uniform(*shape, 4) + torch.arange(2, device=device)[:, None, None]
        side = torch.where(uniform(*shape, 4) < 0.5, -1.0, 1.0)
        half = boxes[..., 2:].repeat(1, 1, 1, 1, 2) / 2
        corners = box_convert(boxes, "cxcywh", "xyxy") + side * distance * self.box_noise_scale * half
        low, high = torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])
        noisy = box_convert(torch.cat([low, high], dim=-1).clamp(0, 1), "xyxy", "cxcywh")
        place = torch.arange(groups * 2 * most, device=device).reshape(shape[1:])
        matches = []
        for target in targets:
            count = min(len(target.boxes), most)
            objects = torch.arange(count, device=device).repeat(groups)
            matches.append(Match(place[:, 0, :count].flatten(), objects))
        return DenoisingQueries(
            labels.flatten(1), noisy.flatten(1, 3), matches, valid.flatten(1), (place // (2 * most)).flatten()
        )
