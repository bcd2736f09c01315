"""The exponential moving average of the weights, which predicts better than the last weights.

"Acceleration of Stochastic Approximation by Averaging" (Polyak and Juditsky, 1992) is the idea; the growing decay of the
first steps is TensorFlow's ``ExponentialMovingAverage(num_updates=…)``.
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class ModelEMA(Generic[AnyModule]):
    """A copy of a module whose parameters follow it slowly; its buffers (statistics of norms) are the module's own.

    Parameters
    ----------
    module
        What learns.
    decay
        How much of the average stays at a step; 0 keeps no average and no copy.
    """

    def __init__(self, module: AnyModule, *, decay: float) -> None:
        self.decay = decay
        self.module: AnyModule = copy.deepcopy(module).requires_grad_(False) if decay else module

    @torch.no_grad()
    def update(self, module: AnyModule, *, step: int) -> None:
        """Follow the module after step number ``step`` (from 0)."""
        if not self.decay:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), weight)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)
