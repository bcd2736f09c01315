"""Batches of images of different sizes, and the training targets of their objects.

Shape shorthand: B images, H x W the batch, N objects of one image, K keypoints.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from otus.data.tensors import TensorSample
from otus.errors import ShapeError


@dataclass(frozen=True)
class Batch:
    """Images padded with zeros on the right and at the bottom to one size.

    ``samples`` are the samples they come from, ``sizes_hw`` the sizes of the images without padding.
    """

    samples: Sequence[TensorSample]
    images: Float[Tensor, "b 3 h w"]
    sizes_hw: tuple[tuple[int, int], ...]

    @property
    def padded_hw(self) -> tuple[int, int]:
        """Height and width with padding."""
        return self.images.shape[-2], self.images.shape[-1]


def make_batch(
    samples: Sequence[TensorSample], *, size_divisor: int, min_size: int = 1, device: torch.device | None = None
) -> Batch:
    """Pad prepared images into one batch whose sides are multiples of ``size_divisor`` and at least ``min_size``."""
    if not samples:
        raise ShapeError("a batch needs at least one sample")
    images = [sample["image"] for sample in samples]
    for sample, image in zip(samples, images, strict=True):
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape or not image.is_floating_point():
            raise ShapeError(
                f"image {sample.get('key', '')}: expected float (3, H, W), got {image.dtype} {tuple(image.shape)}"
            )
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    height, width = (-(-max(min_size, *sides) // size_divisor) * size_divisor for sides in zip(*sizes, strict=True))
    first = images[0].as_subclass(Tensor)
    padded = first.new_zeros((len(images), 3, height, width), device=device)
    for row, image, (h, w) in zip(padded, images, sizes, strict=True):
        row[:, :h, :w] = image
    return Batch(samples, padded, sizes)


def clip_to_images(boxes: Float[Tensor, "*n 4"], sizes_hw: Int[Tensor, "*n 2"]) -> Float[Tensor, "*n 4"]:
    """Clip each box xyxy to its image; ``sizes_hw`` has one row per box."""
    limits = sizes_hw.flip(-1)
    return boxes.clamp(min=0).minimum(torch.cat([limits, limits], dim=-1).to(boxes))


@dataclass(frozen=True)
class Target:
    """Training target of one image. Boxes are xyxy, of positive area.

    ``crowds`` are boxes around many objects at once (COCO's ``iscrowd``): they are not to be detected, and predictions
    inside them count neither as positive nor as negative. ``masks`` and ``keypoints`` (x, y, visibility) are None if not
    annotated. ``corners`` are those of oriented boxes: None if not annotated, NaN for objects without one.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, "n"]
    crowds: Float[Tensor, "c 4"]
    masks: Bool[Tensor, "n h w"] | None = None
    keypoints: Float[Tensor, "n k 3"] | None = None
    corners: Float[Tensor, "n 4 2"] | None = None


def make_target(sample: TensorSample, *, category_count: int, device: torch.device) -> Target:
    """Return the training target of a tensor sample (see :mod:`otus.data.tensors`); boxes without area are left out.

    Raises
    ------
    ShapeError
        If the sample has no boxes or labels, or a label that is not in 0..category_count - 1.
    """
    if "boxes" not in sample or "labels" not in sample:
        raise ShapeError(
            f"sample {sample.get('key', '')}: expected boxes and labels to learn from, got {sorted(sample)}"
        )
    boxes = sample["boxes"].as_subclass(Tensor).to(device, torch.float32).reshape(-1, 4)
    labels = sample["labels"].to(device)
    if len(labels) and not (labels.min() >= 0 and labels.max() < category_count):
        raise ShapeError(
            f"sample {sample.get('key', '')}: expected labels 0..{category_count - 1}, "
            f"got {int(labels.min())}..{int(labels.max())}"
        )
    crowd = sample["is_crowd"].to(device) if "is_crowd" in sample else torch.zeros_like(labels, dtype=torch.bool)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    chosen = has_area & ~crowd
    masks, keypoints = sample.get("masks"), None
    if "keypoints" in sample:
        points, visibility = sample["keypoints"].as_subclass(Tensor), sample["visibility"]
        keypoints = torch.cat([points, visibility[..., None].to(points)], dim=-1).to(device)[chosen]
    return Target(
        boxes=boxes[chosen],
        labels=labels[chosen],
        crowds=boxes[has_area & crowd],
        masks=None if masks is None else masks.as_subclass(Tensor).to(device)[chosen],
        keypoints=keypoints,
        corners=sample["corners"].as_subclass(Tensor).to(device)[chosen] if "corners" in sample else None,
    )
