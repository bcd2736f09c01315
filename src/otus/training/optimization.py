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

_TRUNK = "trunk"


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
            key = (parameter.ndim > 1, _TRUNK in name.split("."))
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise UsageError(f"{type(system).__name__}: expected parameters that learn, got none (all are frozen)")
    parameters = [
        {
            "params": members,
            "weight_decay": settings.weight_decay if decays else 0.0,
            "share": settings.trunk_learning_rate_share if is_trunk else 1.0,
        }
        for (decays, is_trunk), members in groups.items()
    ]
    # Fused: one pass over the memory of each parameter instead of ten, on CPUs too.
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.peak_rate, momentum=settings.momentum, fused=True)
    return torch.optim.AdamW(parameters, lr=settings.peak_rate, fused=True)


def learning_rate(step: int, *, total_steps: int, settings: TrainSettings) -> float:
    """What step number ``step`` (from 0) of a run of ``total_steps`` learns at."""
    warm_up = min(settings.warm_up_steps, total_steps // 10)
    if step < warm_up:
        return settings.peak_rate * (step + 1) / (warm_up + 1)
    done = min(1.0, (step - warm_up) / max(1, total_steps - warm_up))
    if settings.schedule == "cosine":
        return settings.peak_rate * (1 + math.cos(math.pi * done)) / 2
    return settings.peak_rate * 0.1 ** bisect_right(sorted(settings.drops_at), step / max(1, total_steps))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
