"""Non-maximum suppression.

Reference: torchvision ``batched_nms`` (BSD-3-Clause), whose CPU operator knows float32 only.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision import ops

from otus.parts.boxes import _nms_kernels as kernels

_FEW = 1000
"""Up to so many boxes torchvision moves the groups apart and suppresses once, which rounds; above, it is exact."""

_ENOUGH = 4  # times the limit


def batched_nms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, "n"],
    groups: Int[Tensor, "n"],
    *,
    iou_threshold: float,
    limit: int | None = None,
) -> Int[Tensor, "kept"]:
    """Indices of the boxes that stay, highest score first.

    Parameters
    ----------
    boxes
        xyxy; compared in float32 whatever came.
    groups
        Boxes of different groups (categories, levels of a pyramid) do not suppress one another.
    iou_threshold
        A box with more IoU than this with a kept box of its group goes.
    limit
        The best of those that stay; all without it.

    Notes
    -----
    torchvision goes through all boxes anew for each group and to the end. Many boxes on a CPU are therefore compared here,
    until the limit is reached. Of equal scores the first comes first, which torchvision leaves open.
    """
    boxes, scores = boxes.detach().float(), scores.detach().float()
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if traced or boxes.device.type != "cpu" or len(boxes) <= _FEW:
        kept = ops.batched_nms(boxes, scores, groups, iou_threshold)
        if not traced:
            kept = kept.sort().values
            kept = kept[scores[kept].argsort(descending=True, stable=True)]
        return kept[:limit]
    limit = len(boxes) if limit is None else limit
    # To sort all takes longer than the rest, and nearly always the best few are enough.
    if 0 < _ENOUGH * limit < len(boxes):
        least = scores.topk(_ENOUGH * limit, sorted=False).values.min()
        best = torch.where(~(scores < least))[0]
        kept = best[_keep_greedily(boxes[best], scores[best], groups[best], iou_threshold, limit)]
        if len(kept) == limit:
            return kept
    return _keep_greedily(boxes, scores, groups, iou_threshold, limit)


def nms_per_image(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, "n"],
    groups: Int[Tensor, "n"],
    image_index: Int[Tensor, "n"],
    *,
    num_images: int,
    padded_hw: tuple[int, int],
    iou_threshold: float,
    limit: int,
) -> Int[Tensor, "kept"]:
    """Return what :func:`batched_nms` keeps of each image of a batch, image by image, highest score first.

    It has no loop over images and no step that depends on values, as ``torch.export`` needs it.

    Parameters
    ----------
    boxes, scores, groups
        The boxes of all images; see :func:`batched_nms`.
    image_index
        Index of each box's image in the batch.
    num_images
        Images of the batch.
    padded_hw
        Size of the batch, which the boxes lie in.
    iou_threshold
        1 removes none.
    limit
        Boxes per image.
    """
    if iou_threshold < 1:
        # Groups lie side by side and images below one another: in two directions the coordinates, which are rounded, stay
        # smaller than in torchvision's one.
        corner = torch.stack([groups * (padded_hw[1] + 1), image_index * (padded_hw[0] + 1)], dim=1)
        kept = ops.nms(boxes + corner.repeat(1, 2), scores, iou_threshold)
    else:
        kept = scores.argsort(descending=True)  # the exporter knows no stable one
    of_image = image_index[kept, None]
    is_of = of_image == torch.arange(num_images, device=kept.device)
    rank = is_of.long().cumsum(dim=0).gather(1, of_image)[:, 0]
    best = torch.where(rank <= limit)[0]
    return kept[best[(image_index[kept[best]] * kept.shape[0] + best).argsort()]]


def _keep_greedily(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, limit: int) -> Tensor:
    kept = kernels.keep_greedily(
        scores.argsort(descending=True, stable=True).numpy(),
        groups.contiguous().numpy(),
        boxes.contiguous().numpy(),
        ops.box_area(boxes).numpy(),
        None,
        float(iou_threshold),
        limit,
    )
    return torch.from_numpy(kept)
