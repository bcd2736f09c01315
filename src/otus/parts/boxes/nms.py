"""Non-maximum suppression.

Reference: torchvision ``batched_nms`` (BSD-3-Clause), whose CPU operator knows float32 only.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision import ops

from otus.parts.boxes import _nms_kernels as kernels

_OFFSET_TRICK_MAX = 1000
"""Up to this many boxes torchvision offsets the groups and runs NMS once, with rounding; beyond, it loops over groups."""

_CANDIDATES_PER_KEPT = 4


def batched_nms(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, "n"],
    groups: Int[Tensor, "n"],
    *,
    iou_threshold: float,
    limit: int | None = None,
) -> Int[Tensor, "kept"]:
    """Return the indices of the boxes that remain after NMS within each group, highest score first.

    Parameters
    ----------
    boxes
        Boxes xyxy; compared in float32 whatever their dtype.
    scores
        Score of each box.
    groups
        Group of each box, such as its label or pyramid level; boxes of different groups do not suppress one another.
    iou_threshold
        A box whose IoU with a kept box of its group exceeds this is removed.
    limit
        Maximum number of boxes to keep, the highest-scoring ones (default: all).

    Notes
    -----
    For more than 1000 boxes torchvision loops over the groups and visits all boxes of each. On a CPU a compiled kernel is
    used instead, which stops at the limit. Equal scores are ordered by index, which torchvision leaves open.
    """
    boxes, scores = boxes.detach().float(), scores.detach().float()
    is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if is_traced or boxes.device.type != "cpu" or len(boxes) <= _OFFSET_TRICK_MAX:
        kept = ops.batched_nms(boxes, scores, groups, iou_threshold)
        if not is_traced:
            kept = kept.sort().values
            kept = kept[scores[kept].argsort(descending=True, stable=True)]
        return kept[:limit]
    limit = len(boxes) if limit is None else limit
    # Sorting all boxes takes longer than NMS itself, and the highest-scoring ones are nearly always enough.
    num_candidates = _CANDIDATES_PER_KEPT * limit
    if 0 < num_candidates < len(boxes):
        min_score = scores.topk(num_candidates, sorted=False).values.min()
        best = torch.where(~(scores < min_score))[0]
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
    """Apply :func:`batched_nms` to each image of a batch; return indices image by image, highest score first.

    For ``torch.export`` there is no loop over images and no control flow that depends on values.

    Parameters
    ----------
    boxes, scores, groups
        The boxes of all images; see :func:`batched_nms`.
    image_index
        Index of each box's image in the batch.
    num_images
        Number of images in the batch.
    padded_hw
        Height and width of the batch, which contain all boxes.
    iou_threshold
        See :func:`batched_nms`; 1 removes no box.
    limit
        Maximum number of boxes per image.
    """
    if iou_threshold < 1:
        # As in torchvision's offset trick, groups and images are moved apart; groups in x and images in y, so that
        # coordinates stay smaller, and their rounding errors too.
        offsets = torch.stack([groups * (padded_hw[1] + 1), image_index * (padded_hw[0] + 1)], dim=1)
        kept = ops.nms(boxes + offsets.repeat(1, 2), scores, iou_threshold)
    else:
        kept = scores.argsort(descending=True)  # a stable argsort cannot be exported
    kept_image = image_index[kept, None]
    is_in_image = kept_image == torch.arange(num_images, device=kept.device)
    rank = is_in_image.long().cumsum(dim=0).gather(1, kept_image)[:, 0]
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
