"""The learning-rate range test, on a loss whose best rate is known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from otus.data.dataset import Dataset
from otus.data.tensors import TensorSample
from otus.errors import TrainingError
from otus.training.devices import start_fabric
from otus.training.lr_finder import LearningRateCurve, find_learning_rate
from otus.training.settings import TrainSettings
from otus.training.train_loader import TrainLoader
from tiny_run import PREPROCESS, tiny_detector


class Bowl(nn.Module):
    """Loss w^2 / 2 * steepness: gradient descent diverges beyond a rate of 2 / steepness."""

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.steepness = steepness

    def losses(self, samples: list[TensorSample], *, generator: torch.Generator) -> dict[str, Tensor]:
        return {"bowl": (self.weight**2).sum() * self.steepness / 2}


@pytest.mark.parametrize("steepness", [1.0, 100.0])
def test_the_rate_found_is_stable_and_not_idle(scenes: Dataset, steepness: float) -> None:
    settings = TrainSettings(optimizer="sgd", momentum=0, weight_decay=0, device="cpu", batch_size=1)
    bowl = Bowl(steepness)
    loader = TrainLoader(scenes, PREPROCESS, settings)
    curve = find_learning_rate(bowl, loader=loader, fabric=start_fabric(settings), lowest=1e-5, highest=100, steps=150)
    assert 0.01 / steepness < curve.suggestion < 2 / steepness
    assert curve.rates[-1] < 100
    assert bowl.weight.item() == 1


def test_the_steepest_descent_before_the_minimum_is_suggested() -> None:
    rates = np.logspace(-5, 0, 6)
    assert LearningRateCurve(rates, np.array([3.0, 2.9, 1.0, 0.9, 5.0, 0.0])[:5]).suggestion == pytest.approx(1e-4)


def test_a_real_system_and_one_that_diverges_at_once(scenes: Dataset) -> None:
    settings = TrainSettings(device="cpu", batch_size=4)
    loader, fabric = TrainLoader(scenes, PREPROCESS, settings), start_fabric(settings)
    curve = find_learning_rate(tiny_detector(), loader=loader, fabric=fabric, steps=30)
    assert 1e-6 <= curve.suggestion <= 1
    with pytest.raises(TrainingError, match="diverged after 0 steps"):
        find_learning_rate(Bowl(float("inf")), loader=loader, fabric=fabric)
