"""Sampling of the regions that a training step uses: a fixed number, of which at most a fixed fraction are positive.

Papers: Fast R-CNN (arXiv:1504.08083, section 2.3), Faster R-CNN (arXiv:1506.01497, section 3.1.3).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from otus.parts.boxes.matching import NEGATIVE


@dataclass(frozen=True)
class BalancedSampler:
    """Draw positives and negatives at random, without replacement.

    Parameters
    ----------
    batch_size_per_image
        Regions per image: positives, then negatives up to this number.
    positive_fraction
        Maximum fraction of positives.
    """

    batch_size_per_image: int
    positive_fraction: float

    def __call__(
        self, matches: Int[Tensor, "r"], *, generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "p"], Int[Tensor, "n"]]:
        """Return the indices of the sampled positives and negatives; neutral regions are never sampled.

        Parameters
        ----------
        matches
            Result of :class:`~otus.parts.boxes.matching.IoUMatcher`.
        generator
            Source of randomness, on the CPU (default: PyTorch's global generator).
        """
        positives = torch.where(matches >= 0)[0]
        negatives = torch.where(matches == NEGATIVE)[0]
        positive_count = min(len(positives), int(self.batch_size_per_image * self.positive_fraction))
        negative_count = min(len(negatives), self.batch_size_per_image - positive_count)
        return (
            positives[_sample(len(positives), positive_count, generator).to(matches.device)],
            negatives[_sample(len(negatives), negative_count, generator).to(matches.device)],
        )


def _sample(total: int, count: int, generator: torch.Generator | None) -> Int[Tensor, "count"]:
    return torch.randperm(total, generator=generator)[:count]
