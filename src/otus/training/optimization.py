"""The optimizer and its learning rate as a function of the step.

Warm-up: "Accurate, Large Minibatch SGD" (Goyal et al., arXiv:1706.02677, section 2.2). Cosine: "SGDR" (Loshchilov and
Hutter, ICLR 2017, arXiv:1608.03983, equation 5, without restarts). AdamW: "Decoupled Weight Decay Regularization" (the same,
arXiv:1711.05101).
"""

import math
from bisect import bisect_right

import torch
from torch import nn
from torch.optim import Optimizer

from otus.errors import UsageError
from otus.training.settings import TrainSettings

_BACKBONE = "backbone"
_FIRST_RATE = 0.1
"""Of the learning rate, where the warm-up starts."""


def make_optimizer(system: nn.Module, settings: TrainSettings) -> Optimizer:
    """SGD or AdamW over the parameters that learn; vectors (biases, factors of norms) do not decay.

    Each group carries its ``share`` of the learning rate.

    Raises
    ------
    UsageError
        If nothing of the system learns.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in system.named_parameters():
        if parameter.requires_grad:
            key = (parameter.ndim > 1, _BACKBONE in name.split("."))
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise UsageError(f"{type(system).__name__}: expected parameters that learn, got none (all are frozen)")
    parameters = [
        {
            "params": members,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "share": settings.backbone_learning_rate_share if is_backbone else 1.0,
        }
        for (decays, is_backbone), members in groups.items()
    ]
    # Fused: one pass over the memory of each parameter instead of ten, on CPUs too.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.peak_rate, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(parameters, lr=settings.peak_rate, fused=True)


def warm_up_share(total_steps: int, settings: TrainSettings) -> float:
    """The share of a run of ``total_steps`` that is its warm-up."""
    return min(settings.warm_up_steps, total_steps // 10) / max(1, total_steps)


def learning_rate(share: float, *, warm_up: float, settings: TrainSettings) -> float:
    """What a step learns at before which ``share`` of the schedule is done, of which ``warm_up`` is the warm-up."""
    if share < warm_up:
        return settings.peak_rate * (_FIRST_RATE + (1 - _FIRST_RATE) * share / warm_up)
    if settings.schedule == "cosine":
        return settings.peak_rate * (1 + math.cos(math.pi * min(1.0, (share - warm_up) / (1 - warm_up)))) / 2
    return settings.peak_rate * 0.1 ** bisect_right(sorted(settings.drops_at), share)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
