"""Denoising queries: noised ground truth as additional queries, so that a decoder learns box refinement from the first
step on.

Shape shorthand: B images, P denoising queries, N all queries.

Papers: DN-DETR (Li et al., CVPR 2022, arXiv:2203.01305), section 4: noise on boxes and labels, groups that do not
attend to one another; DINO (Zhang et al., ICLR 2023, arXiv:2203.03605), section 3.3: for each object one positive
query, with a box nearby, and one negative, with a box further away.
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
    """Queries made of ground-truth objects with noise.

    Parameters
    ----------
    labels, boxes
        (B, P) and (B, P, 4): noised labels, and boxes cxcywh normalised by the image's size.
    matches
        Per image, the positive queries and their objects; the target of the other queries is "no object".
    valid
        (B, P) False for the padding of images with fewer objects than others, which has no loss.
    group
        (P,) group of each query.
    """

    labels: Int[Tensor, "b p"]
    boxes: Float[Tensor, "b p 4"]
    matches: list[Match]
    valid: Bool[Tensor, "b p"]
    group: Int[Tensor, "p"]

    def attention_mask(self, num_queries: int) -> Bool[Tensor, "n n"]:
        """Return which query may attend to which, denoising queries first, then ``num_queries`` ordinary ones.

        Denoising queries attend to their group and to ordinary queries, ordinary queries only to one another.
        """
        group = torch.cat([self.group, self.group.new_full((num_queries,), -1)])
        return (group[:, None] == group) | (group == -1)


@dataclass(frozen=True)
class Denoising:
    """How denoising queries are made.

    Parameters
    ----------
    num_queries
        Approximate number of denoising queries per image.
    label_noise_ratio
        Fraction of labels that are replaced by random ones.
    box_noise_scale
        In units of half the box's size, corners of positives move by up to this, those of negatives by this to twice this.
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
        """Generate the denoising queries of a batch; None if it has no objects."""
        max_objects = min(max(len(target.boxes) for target in targets), max(1, self.num_queries // 2))
        if max_objects == 0:
            return None
        device = targets[0].boxes.device
        groups = max(1, self.num_queries // (2 * max_objects))
        shape = (len(targets), groups, 2, max_objects)  # third axis: positives, negatives
        labels = torch.zeros(shape, dtype=torch.int64, device=device)
        boxes = torch.full((*shape, 4), 0.5, device=device)
        valid = torch.zeros(shape, dtype=torch.bool, device=device)
        for i, (target, size_hw) in enumerate(zip(targets, sizes_hw, strict=True)):
            count = min(len(target.boxes), max_objects)
            labels[i, ..., :count] = target.labels[:count]
            boxes[i, ..., :count, :] = normalize_boxes(target.boxes[:count], size_hw)
            valid[i, ..., :count] = True

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator).to(device)  # the generator is on the CPU

        random_labels = (uniform(*shape) * category_count).long().clamp(max=category_count - 1)
        labels = torch.where(uniform(*shape) < self.label_noise_ratio, random_labels, labels)
        distance = uniform(*shape, 4) + torch.arange(2, device=device)[:, None, None]  # negatives: 1 to 2
        sign = torch.where(uniform(*shape, 4) < 0.5, -1.0, 1.0)
        half_size = boxes[..., 2:].repeat(1, 1, 1, 1, 2) / 2
        corners = box_convert(boxes, "cxcywh", "xyxy") + sign * distance * self.box_noise_scale * half_size
        low, high = torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])
        noised = box_convert(torch.cat([low, high], dim=-1).clamp(0, 1), "xyxy", "cxcywh")
        index = torch.arange(groups * 2 * max_objects, device=device).reshape(shape[1:])
        matches = []
        for target in targets:
            count = min(len(target.boxes), max_objects)
            objects = torch.arange(count, device=device).repeat(groups)
            matches.append(Match(index[:, 0, :count].flatten(), objects))
        group = (index // (2 * max_objects)).flatten()
        return DenoisingQueries(labels.flatten(1), noised.flatten(1, 3), matches, valid.flatten(1), group)
