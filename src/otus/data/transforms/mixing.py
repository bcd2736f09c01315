"""Augmentations that mix several samples: mosaic and copy-paste.

Both are given a function that draws another sample with the generator it gets, so that the result depends on nothing else.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torchvision import tv_tensors

from otus.data.tensors import TensorSample, is_image_boxes, object_keys
from otus.data.transforms import geometry
from otus.data.transforms.augmentation import RandomCrop, uniform
from otus.structures import IGNORE

DrawSample = Callable[[torch.Generator], TensorSample]


@dataclass(frozen=True)
class Mosaic:
    """Combine four images in one of size ``size_hw``, around a point near its centre.

    Bochkovskiy et al., YOLOv4, 2020, section 3.3. Each image is scaled to cover its quarter, or up to half as large again,
    and cut at random.
    """

    draw: DrawSample
    size_hw: tuple[int, int]
    _: KW_ONLY
    probability: float = 1.0
    min_visibility: float = geometry.MIN_VISIBILITY

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        if uniform(0, 1, generator) >= self.probability:
            return tensors
        height, width = self.size_hw
        row, column = (round(side * uniform(0.3, 0.7, generator)) for side in self.size_hw)
        quarters = [
            *[(0, 0, row, column), (0, column, row, width - column)],
            *[(row, 0, height - row, column), (row, column, height - row, width - column)],
        ]
        tiles = []
        for tile, (top, left, *tile_hw) in zip(
            (tensors, *(self.draw(generator) for _ in range(3))), quarters, strict=True
        ):
            tiles.append(self._tile(tile, top, left, (tile_hw[0], tile_hw[1]), generator))
        cover = torch.zeros(len(tiles), height, width, dtype=torch.bool)
        for mask, (top, left, tile_height, tile_width) in zip(cover, quarters, strict=True):
            mask[top : top + tile_height, left : left + tile_width] = True
        joined = tiles[0]
        for tile, mask in zip(tiles[1:], cover[1:], strict=True):
            joined = _overlay(joined, tile, mask)
        return {key: value for key, value in joined.items() if key != "label"}

    def _tile(
        self, tensors: TensorSample, top: int, left: int, tile_hw: tuple[int, int], generator: torch.Generator
    ) -> TensorSample:
        old_hw = geometry.size_hw(tensors)
        cover = max(new / old for new, old in zip(tile_hw, old_hw, strict=True)) * uniform(1, 1.5, generator)
        height, width = (max(new, round(old * cover)) for new, old in zip(tile_hw, old_hw, strict=True))
        cut = RandomCrop(tile_hw, min_visibility=self.min_visibility)
        tile = cut(geometry.resize(tensors, (height, width)), generator=generator)
        return geometry.crop(tile, top=-top, left=-left, to_hw=self.size_hw)


@dataclass(frozen=True)
class CopyPaste:
    """Paste objects of another image onto this one by their masks.

    Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, CVPR 2021. Each object
    with a mask, crowds left out, is pasted with probability ``share``. Objects below lose the pixels that are hidden, and go
    if less than ``min_visibility`` is left; their keypoints there become hidden; whole (amodal) objects stay whole, unless
    :func:`~otus.data.tensors.to_tensors` put them in ``masks``.
    """

    draw: DrawSample
    _: KW_ONLY
    probability: float = 0.5
    share: float = 0.5
    min_visibility: float = geometry.MIN_VISIBILITY

    def __call__(self, tensors: TensorSample, *, generator: torch.Generator) -> TensorSample:
        if uniform(0, 1, generator) >= self.probability:
            return tensors
        size_hw = geometry.size_hw(tensors)
        other = RandomCrop(size_hw, min_visibility=self.min_visibility)(self.draw(generator), generator=generator)
        if "masks" not in tensors or "masks" not in other:
            return tensors
        outlined = (geometry.object_areas(other)["masks"] > 0) & ~other["is_crowd"]
        chosen = outlined & (torch.rand(len(outlined), generator=generator) < self.share)
        if not chosen.any():
            return tensors
        pasted = geometry.select_objects(other, chosen)
        return _overlay(
            tensors, pasted, pasted["masks"].as_subclass(Tensor).any(dim=0), min_visibility=self.min_visibility
        )


def _overlay(
    below: TensorSample,
    above: TensorSample,
    cover: Bool[Tensor, "h w"],
    *,
    min_visibility: float = geometry.MIN_VISIBILITY,
) -> TensorSample:
    """Paste ``above`` over ``below`` where ``cover`` is set; columns that only one has are dropped.

    Of the upper image's proposals those stay whose centre is covered by it.
    """
    before = geometry.object_areas(below)
    lower = dict(below)
    lower["image"] = tv_tensors.Image(torch.where(cover, above["image"], below["image"]))
    if "masks" in below:
        lower["masks"] = tv_tensors.Mask(below["masks"] & ~cover)
    if "visibility" in below:
        hidden = _covers(cover, below["keypoints"]) & (below["visibility"] == 2)
        lower["visibility"] = torch.where(hidden, 1, below["visibility"])
    lower = geometry.refit_objects(lower, before, min_visibility=min_visibility)
    both = {key: value for key, value in lower.items() if key in above or not _has_rows(lower, key)}
    for key in both:
        if is_image_boxes(both, key):
            boxes = above[key].as_subclass(Tensor)
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            both[key] = _joined(both[key], above[key][_covers(cover, centres)])
        elif _has_rows(both, key):
            both[key] = _joined(both[key], above[key])
    return both | _joined_maps(below, above, cover)


def _has_rows(tensors: TensorSample, key: str) -> bool:
    return key in object_keys(tensors) or is_image_boxes(tensors, key)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    joined = torch.cat([first.as_subclass(Tensor), second.as_subclass(Tensor)])
    return tv_tensors.wrap(joined, like=first) if isinstance(first, tv_tensors.TVTensor) else joined


def _covers(cover: Bool[Tensor, "h w"], points: Tensor) -> Bool[Tensor, "..."]:
    """Return whether each point (..., 2) lies on a covered pixel."""
    points = points.as_subclass(Tensor)
    limit = torch.tensor(cover.shape[::-1])
    inside = ((points >= 0) & (points < limit)).all(dim=-1)
    x, y = points.long().clamp(min=torch.zeros_like(limit), max=limit - 1).unbind(-1)
    return inside & cover[y, x]


def _joined_maps(below: TensorSample, above: TensorSample, cover: Bool[Tensor, "h w"]) -> dict[str, Any]:
    """Return the combined semantic and panoptic maps; unknown where only the other image has one."""
    maps: dict[str, Any] = {}
    for key, unknown in (("semantic", IGNORE), ("panoptic", 0)):
        if key not in below and key not in above:
            continue
        nothing = torch.full(cover.shape, unknown)
        lower, upper = below.get(key, nothing), above.get(key, nothing)
        if key == "panoptic":  # the upper image's ids follow on the lower's
            step = max((segment.id for segment in below.get("segments", ())), default=0)
            upper = torch.where(upper > 0, upper + step, 0)
            raised = (replace(segment, id=segment.id + step) for segment in above.get("segments", ()))
            maps["segments"] = [*below.get("segments", ()), *raised]
        maps[key] = tv_tensors.Mask(torch.where(cover, upper, lower))
    return maps
