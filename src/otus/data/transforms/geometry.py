"""Deterministic geometric transforms of a tensor sample (:mod:`otus.data.tensors`) with all its labels.

:mod:`otus.data.transforms.augmentation` draws random parameters for them. Only the resampling of
``torchvision.transforms.v2`` is used: its kernels mirror keypoints as pixel indices (x becomes W - 1 - x) and do not
swap left and right. Shape shorthand: H x W the image, N objects.
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
"""Default fraction of an object that must remain for it to be kept."""


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

    transformed = _transform_columns(
        tensors, (height, width), pixels=lambda _, old: old.flip(-1), boxes=boxes, points=points
    )
    if "flip_order" in tensors:
        order = tensors["flip_order"]
        rows = torch.arange(len(order))[:, None]
        for key in ("keypoints", "visibility"):
            transformed[key] = _like(tensors[key], _as_tensor(transformed[key])[rows, order])
    if "corners" in tensors:
        transformed["corners"] = _like(tensors["corners"], transformed["corners"][:, [1, 0, 3, 2]])
    return transformed


def resize(tensors: TensorSample, to_hw: tuple[int, int]) -> TensorSample:
    """Resize: the image bilinearly with antialiasing, masks and maps by nearest neighbour.

    An object whose mask has no pixels left keeps its box.
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
        return torch.from_numpy(
            old.numpy().take(rows, axis=-2).take(columns, axis=-1)
        )  # four times as fast as torch's indexing

    transformed = _transform_columns(
        tensors, to_hw, pixels=pixels, boxes=lambda old: old * scale.repeat(2), points=lambda old: old * scale
    )
    if "areas" in tensors:
        transformed["areas"] = tensors["areas"] * scale.prod()
    return transformed


def crop(
    tensors: TensorSample,
    *,
    top: int,
    left: int,
    to_hw: tuple[int, int],
    min_visibility: float = MIN_VISIBILITY,
    fill: float = 0.5,
) -> TensorSample:
    """Crop the window of size ``to_hw`` at (``top``, ``left``), which may extend beyond the image.

    Padding has the value ``fill`` in the image, 255 (ignore) in the semantic map and 0 in other maps. Objects are
    updated by :func:`refit_objects`; keypoints outside become unlabelled; corners of oriented boxes may lie outside.
    Proposals and other boxes of the image are clipped, and dropped if they lie outside.
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

    transformed = _transform_columns(tensors, to_hw, pixels=pixels, boxes=boxes, points=lambda old: old - shift)
    for key in transformed:
        if is_image_boxes(transformed, key):
            sizes_wh = _as_tensor(transformed[key])[:, 2:] - _as_tensor(transformed[key])[:, :2]
            transformed[key] = _like(transformed[key], transformed[key][(sizes_wh > 0).all(dim=1)])
    if "visibility" in transformed:
        points = transformed["keypoints"]
        inside = ((points >= 0) & (points < torch.tensor([width, height]))).all(dim=-1)
        transformed["visibility"] = transformed["visibility"] * inside
    return refit_objects(transformed, before, min_visibility=min_visibility)


def object_areas(tensors: TensorSample) -> dict[str, Float[Tensor, "n"]]:
    """Return the visible area of each object by column: pixels of masks and amodal masks, areas of boxes."""
    # Summed in int32: torch's default for bool, int64, takes fifteen times as long.
    counts = {
        key: _as_tensor(tensors[key]).flatten(1).sum(dim=1, dtype=torch.int32).float()
        for key in _MASKS
        if key in tensors
    }
    if "boxes" in tensors:
        boxes = _as_tensor(tensors["boxes"])
        counts["boxes"] = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    return counts


def refit_objects(
    tensors: TensorSample, before: dict[str, Float[Tensor, "n"]], *, min_visibility: float = MIN_VISIBILITY
) -> TensorSample:
    """Update objects after masks and boxes were clipped; ``before`` are the areas before that (:func:`object_areas`).

    The box of a mask that lost pixels is recomputed; areas are reduced in proportion. Objects of which less than
    ``min_visibility`` remains are dropped; crowds are kept as long as anything remains, so as not to become background.
    """
    if "boxes" not in tensors:
        return tensors
    after = object_areas(tensors)
    visibility = after["boxes"] / before["boxes"]
    if "masks" in after:  # an object without a segmentation has only its box
        visibility = torch.where(before["masks"] > 0, after["masks"] / before["masks"], visibility)
    visibility = visibility.nan_to_num(0)
    updated = dict(tensors)
    for masks_key, boxes_key in _MASKS.items():
        if masks_key in tensors and boxes_key in tensors:
            clipped = after[masks_key] < before[masks_key]
            boxes = _as_tensor(tensors[boxes_key]).clone()
            boxes[clipped] = masks_to_boxes(_as_tensor(tensors[masks_key])[clipped])
            updated[boxes_key] = _like(tensors[boxes_key], boxes)
    updated["areas"] = tensors["areas"] * visibility
    return select_objects(updated, (visibility > 0) & ((visibility >= min_visibility) | tensors["is_crowd"]))


def select_objects(tensors: TensorSample, kept: Bool[Tensor, "n"]) -> TensorSample:
    """Return the sample with a subset of its objects, in all columns."""
    return tensors | {key: _like(tensors[key], tensors[key][kept]) for key in object_keys(tensors)}


def masks_to_boxes(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """Return the tight box xyxy of each mask; zeros for an empty mask."""
    pixels = _as_tensor(masks).view(torch.uint8)  # amax of uint8 is ten times as fast as any of bool
    height, width = pixels.shape[-2:]
    column_any, row_any = pixels.amax(dim=1), pixels.amax(dim=2)
    left, right = column_any.argmax(dim=1), width - column_any.flip(1).argmax(dim=1)
    top, bottom = row_any.argmax(dim=1), height - row_any.flip(1).argmax(dim=1)
    return torch.stack([left, top, right, bottom], dim=1).float() * column_any.amax(dim=1)[:, None]


def _as_tensor(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def _like(old: Tensor, new: Tensor) -> Tensor:
    """Wrap ``new`` as the tv_tensor type of ``old``, with the same canvas."""
    return tv_tensors.wrap(new, like=old) if isinstance(old, tv_tensors.TVTensor) else new


def _transform_columns(
    tensors: TensorSample,
    to_hw: tuple[int, int],
    *,
    pixels: Callable[[str, Tensor], Tensor],
    boxes: Callable[[Tensor], Tensor],
    points: Callable[[Tensor], Tensor],
) -> TensorSample:
    """Transform each column by its type onto a canvas of size ``to_hw``; ``pixels`` also gets the key."""
    transformed = dict(tensors)
    for key, old in tensors.items():
        match old:
            case tv_tensors.BoundingBoxes():
                transformed[key] = bounding_boxes(boxes(_as_tensor(old)), to_hw)
            case tv_tensors.KeyPoints():
                transformed[key] = tv_tensors.KeyPoints(points(_as_tensor(old)), canvas_size=to_hw)
            case tv_tensors.Image() | tv_tensors.Mask():
                transformed[key] = _like(old, pixels(key, _as_tensor(old)))
    return transformed
