"""Learning-rate range test: raise the learning rate from step to step and find where the loss falls fastest.

"Cyclical Learning Rates for Training Neural Networks" (Smith, WACV 2017, arXiv:1506.01186, section 3.3), as implemented by
fastai: the rate grows exponentially, the loss is smoothed, and the test ends when it diverges.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import nn

from otus.errors import TrainingError
from otus.training.loop import LossStep
from otus.training.optimization import make_optimizer, set_learning_rate
from otus.training.seeding import model_generator
from otus.training.train_loader import TrainLoader

_SMOOTHING = 0.9
_DIVERGED = 4.0  # multiple of the lowest loss
_MIN_STEPS = 10


@dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """The smoothed loss at each learning rate that was tried, and the suggested learning rate."""

    rates: Float[np.ndarray, "n"]
    losses: Float[np.ndarray, "n"]

    @property
    def suggestion(self) -> float:
        """The learning rate with the steepest descent of the loss over the logarithm of the rate, before its minimum."""
        lowest = max(2, int(self.losses.argmin()))
        slopes = np.gradient(self.losses[: lowest + 1], np.log(self.rates[: lowest + 1]))
        return float(self.rates[int(slopes.argmin())])


def find_learning_rate(
    system: nn.Module,
    *,
    loader: TrainLoader,
    fabric: Fabric,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
) -> LearningRateCurve:
    """Train a copy of a system while the learning rate rises from ``lowest`` to ``highest``.

    Parameters
    ----------
    system
        The system; it is not changed.
    loader, fabric
        Loader of the training batches, and Fabric of the run.
    lowest, highest
        First and last learning rate.
    steps
        Number of steps.

    Raises
    ------
    TrainingError
        If the loss diverges within the first ten steps, at the lowest rates.
    """
    system = copy.deepcopy(system).to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bare_optimizer = make_optimizer(system, loader.settings)
    model, optimizer = fabric.setup(LossStep(system), bare_optimizer)
    model.train()
    rates: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    with closing(loader.batches()) as batches:
        for step, rate in enumerate(_exponential(lowest, highest, steps)):
            set_learning_rate(bare_optimizer, rate)
            generator = model_generator(loader.settings.seed, step, fabric.global_rank)
            loss = torch.stack(list(model(next(batches), generator=generator).values())).sum()
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss.item()
            unbiased = average / (1 - _SMOOTHING ** (step + 1))
            if not math.isfinite(unbiased) or (len(smoothed) >= _MIN_STEPS and unbiased > _DIVERGED * min(smoothed)):
                break
            rates.append(rate)
            smoothed.append(unbiased)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    if len(rates) < _MIN_STEPS:
        raise TrainingError(
            f"learning rate: the loss diverged after {len(rates)} steps, at the rate {rate:.2g}; start lower"
        )
    return LearningRateCurve(np.array(rates), np.array(smoothed))


def _exponential(lowest: float, highest: float, steps: int) -> Iterator[float]:
    return (lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps))
