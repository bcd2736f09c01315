"""Losses shared by several systems."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def box_delta_loss(
    predicted: Float[Tensor, "p 4"], target: Float[Tensor, "p 4"], *, count: int, beta: float = 1 / 9
) -> Float[Tensor, ""]:
    """Compute the smooth L1 loss of the positives' box deltas, summed and divided by ``count``, all sampled regions.

    Fast R-CNN (arXiv:1504.08083), equations 2 and 3; ``beta`` = 1/9 instead of 1 is Detectron's.
    """
    return F.smooth_l1_loss(predicted, target, beta=beta, reduction="sum") / max(count, 1)


def focal_loss(
    logits: Float[Tensor, "n s"], class_indices: Int[Tensor, "n"], *, alpha: float = 0.25, gamma: float = 2.0
) -> Float[Tensor, ""]:
    """Compute the sigmoid focal loss, summed over all anchors and classes.

    "Focal Loss for Dense Object Detection" (arXiv:1708.02002), equation 5: -alpha_t (1 - p_t)^gamma log(p_t). It is computed
    as if all anchors were background, then corrected for the few positives: one pass over the logits instead of five.

    Parameters
    ----------
    logits
        Class logits of each anchor.
    class_indices
        Target class of each anchor; negative for background.
    alpha, gamma
        Weight of positives (negatives: 1 - alpha), and focusing parameter.
    """
    positives = torch.where(class_indices >= 0)[0]
    target_logits = logits[positives, class_indices[positives]]

    def negative_loss(x: Tensor) -> Tensor:
        return (1 - alpha) * x.sigmoid() ** gamma * F.softplus(x)

    positive_loss = alpha * (-target_logits).sigmoid() ** gamma * F.softplus(-target_logits)
    return negative_loss(logits).sum() + (positive_loss - negative_loss(target_logits)).sum()


def zero_loss(module: nn.Module) -> Float[Tensor, ""]:
    """Return 0 with a gradient of zeros for each parameter, as distributed training needs a gradient for all of them."""
    return (
        sum((parameter.sum() for parameter in module.parameters()), start=next(module.parameters()).new_zeros(())) * 0
    )


def dice_loss(logits: Float[Tensor, "n *p"], masks: Float[Tensor, "n *p"]) -> Float[Tensor, "n"]:
    """Return ``1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)`` of each mask, p the sigmoid of its logits and t the target.

    "V-Net" (Milletari, Navab, Ahmadi, 3DV 2016, arXiv:1606.04797), section 3, without squares and with 1 added, as in DETR.
    """
    predicted, target = logits.sigmoid().flatten(start_dim=1), masks.flatten(start_dim=1)
    overlap, total = (predicted * target).sum(dim=1), predicted.sum(dim=1) + target.sum(dim=1)
    return 1 - (2 * overlap + 1) / (total + 1)


def varifocal_loss(
    logits: Float[Tensor, "*n s"], target: Float[Tensor, "*n s"], *, alpha: float = 0.75, gamma: float = 2.0
) -> Float[Tensor, "*n s"]:
    """Compute the varifocal loss: binary cross-entropy with target scores in [0, 1], per anchor and class, not reduced.

    "VarifocalNet" (Zhang et al., CVPR 2021, arXiv:2008.13367), equation 2: positives are weighted by their target score,
    negatives by alpha p^gamma.
    """
    weights = torch.where(target > 0, target, alpha * logits.detach().sigmoid() ** gamma)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weights
