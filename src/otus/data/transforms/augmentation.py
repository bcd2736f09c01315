"""Random augmentations of tensor samples: ``transform(tensors, generator=…) -> tensors``.

Each draws its parameters from the sample's generator (:func:`otus.data.tensors.sample_generator`), not from the global
one as ``torchvision.transforms.v2`` does, so that a sample does not depend on the worker. Inputs are not changed.
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

    A transform whose effect does not depend on the image's size may have an attribute ``zoom``: the largest factor by
    which it enlarges a part of the image relative to the whole. Large images are then downscaled before it, not after.
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
        """Product of the zooms of all transforms; None if one has none."""
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

    Objects of which less than ``min_visibility`` remains are dropped
    (:func:`otus.data.transforms.geometry.refit_objects`), so the result may have no objects.
    """

    size_hw: tuple[int, int]
    _: KW_ONLY
    min_visibility: float = geometry.MIN_VISIBILITY
    fill: float = 0.5

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        margins = [old - new for old, new in zip(geometry.size_hw(tensors), self.size_hw, strict=True)]
        top, left = (uniform_integer(min(0, margin), max(0, margin), generator) for margin in margins)
        return geometry.crop(
            tensors, top=top, left=left, to_hw=self.size_hw, min_visibility=self.min_visibility, fill=self.fill
        )


@dataclass(frozen=True)
class CropAndPad:
    """Move each border inwards or outwards by up to ``share`` of the side; padding has the value ``fill``.

    Changes scale, position and aspect ratio of objects, also if every image is then resized to one size: the
    augmentation of YOLO (arXiv:1506.02640, section 2.2). Objects are dropped as in :class:`RandomCrop`.
    """

    share: float = 0.2
    _: KW_ONLY
    min_visibility: float = geometry.MIN_VISIBILITY
    fill: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share < 0.5:
            raise ShapeError(f"crop and pad: expected a share in [0, 0.5), got {self.share}")

    @property
    def zoom(self) -> float:
        """Largest enlargement: all borders moved inwards."""
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
class ZoomToObject:
    """Crop a window around a random object, with a probability.

    The sides of the window are those of a square around the object's box, enlarged by a factor drawn uniformly from 1 to
    ``context``, but at least 1 / ``zoom`` of the image's; its position is random. Objects are dropped as in
    :class:`RandomCrop`.
    """

    probability: float = 0.5
    _: KW_ONLY
    context: float = 3.0
    zoom: float = 4.0
    min_visibility: float = geometry.MIN_VISIBILITY

    def __post_init__(self) -> None:
        if self.context < 1 or self.zoom < 1:
            raise ShapeError(
                f"zoom to object: expected context and zoom of at least 1, got {self.context}, {self.zoom}"
            )

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        boxes = tensors.get("boxes", ())
        if not len(boxes) or uniform(0, 1, generator) >= self.probability:
            return tensors
        x1, y1, x2, y2 = boxes[uniform_integer(0, len(boxes) - 1, generator)].tolist()
        side = max(x2 - x1, y2 - y1) * uniform(1, self.context, generator)
        to_hw, corner = [], []
        for start, end, whole in zip((y1, x1), (y2, x2), geometry.size_hw(tensors), strict=True):
            length = min(whole, max(1, math.ceil(max(side, whole / self.zoom))))
            low, high = max(0, math.ceil(end - length)), min(whole - length, math.floor(start))
            corner.append(uniform_integer(min(low, high), max(low, high), generator))
            to_hw.append(length)
        return geometry.crop(
            tensors, top=corner[0], left=corner[1], to_hw=(to_hw[0], to_hw[1]), min_visibility=self.min_visibility
        )


@dataclass(frozen=True)
class ColorJitter:
    """Scale brightness, contrast and saturation by factors in [1 - x, 1 + x]; shift hue by up to ``hue`` (1: 360°)."""

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
        hue_shift = uniform(-self.hue, self.hue, generator)
        if hue_shift:
            image = functional.adjust_hue_image(image, hue_shift)
        return tensors | {"image": tv_tensors.Image(image)}
