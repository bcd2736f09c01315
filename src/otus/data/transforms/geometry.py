"""Deterministic geometric transforms of a tensor sample (:mod:`otus.data.tensors`): every column moves with the image.

Nothing here is random; :mod:`otus.data.transforms.augmentation` draws the parameters. torchvision's own kernels would
mirror keypoints as indices of pixels (x to W - 1 - x), would not swap left and right, and take no generator: of
``transforms.v2`` only the resampling is used. Shape shorthand: H x W the image, N objects.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from otus.data.tensors import TensorSample, bounding_boxes, is_image_boxes, object_keys
from otus.structures import IGNORE

_MASKS = {"masks": "boxes", "amodal_masks": "amodal_boxes"}
MIN_VISIBILITY = 0.25
"""The share of an object that must be left for it to stay an object."""


def size_hw(tensors: TensorSample) -> tuple[int, int]:
    """Return the image's height and width."""
    height, width = tensors["image"].shape[-2:]
    return int(height), int(width)


def horizontal_flip(tensors: TensorSample) -> TensorSample:
    """Flip horizontally; left and right keypoints are swapped, corners stay in clockwise order."""
    height, width = size_hw(tensors)
    mirror = torch.tensor([-1.0, 1.0])

    def boxes(old: Tensor) -> Tensor:
        return torch.stack([width - old[:, 2], old[:, 1], width - old[:, 0], old[:, 3]], dim=1)

    def points(old: Tensor) -> Tensor:
        return old * mirror + torch.tensor([float(width), 0.0])

    moved = _move(tensors, (height, width), pixels=lambda _, old: old.flip(-1), boxes=boxes, points=points)
    if "flip_order" in tensors:
        for key in ("keypoints", "visibility"):
            moved[key] = _like(tensors[key], moved[key][:, tensors["flip_order"]])
    if "corners" in tensors:
        moved["corners"] = _like(tensors["corners"], moved["corners"][:, [1, 0, 3, 2]])
    return moved


def resize(tensors: TensorSample, to_hw: tuple[int, int]) -> TensorSample:
    """Resize: the image bilinearly with antialiasing, masks and maps by nearest neighbour.

    An object whose mask has no pixel left keeps its box.
    """
    old_hw = size_hw(tensors)
    if old_hw == to_hw:
        return dict(tensors)
    scale = torch.tensor([to_hw[1] / old_hw[1], to_hw[0] / old_hw[0]])
    rows, columns = (
        np.minimum((np.arange(new) + 0.5) * old / new, old - 1).astype(np.int64)
        for new, old in zip(to_hw, old_hw, strict=True)
    )

    def pixels(key: str, old: Tensor) -> Tensor:
        if key == "image":
            return functional.resize_image(old, list(to_hw), antialias=True)
        return torch.from_numpy(old.numpy().take(rows, axis=-2).take(columns, axis=-1))  # four times as fast as torch

    moved = _move(
        tensors, to_hw, pixels=pixels, boxes=lambda old: old * scale.repeat(2), points=lambda old: old * scale
    )
    if "areas" in tensors:
        moved["areas"] = tensors["areas"] * scale.prod()
    return moved


def crop(
    tensors: TensorSample,
    *,
    top: int,
    left: int,
    to_hw: tuple[int, int],
    min_visibility: float = MIN_VISIBILITY,
    fill: float = 0.5,
) -> TensorSample:
    """Crop the window of size ``to_hw`` at (``top``, ``left``), which may exceed the image.

    Outside, the image is ``fill``, the semantic map to be ignored, and there are no objects. Objects are cut as in
    :func:`refit_objects`; keypoints outside are no longer labelled; corners of oriented boxes may be outside. Proposals
    and other boxes of the image are cut, and those wholly outside are left out.
    """
    before = object_areas(tensors)
    height, width = to_hw
    old_height, old_width = size_hw(tensors)
    source = (slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0)))
    target = (slice(max(-top, 0), max(old_height - top, 0)), slice(max(-left, 0), max(old_width - left, 0)))
    shift = torch.tensor([left, top], dtype=torch.float32)
    outside = {"image": fill, "semantic": IGNORE}

    def pixels(key: str, old: Tensor) -> Tensor:
        new = old.new_full((*old.shape[:-2], height, width), outside.get(key, 0))
        new[..., target[0], target[1]] = old[..., source[0], source[1]]
        return new

    def boxes(old: Tensor) -> Tensor:
        limit = torch.tensor([width, height, width, height])
        return torch.minimum((old - shift.repeat(2)).clamp(min=0), limit)

    moved = _move(tensors, to_hw, pixels=pixels, boxes=boxes, points=lambda old: old - shift)
    for key in moved:
        if is_image_boxes(moved, key):
            sides = _plain(moved[key])[:, 2:] - _plain(moved[key])[:, :2]
            moved[key] = _like(moved[key], moved[key][(sides > 0).all(dim=1)])
    if "visibility" in moved:
        points = moved["keypoints"]
        inside = ((points >= 0) & (points < torch.tensor([width, height]))).all(dim=-1)
        moved["visibility"] = moved["visibility"] * inside
    return refit_objects(moved, before, min_visibility=min_visibility)


