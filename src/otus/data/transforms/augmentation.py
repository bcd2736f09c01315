"""Random augmentations of tensor samples: ``transform(tensors, generator=…) -> tensors``.

Each draws its own parameters from the sample's generator (:func:`otus.data.tensors.sample_generator`), because
``torchvision.transforms.v2`` draws from the global one, so that a sample comes out the same whatever worker makes it. What
a transform is given stays as it was.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from otus.data.tensors import TensorSample
from otus.data.transforms import geometry
from otus.errors import ShapeError


@runtime_checkable
class Transform(Protocol):
    """A function from a tensor sample to another.

    One that works alike on an image at any size may say so by an attribute ``zoom``: at most how many times as large as
    before it makes a part of the image, relative to the whole. Large images are then made smaller before it, not after.
    """

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample: ...


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Return a random float in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def uniform_integer(low: int, high: int, generator: torch.Generator) -> int:
    """Return a random integer in [low, high], both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


@dataclass(frozen=True)
class Compose:
    """Apply transforms one after another."""

    transforms: Sequence[Transform]

    @property
    def zoom(self) -> float | None:
        """All of them together; None where one does not say."""
        zooms: list[float | None] = [getattr(transform, "zoom", None) for transform in self.transforms]
        known = [zoom for zoom in zooms if zoom is not None]
        return math.prod(known) if len(known) == len(zooms) else None

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        for transform in self.transforms:
            tensors = transform(tensors, generator=generator)
        return tensors


@dataclass(frozen=True)
class HorizontalFlip:
    """Flip horizontally with a probability; left and right keypoints are swapped."""

    probability: float = 0.5
    zoom: ClassVar[float] = 1.0

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        return geometry.horizontal_flip(tensors) if uniform(0, 1, generator) < self.probability else tensors


@dataclass(frozen=True)
class ResizeLongestSide:
    """Resize the longer side to ``size`` pixels, keeping the aspect ratio."""

    size: int

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        return _scale(tensors, self.size / max(geometry.size_hw(tensors)))


@dataclass(frozen=True)
class ScaleJitter:
    """Scale both sides by a factor drawn uniformly from ``low`` to ``high``."""

    low: float = 0.5
    high: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ShapeError(f"scale jitter: expected 0 < low <= high, got {self.low} and {self.high}")

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        return _scale(tensors, uniform(self.low, self.high, generator))


def _scale(tensors: TensorSample, factor: float) -> TensorSample:
    height, width = geometry.size_hw(tensors)
    return geometry.resize(tensors, (max(1, round(height * factor)), max(1, round(width * factor))))


@dataclass(frozen=True)
class RandomCrop:
    """Crop a random window of ``size_hw``; a smaller image is padded with ``fill`` at a random position.

    Objects of which less than ``min_visibility`` is left go (see :func:`otus.data.transforms.geometry.refit_objects`),
    so the result may be without objects.
    """

    size_hw: tuple[int, int]
    _: KW_ONLY
    min_visibility: float = geometry.MIN_VISIBILITY
    fill: float = 0.5

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        spare = [old - new for old, new in zip(geometry.size_hw(tensors), self.size_hw, strict=True)]
        top, left = (uniform_integer(min(0, room), max(0, room), generator) for room in spare)
        return geometry.crop(
            tensors, top=top, left=left, to_hw=self.size_hw, min_visibility=self.min_visibility, fill=self.fill
        )


@dataclass(frozen=True)
class CropAndPad:
    """Move each border in or out by up to ``share`` of the side; padding has the value ``fill``.

    Scale, place and shape of objects change at once, also for systems that bring every image to one size afterwards: the
    augmentation of YOLO (arXiv:1506.02640, section 2.2). Objects go as in :class:`RandomCrop`.
    """

    share: float = 0.2
    _: KW_ONLY
    min_visibility: float = geometry.MIN_VISIBILITY
    fill: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise ShapeError(f"moved borders: expected a share of [0, 0.5), got {self.share}")

    @property
    def zoom(self) -> float:
        """With all borders moved in."""
        return 1 / (1 - 2 * self.share)

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        height, width = geometry.size_hw(tensors)
        top, bottom, left, right = (
            round(uniform(-self.share, self.share, generator) * side) for side in (height, height, width, width)
        )
        to_hw = (max(1, height - top - bottom), max(1, width - left - right))
        return geometry.crop(
            tensors, top=top, left=left, to_hw=to_hw, min_visibility=self.min_visibility, fill=self.fill
        )


@dataclass(frozen=True)
class ColorJitter:
    """Scale brightness, contrast and saturation by factors in [1 - x, 1 + x]; shift hue by up to ``hue`` of a turn."""

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.02
    zoom: ClassVar[float] = 1.0

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        image = tensors["image"].as_subclass(Tensor)
        for strength, adjust in (
            (self.brightness, functional.adjust_brightness_image),
            (self.contrast, functional.adjust_contrast_image),
            (self.saturation, functional.adjust_saturation_image),
        ):
            image = adjust(image, max(0.0, 1 + uniform(-strength, strength, generator)))
        turn = uniform(-self.hue, self.hue, generator)
        if turn:
            image = functional.adjust_hue_image(image, turn)
        return tensors | {"image": tv_tensors.Image(image)}
