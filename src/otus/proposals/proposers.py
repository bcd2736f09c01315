"""Proposers of region-based detectors that need no training: sliding windows, or proposals computed beforehand.

Papers: R-CNN (arXiv:1311.2524), section 2.1: about 2,000 proposals per image from Selective Search (Uijlings et al., IJCV
2013), computed on images of 500 pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from otus._files import cache_folder
from otus.data.dataset import Dataset
from otus.parts.batching import Batch, Target
from otus.parts.preprocess import IMAGENET_MEAN, IMAGENET_STD
from otus.parts.regions.proposals import OriginalImageSearch, Proposals
from otus.parts.system import BaseSystem
from otus.proposals.cache import ProposalCache, ProposedDataset
from otus.proposals.interface import Proposer as Search
from otus.proposals.interface import ResizedProposer
from otus.proposals.selective_search import SelectiveSearch
from otus.proposals.windows import sliding_windows

WindowFunction = Callable[[tuple[int, int]], Float[np.ndarray, "w 4"]]


class PrecomputedProposals:
    """The proposals of the sample (``proposals``) or, if it has none, those of Selective Search.

    Boxes that have no area inside the image are left out. Scores only express the order: 1 for the first, then decreasing.

    Parameters
    ----------
    count
        Maximum number of proposals per image, the highest-scoring first.
    search
        A function from an image to its proposals (default: Selective Search on images of at most 500 pixels).
    mean, std
        Mean and standard deviation of the preprocessing, to restore the image's colours.
    """

    trainable = False

    def __init__(
        self,
        count: int = 2000,
        *,
        search: Search | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self.count = count
        self.search = search or ResizedProposer(SelectiveSearch())
        self.mean, self.std = mean, std

    @property
    def original_image_search(self) -> OriginalImageSearch:
        """The proposer itself: its ``search`` must run on the original image."""
        return self

    def propose(
        self,
        maps: list[Tensor],
        batch: Batch,
        targets: Sequence[Target] | None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Return the first ``count`` proposals of each image, and no losses."""
        proposals = []
        for sample, size_hw in zip(batch.samples, batch.sizes_hw, strict=True):
            boxes = sample.get("proposals")
            if boxes is None:
                boxes = self._search(sample["image"].as_subclass(Tensor))
            boxes = boxes.as_subclass(Tensor).to(batch.images.device, torch.float32).reshape(-1, 4)
            boxes = clip_boxes_to_image(boxes, size_hw)
            proposals.append(boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)][: self.count])
        return Proposals(proposals, [_rank_scores(boxes) for boxes in proposals]), {}

    def _search(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "p 4"]:
        mean, std = image.new_tensor(self.mean), image.new_tensor(self.std)
        pixels = ((image * std[:, None, None] + mean[:, None, None]).clamp(0, 1) * 255).round().byte()
        return torch.from_numpy(self.search(pixels.permute(1, 2, 0).contiguous().cpu().numpy()).boxes_xyxy)


class SlidingWindowProposer:
    """Sliding windows at every location, scale and aspect ratio, with equal scores.

    Parameters
    ----------
    windows
        A function from the image's height and width to boxes xyxy (default: :func:`sliding_windows`; use
        ``functools.partial`` to set its scales, aspect ratios and stride).
    """

    trainable = False
    original_image_search = None

    def __init__(self, windows: WindowFunction = sliding_windows) -> None:
        self.windows = windows

    def propose(
        self,
        maps: list[Tensor],
        batch: Batch,
        targets: Sequence[Target] | None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Return the windows of each image, and no losses."""
        device = batch.images.device
        windows = [torch.from_numpy(self.windows(size_hw)).to(device, torch.float32) for size_hw in batch.sizes_hw]
        return Proposals(windows, [torch.ones_like(boxes[:, 0]) for boxes in windows]), {}


def _rank_scores(boxes: Float[Tensor, "p 4"]) -> Float[Tensor, "p"]:
    """Return scores in (0, 1] that decrease with the rank."""
    count = len(boxes)
    return torch.arange(count, 0, -1, device=boxes.device, dtype=torch.float32) / max(count, 1)


def with_proposals(
    dataset: Dataset,
    system: BaseSystem[Any, Any],
    *,
    workers: int = 1,
    report: Callable[[int, int], object] | None = None,
) -> Dataset:
    """Add cached proposals to a data set if the system needs them and the data set has none.

    Parameters
    ----------
    dataset
        The data set.
    system
        The system that will be trained on it.
    workers
        Number of processes that compute proposals missing in the cache.
    report
        Called with the number of images done and the total number.
    """
    search = system.original_image_search
    if search is None or isinstance(dataset, ProposedDataset):
        return dataset
    cache = ProposalCache(cache_folder() / "proposals", search.search, search.count)
    cache.fill(dataset, workers=workers, report=report)
    return ProposedDataset.of(dataset, cache)
