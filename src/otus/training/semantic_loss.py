"""Set the loss and the class weights of a semantic segmenter by the settings of a run.

Shape shorthand: K categories.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from otus.data.dataset import Dataset
from otus.data.prefetching import prefetch
from otus.errors import UsageError
from otus.parts.semantic_losses import (
    cross_entropy,
    dice,
    focal_cross_entropy,
    hardest_cross_entropy,
    lovasz_softmax,
    median_frequency_weights,
)
from otus.parts.system import BaseSystem
from otus.semantic.segmenter import Criterion, Segmenter
from otus.structures import IGNORE
from otus.training.progress import TrainProgress
from otus.training.settings import TrainSettings

_LOSSES: dict[str, Criterion] = {
    "cross-entropy": cross_entropy,
    "focal": focal_cross_entropy,
    "dice": dice,
    "lovasz": lovasz_softmax,
    "ohem": hardest_cross_entropy,
}


def set_criterion(
    system: BaseSystem[Any, Any], settings: TrainSettings, train_set: Dataset, progress: TrainProgress
) -> None:
    """Set the loss of a segmenter to the sum of ``settings.loss``, with ``settings.class_weights``, if these are given.

    Raises
    ------
    UsageError
        If they are given for a system that is not a segmenter.
    """
    if settings.loss is None and settings.class_weights is None:
        return
    if not isinstance(system, Segmenter):
        given = [name for name in ("loss", "class_weights") if getattr(settings, name) is not None]
        raise UsageError(
            f"{', '.join(given)}: only for semantic segmentation; {type(system).__name__} ({system.task.name}) has losses "
            "of its own; leave them out"
        )
    losses = {name: _LOSSES[name] for name in settings.loss or ("cross-entropy",)}
    if settings.class_weights is not None:
        with progress.counting("counting pixels") as count:
            pixels = pixel_counts(train_set, workers=settings.workers, report=count)
        weights = median_frequency_weights(*map(torch.from_numpy, pixels))
        losses["cross-entropy"] = partial(cross_entropy, weights=weights)
        weight_of = zip(system.categories, weights.tolist(), strict=True)
        progress.log("class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in weight_of))
    system.criterion = next(iter(losses.values())) if len(losses) == 1 else partial(_sum, losses=tuple(losses.values()))


def _sum(logits: Tensor, labels: Tensor, *, losses: tuple[Criterion, ...]) -> Tensor:
    return torch.stack([loss(logits, labels) for loss in losses]).sum()


def pixel_counts(
    dataset: Dataset, *, workers: int = 2, report: Callable[[int, int], None] | None = None
) -> tuple[Int[np.ndarray, "k"], Int[np.ndarray, "k"]]:
    """Count the pixels of each category in the semantic maps of a data set.

    Parameters
    ----------
    dataset
        Data set with semantic maps.
    workers
        Number of threads that read the maps.
    report
        Called with the numbers of finished and of all images (default: not called).

    Returns
    -------
    pixels, image_pixels
        int64 (K,) pixels of each category, and int64 (K,) labelled pixels of all images in which the category occurs.
    """
    pixels, image_pixels = np.zeros((2, IGNORE + 1), dtype=np.int64)

    def count(index: int) -> Int[np.ndarray, "256"]:
        semantic = dataset.semantic_map(index)
        return np.bincount([] if semantic is None else semantic.labels.ravel(), minlength=IGNORE + 1)

    for done, (counts,) in enumerate(prefetch(([index] for index in range(len(dataset))), count, workers=workers), 1):
        counts[IGNORE] = 0
        pixels += counts
        image_pixels[counts > 0] += counts.sum()
        if report is not None:
            report(done, len(dataset))
    categories = len(dataset.semantic.categories) if dataset.semantic is not None else 0
    return pixels[:categories], image_pixels[:categories]