def object_areas(tensors: TensorSample) -> dict[str, Float[Tensor, "n"]]:
    """Return the visible area of each object by column: pixels of masks and amodal masks, areas of boxes."""
    # Summed up in 32 bits: torch's own choice, 64, takes fifteen times as long.
    counts = {
        key: _plain(tensors[key]).flatten(1).sum(dim=1, dtype=torch.int32).float() for key in _MASKS if key in tensors
    }
    if "boxes" in tensors:
        boxes = _plain(tensors["boxes"])
        counts["boxes"] = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    return counts


def refit_objects(
    tensors: TensorSample, before: dict[str, Float[Tensor, "n"]], *, min_visibility: float = MIN_VISIBILITY
) -> TensorSample:
    """Update objects after masks and boxes were cut; ``before`` are their areas before (:func:`object_areas`).

    A mask that lost pixels decides its box anew; areas shrink in proportion. Objects of which less than ``min_visibility``
    is left, or nothing, go, with all their columns; of crowds every rest stays, for it must not be learnt as background.
    """
    if "boxes" not in tensors:
        return tensors
    now = object_areas(tensors)
    share = now["boxes"] / before["boxes"]
    if "masks" in now:  # an object without an outline has its box alone
        share = torch.where(before["masks"] > 0, now["masks"] / before["masks"], share)
    share = share.nan_to_num(0)
    fitted = dict(tensors)
    for masks_key, boxes_key in _MASKS.items():
        if masks_key in tensors and boxes_key in tensors:
            cut = now[masks_key] < before[masks_key]
            boxes = _plain(tensors[boxes_key]).clone()
            boxes[cut] = masks_to_boxes(_plain(tensors[masks_key])[cut])
            fitted[boxes_key] = _like(tensors[boxes_key], boxes)
    fitted["areas"] = tensors["areas"] * share
    return select_objects(fitted, (share > 0) & ((share >= min_visibility) | tensors["is_crowd"]))


def select_objects(tensors: TensorSample, kept: Bool[Tensor, "n"]) -> TensorSample:
    """Return the sample with a subset of its objects, all columns alike."""
    return tensors | {key: _like(tensors[key], tensors[key][kept]) for key in object_keys(tensors)}


def masks_to_boxes(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """Return the tight box xyxy of each mask; zeros for an empty mask."""
    pixels = _plain(masks).view(torch.uint8)  # amax of bytes is ten times as fast as any of bools
    height, width = pixels.shape[-2:]
    across, down = pixels.amax(dim=1), pixels.amax(dim=2)
    left, right = across.argmax(dim=1), width - across.flip(1).argmax(dim=1)
    top, bottom = down.argmax(dim=1), height - down.flip(1).argmax(dim=1)
    return torch.stack([left, top, right, bottom], dim=1).float() * across.amax(dim=1)[:, None]


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def _like(old: Tensor, new: Tensor) -> Tensor:
    """Wrap ``new`` as the tv_tensor type of ``old``, with the same canvas."""
    return tv_tensors.wrap(new, like=old) if isinstance(old, tv_tensors.TVTensor) else new


def _move(
    tensors: TensorSample,
    to_hw: tuple[int, int],
    *,
    pixels: Callable[[str, Tensor], Tensor],
    boxes: Callable[[Tensor], Tensor],
    points: Callable[[Tensor], Tensor],
) -> TensorSample:
    """Transform each column by its type onto a canvas of size ``to_hw``; ``pixels`` also gets the key."""
    moved = dict(tensors)
    for key, old in tensors.items():
        match old:
            case tv_tensors.BoundingBoxes():
                moved[key] = bounding_boxes(boxes(_plain(old)), to_hw)
            case tv_tensors.KeyPoints():
                moved[key] = tv_tensors.KeyPoints(points(_plain(old)), canvas_size=to_hw)
            case tv_tensors.Image() | tv_tensors.Mask():
                moved[key] = _like(old, pixels(key, _plain(old)))
    return moved
