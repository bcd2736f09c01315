"""Test-time averaging for semantic segmentation: an image is looked at several times, mirrored and at other sizes.

As mmsegmentation's multi-scale and flip testing: the probabilities of the views, mirrored back and resized, are averaged.
Departure: other sizes are made of the prepared image, not of the original.
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
    """The views of an image whose probabilities are averaged.

    Parameters
    ----------
    flip
        Look at the mirrored image too, at each size.
    scales
        Factors of the size of the prepared image.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise UsageError(f"scales: expected factors from 0.1 to 10, e.g. 0.75,1,1.25, got {self.scales}")

    def predict(self, system: BaseSystem[Any, SemanticScores], samples: Sequence[TensorSample]) -> list[SemanticScores]:
        """Return the mean probabilities of each prepared image, at its size."""
        sums = [torch.zeros(len(system.categories), *sample["image"].shape[1:]) for sample in samples]
        for scale in self.scales:
            for mirrored in (False, True) if self.flip else (False,):
                views = system.predict([_view(sample, scale, mirrored=mirrored) for sample in samples])
                for total, view in zip(sums, views, strict=True):
                    probabilities = torch.from_numpy(view.scores).softmax(dim=0)
                    probabilities = probabilities.flip(-1) if mirrored else probabilities
                    total += F.interpolate(probabilities[None], total.shape[1:], mode="bilinear")[0]
        count = len(self.scales) * (1 + self.flip)
        return [SemanticScores((total / count).numpy(), system.categories) for total in sums]


def _view(sample: TensorSample, scale: float, *, mirrored: bool) -> TensorSample:
    image = sample["image"].as_subclass(torch.Tensor)
    if scale != 1:
        size_hw = [max(1, round(scale * side)) for side in image.shape[1:]]
        image = F.interpolate(image[None], size_hw, mode="bilinear", antialias=scale < 1)[0]
    return {**sample, "image": tv_tensors.Image(image.flip(-1) if mirrored else image)}
