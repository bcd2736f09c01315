"""Test-time augmentation for semantic segmentation: the probabilities of flipped and resized views are averaged.

As mmsegmentation's multi-scale and flip testing. Departure: views are resized from the preprocessed image, not from the
original.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torchvision import tv_tensors

from otus.data.tensors import TensorSample
from otus.errors import UsageError
from otus.parts.system import BaseSystem
from otus.structures import SemanticScores


@dataclass(frozen=True)
class Averaging:
    """Test-time augmentation: the views of an image whose probabilities are averaged.

    Parameters
    ----------
    flip
        Predict on the horizontally flipped image too, at each scale.
    scales
        Scales relative to the preprocessed image.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise UsageError(f"scales: expected factors from 0.1 to 10, e.g. 0.75,1,1.25, got {self.scales}")

    def predict(self, system: BaseSystem[Any, SemanticScores], samples: Sequence[TensorSample]) -> list[SemanticScores]:
        """Return the mean probabilities over the views of each preprocessed image, at its size."""
        sums = [torch.zeros(len(system.categories), *sample["image"].shape[1:]) for sample in samples]
        for scale in self.scales:
            for flipped in (False, True) if self.flip else (False,):
                results = system.predict([_view(sample, scale, flipped=flipped) for sample in samples])
                for total, result in zip(sums, results, strict=True):
                    probabilities = torch.from_numpy(result.scores).softmax(dim=0)
                    probabilities = probabilities.flip(-1) if flipped else probabilities
                    total += F.interpolate(probabilities[None], total.shape[1:], mode="bilinear")[0]
        num_views = len(self.scales) * (1 + self.flip)
        return [SemanticScores((total / num_views).numpy(), system.categories) for total in sums]


def _view(sample: TensorSample, scale: float, *, flipped: bool) -> TensorSample:
    image = sample["image"].as_subclass(torch.Tensor)
    if scale != 1:
        size_hw = [max(1, round(scale * side)) for side in image.shape[1:]]
        image = F.interpolate(image[None], size_hw, mode="bilinear", antialias=scale < 1)[0]
    return {**sample, "image": tv_tensors.Image(image.flip(-1) if flipped else image)}
