"""The optimizer and its learning rate as a function of the step.

Warm-up: "Accurate, Large Minibatch SGD" (Goyal et al., arXiv:1706.02677, section 2.2). Cosine: "SGDR" (Loshchilov and
Hutter, ICLR 2017, arXiv:1608.03983, equation 5, without restarts). AdamW: "Decoupled Weight Decay Regularization" (the
same, arXiv:1711.05101).
"""

import math
from bisect import bisect_right

import torch
from torch import nn
from torch.optim import Optimizer

from otus.errors import UsageError
from otus.training.settings import TrainSettings

_BACKBONE = "backbone"
_WARM_UP_FACTOR = 0.1
"""Initial learning rate of the warm-up, as a fraction of the peak."""


def make_optimizer(system: nn.Module, settings: TrainSettings) -> Optimizer:
    """Build SGD or AdamW over the trainable parameters; vectors (biases, norm weights) have no weight decay.

    Each parameter group has an ``lr_factor``, by which the learning rate is multiplied.

    Raises
    ------
    UsageError
        If the system has no trainable parameters.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in system.named_parameters():
        if parameter.requires_grad:
            key = (parameter.ndim > 1, _BACKBONE in name.split("."))
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise UsageError(f"{type(system).__name__}: expected trainable parameters, got none (all are frozen)")
    parameters = [
        {
            "params": members,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "lr_factor": settings.backbone_learning_rate_share if is_backbone else 1.0,
        }
        for (decays, is_backbone), members in groups.items()
    ]
    # Fused kernels read each parameter once instead of ten times, on CPUs too.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.peak_rate, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(parameters, lr=settings.peak_rate, fused=True)


def warm_up_fraction(total_steps: int, settings: TrainSettings) -> float:
    """Return the warm-up as a fraction of a run of ``total_steps``."""
    return min(settings.warm_up_steps, total_steps // 10) / max(1, total_steps)


def learning_rate(fraction_done: float, *, warm_up: float, settings: TrainSettings) -> float:
    """Return the learning rate when ``fraction_done`` (0 to 1) of the schedule is completed.

    The first part of the schedule, the fraction ``warm_up``, is the warm-up.
    """
    if fraction_done < warm_up:
        return settings.peak_rate * (_WARM_UP_FACTOR + (1 - _WARM_UP_FACTOR) * fraction_done / warm_up)
    if settings.schedule == "cosine":
        return settings.peak_rate * (1 + math.cos(math.pi * min(1.0, (fraction_done - warm_up) / (1 - warm_up)))) / 2
    return settings.peak_rate * 0.1 ** bisect_right(sorted(settings.drops_at), fraction_done)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of each parameter group to ``rate`` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]
