"""Which learning rate to start with: raise it from step to step and look where the loss falls fastest.

"Cyclical Learning Rates for Training Neural Networks" (Smith, WACV 2017, arXiv:1506.01186, section 3.3), in the form of
fastai: exponential steps, a smoothed loss, and an end where it explodes.
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
_EXPLODED = 4.0  # times the best loss
_FEWEST = 10


@dataclass(frozen=True, eq=False)
class LearningRateCurve:
    """The smoothed loss at each learning rate tried, and the rate at which it falls fastest."""

    rates: Float[np.ndarray, "n"]
    losses: Float[np.ndarray, "n"]

    @property
    def suggestion(self) -> float:
        """Where the loss falls most for a given growth of the rate, before its lowest point."""
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
    """Train a copy of a system while the learning rate rises from ``lowest`` to ``highest``; the system stays as it is.

    Raises
    ------
    TrainingError
        If the loss explodes within the first steps, at the lowest rates.
    """
    tried = copy.deepcopy(system).to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bare_optimizer = make_optimizer(tried, loader.settings)
    model, optimizer = fabric.setup(LossStep(tried), bare_optimizer)
    model.train()
    rates: list[float] = []
    smoothed: list[float] = []
    average = 0.0
    with closing(loader.batches()) as batches:
        for step, rate in enumerate(_rising(lowest, highest, steps)):
            set_learning_rate(bare_optimizer, rate)
            generator = model_generator(loader.settings.seed, step, fabric.global_rank)
            loss = torch.stack(list(model(next(batches), generator=generator).values())).sum()
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss.item()
            unbiased = average / (1 - _SMOOTHING ** (step + 1))
            if not math.isfinite(unbiased) or (len(smoothed) >= _FEWEST and unbiased > _EXPLODED * min(smoothed)):
                break
            rates.append(rate)
            smoothed.append(unbiased)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    if len(rates) < _FEWEST:
        raise TrainingError(f"learning rate: the loss exploded after {len(rates)} steps, at {rate:.2g}; start lower")
    return LearningRateCurve(np.array(rates), np.array(smoothed))


def _rising(lowest: float, highest: float, steps: int) -> Iterator[float]:
    return (lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps))
