"""Exponential moving average (EMA) of the weights, which usually predicts better than the last weights.

The idea is that of "Acceleration of Stochastic Approximation by Averaging" (Polyak and Juditsky, 1992); the decay grows
during the first steps as in TensorFlow's ``ExponentialMovingAverage(num_updates=…)``.
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class ModelEMA(Generic[AnyModule]):
    """A copy of a module whose parameters are the EMA of the module's; buffers (statistics of norms) are copied.

    Parameters
    ----------
    module
        The module that is trained.
    decay
        Decay d of the average after the first steps: average = d * average + (1 - d) * parameter. With 0, ``module`` is
        the trained module itself, not a copy.
    """

    def __init__(self, module: AnyModule, *, decay: float) -> None:
        self.decay = decay
        self.module: AnyModule = copy.deepcopy(module).requires_grad_(False) if decay else module

    @torch.no_grad()
    def update(self, module: AnyModule, *, step: int) -> None:
        """Update the average after step number ``step`` (from 0), with decay min(``decay``, (1 + step) / (10 + step))."""
        if not self.decay:
            return
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.module.parameters()), list(module.parameters()), weight)
        for average, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            average.copy_(buffer)
