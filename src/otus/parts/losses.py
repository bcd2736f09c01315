"""Losses that several systems share."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def transform_loss(
    predicted: Float[Tensor, "p 4"], target: Float[Tensor, "p 4"], *, count: int, beta: float = 1 / 9
) -> Float[Tensor, ""]:
    """Smooth L1 over the transforms of the positives, divided by all ``count`` regions that were sampled.

    Fast R-CNN (arXiv:1504.08083), equations 2 and 3; the bend at ``beta`` = 1/9 and not 1 is Detectron's.
    """
    return F.smooth_l1_loss(predicted, target, beta=beta, reduction="sum") / max(count, 1)


def zero_loss(module: nn.Module) -> Float[Tensor, ""]:
    """Nothing to learn from, yet a gradient (of zeros) for each parameter, which distributed training waits for."""
    return (
        sum((parameter.sum() for parameter in module.parameters()), start=next(module.parameters()).new_zeros(())) * 0
    )
