"""Load training batches from a data set: order of the images, augmentation, scale.

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
    """Return the image indices of each step of an epoch: each once, the last batch filled up with the first ones.

    Parameters
    ----------
    count
        Number of images, M.
    groups
        (M,) group of each image; a batch takes images of the same group where possible (default: one group).
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
    """Draw a random image, for transforms that combine several samples (:mod:`otus.data.transforms.mixing`)."""

    dataset: Dataset = field(repr=False)
    boxes: Literal["modal", "amodal"] = "modal"

    def __call__(self, generator: torch.Generator) -> TensorSample:
        """Return a random image of the data set with its target."""
        index = int(torch.randint(len(self.dataset), (), generator=generator))
        return to_tensors(self.dataset[index], boxes=self.boxes)


class BatchIndex(NamedTuple):
    """Position of an image in a run: batch number, epoch, image index."""

    batch: int
    epoch: int
    image: int


@dataclass(frozen=True)
class TrainLoader:
    """Loader of the batches of a run; a batch depends only on its number and the seed.

    Parameters
    ----------
    dataset
        The training data.
    preprocess
        Resizing and normalisation that the system expects.
    settings
        Batch size, seed, scales …
    augment
        Augmentation that is applied before ``preprocess``.
    rank, world_size
        Index of this process and number of processes; each loads its part of every batch.
    """

    dataset: Dataset
    preprocess: Preprocess
    settings: TrainSettings
    augment: Transform | None = None
    rank: int = 0
    world_size: int = 1

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch, a multiple of ``settings.accumulate``."""
        return -(-len(self.dataset) // self.images_per_step) * self.settings.accumulate

    @property
    def images_per_step(self) -> int:
        """Number of images per optimizer step, over all devices."""
        return self.settings.images_per_batch * self.settings.accumulate

    def plan(self, first: int = 0) -> Iterator[list[BatchIndex]]:
        """Yield the positions of this process's images for each batch from number ``first`` on, without end."""
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
            for index in range(skipped, self.batches_per_epoch):
                batch = epoch * self.batches_per_epoch + index
                yield [BatchIndex(batch, epoch, int(image)) for image in parts[index]]
            epoch, skipped = epoch + 1, 0

    def load(self, index: BatchIndex) -> TensorSample:
        """Load one image, augmented and preprocessed."""
        generator = sample_generator(self.settings.seed, index.epoch, index.image)
        sample, boxes = self.dataset[index.image], self.settings.boxes
        if boxes == "modal" and sample.instances is not None:  # no system trains on both kinds of masks
            sample = replace(sample, instances=replace(sample.instances, amodal_masks=None))
        scale = float(scale_rng(self.settings.seed, index.batch).choice(self.settings.scales))
        preprocess = _scaled(self.preprocess, scale)
        if self.augment is None:
            return preprocess.prepare(sample, boxes=boxes)
        smaller = _smaller(preprocess, self.augment, sample.size_hw)
        tensors = to_tensors(sample, boxes=boxes) if smaller is None else smaller.prepare(sample, boxes=boxes)
        return preprocess.sample(self.augment(tensors, generator=generator))

    def batches(self, first: int = 0) -> Generator[list[TensorSample]]:
        """Yield loaded batches from number ``first`` on, without end; close the generator when done."""
        return prefetch(self.plan(first), self.load, workers=self.settings.workers)


def _shapes(dataset: Dataset) -> Int[np.ndarray, "m"]:
    """Return 0 for landscape images, 1 for portrait images."""
    sizes_hw = dataset.images.sizes_hw
    return (sizes_hw[:, 0] > sizes_hw[:, 1]).astype(np.int64)


def _smaller(preprocess: Preprocess, augment: Transform, size_hw: tuple[int, int]) -> Preprocess | None:
    """Return a preprocess that shrinks large images before ``augment``, without normalising; None if not needed."""
    zoom = getattr(augment, "zoom", None)
    if zoom is None or preprocess.size_of(size_hw) == size_hw:
        return None
    smaller = replace(_scaled(preprocess, zoom), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    is_smaller = all(new < old for new, old in zip(smaller.size_of(size_hw), size_hw, strict=True))
    return smaller if is_smaller else None


def _scaled(preprocess: Preprocess, factor: float) -> Preprocess:
    """Return the preprocess with its image size multiplied by ``factor``."""
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
