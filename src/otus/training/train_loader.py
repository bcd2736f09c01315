"""From a data set to batches: in what order, how augmented, at what scale.

Shape shorthand: M images, S steps of an epoch, B images of a step.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from otus.data.dataset import Dataset
from otus.data.prefetching import prefetch
from otus.data.tensors import TensorSample, sample_generator, to_tensors
from otus.data.transforms.augmentation import Transform
from otus.errors import UsageError
from otus.parts.preprocess import Preprocess
from otus.training.seeding import order_rng, scale_rng
from otus.training.settings import TrainSettings


def epoch_order(
    count: int, *, batch_size: int, seed: int, epoch: int, groups: Int[np.ndarray, "m"] | None = None
) -> Int[np.ndarray, "s b"]:
    """Which images each step of an epoch takes: all of them, once, the last batch filled up from the first ones.

    Parameters
    ----------
    count
        M, the images there are.
    groups
        (M,) kinds of images that should share a batch.
    """
    rng = order_rng(seed, epoch)
    order = rng.permutation(count)
    if groups is not None:
        order = order[np.argsort(groups[order], kind="stable")]
    steps = -(-count // batch_size)
    batches = np.resize(order, (steps, batch_size))
    return batches[rng.permutation(steps)]


@dataclass(frozen=True)
class RandomSampleSource:
    """Draws an image at random, for the transforms that make one sample of several (:mod:`otus.data.transforms.mixing`)."""

    dataset: Dataset = field(repr=False)
    boxes: Literal["modal", "amodal"] = "modal"

    def __call__(self, generator: torch.Generator) -> TensorSample:
        """Any image of the data set with its target."""
        index = int(torch.randint(len(self.dataset), (), generator=generator))
        return to_tensors(self.dataset[index], boxes=self.boxes)


class BatchIndex(NamedTuple):
    """An image's place in a run: number of the batch, epoch, index of the image."""

    batch: int
    epoch: int
    image: int


@dataclass(frozen=True)
class TrainLoader:
    """The batches of a run, as a function of their place in it.

    Parameters
    ----------
    dataset
        What is learned from.
    preprocess
        What the system expects.
    settings
        Batch size, seed, scales …
    augment
        What is done to an image before ``preprocess``.
    rank, world_size
        Which of how many processes this is; each takes its part of every batch.
    """

    dataset: Dataset
    preprocess: Preprocess
    settings: TrainSettings
    augment: Transform | None = None
    rank: int = 0
    world_size: int = 1

    @property
    def batches_per_epoch(self) -> int:
        """Passes through the network in one epoch, a multiple of ``settings.accumulate``."""
        return -(-len(self.dataset) // self.images_per_step) * self.settings.accumulate

    @property
    def images_per_step(self) -> int:
        """Images that a step of the optimizer learns from, over all devices."""
        return self.settings.images_per_batch * self.settings.accumulate

    def plan(self, first: int = 0) -> Iterator[list[BatchIndex]]:
        """What this process loads for each batch, from batch number ``first`` on, without end."""
        groups = _shapes(self.dataset) if self.settings.group_by_shape else None
        epoch, skipped = divmod(first, self.batches_per_epoch)
        while True:
            order = epoch_order(
                len(self.dataset),
                batch_size=self.images_per_step,
                seed=self.settings.seed,
                epoch=epoch,
                groups=groups,
            )
            parts = order.reshape(self.batches_per_epoch, self.world_size, -1)[:, self.rank]
            for place in range(skipped, self.batches_per_epoch):
                batch = epoch * self.batches_per_epoch + place
                yield [BatchIndex(batch, epoch, int(image)) for image in parts[place]]
            epoch, skipped = epoch + 1, 0

    def load(self, place: BatchIndex) -> TensorSample:
        """One image, augmented and prepared."""
        generator = sample_generator(self.settings.seed, place.epoch, place.image)
        sample, boxes = self.dataset[place.image], self.settings.boxes
        if boxes == "modal" and sample.instances is not None:  # no system learns from both kinds of masks
            sample = replace(sample, instances=replace(sample.instances, amodal_masks=None))
        scale = float(scale_rng(self.settings.seed, place.batch).choice(self.settings.scales))
        preprocess = _scaled(self.preprocess, scale)
        if self.augment is None:
            return preprocess.prepare(sample, boxes=boxes)
        smaller = _smaller(preprocess, self.augment, sample.size_hw)
        tensors = to_tensors(sample, boxes=boxes) if smaller is None else smaller.prepare(sample, boxes=boxes)
        return preprocess.sample(self.augment(tensors, generator=generator))

    def batches(self, first: int = 0) -> Generator[list[TensorSample]]:
        """Loaded batches from number ``first`` on, without end; close it when done."""
        return prefetch(self.plan(first), self.load, workers=self.settings.workers)


def _shapes(dataset: Dataset) -> Int[np.ndarray, "m"]:
    """0 for broad images, 1 for upright ones."""
    sizes_hw = dataset.images.sizes_hw
    return (sizes_hw[:, 0] > sizes_hw[:, 1]).astype(np.int64)


def _smaller(preprocess: Preprocess, augment: Transform, size_hw: tuple[int, int]) -> Preprocess | None:
    """What makes a large image as small as ``augment`` may get it, not normalised; None where that is no gain."""
    zoom = getattr(augment, "zoom", None)
    if zoom is None or preprocess.size_of(size_hw) == size_hw:
        return None
    smaller = replace(_scaled(preprocess, zoom), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    is_smaller = all(new < old for new, old in zip(smaller.size_of(size_hw), size_hw, strict=True))
    return smaller if is_smaller else None


def _scaled(preprocess: Preprocess, factor: float) -> Preprocess:
    """The same preparation to images ``factor`` times as large."""
    if factor == 1:
        return preprocess
    if preprocess.fixed_hw is not None:
        height, width = preprocess.fixed_hw
        return replace(preprocess, fixed_hw=(round(height * factor), round(width * factor)))
    if preprocess.shorter_side is None or preprocess.longer_side is None:
        raise UsageError("scales: expected a preprocess with a size to scale")
    return replace(
        preprocess,
        shorter_side=round(preprocess.shorter_side * factor),
        longer_side=round(preprocess.longer_side * factor),
    )
