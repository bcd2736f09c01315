"""Augmentations that mix several samples: mosaic and copy-paste.

Both call a function that draws another sample with the given generator, so the result depends only on that generator.
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
    """Combine four images into one of size ``size_hw`` that meet at a random point near its centre.

    Bochkovskiy et al., YOLOv4, 2020, section 3.3. Each image is scaled to 1 to 1.5 times the size that covers its
    quarter, and cropped at random.
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
        coverage = torch.zeros(len(tiles), height, width, dtype=torch.bool)
        for mask, (top, left, tile_height, tile_width) in zip(coverage, quarters, strict=True):
            mask[top : top + tile_height, left : left + tile_width] = True
        mosaic = tiles[0]
        for tile, mask in zip(tiles[1:], coverage[1:], strict=True):
            mosaic = _overlay(mosaic, tile, mask)
        return {key: value for key, value in mosaic.items() if key != "label"}

    def _tile(
        self, tensors: TensorSample, top: int, left: int, tile_hw: tuple[int, int], generator: torch.Generator
    ) -> TensorSample:
        old_hw = geometry.size_hw(tensors)
        scale = max(new / old for new, old in zip(tile_hw, old_hw, strict=True)) * uniform(1, 1.5, generator)
        height, width = (max(new, round(old * scale)) for new, old in zip(tile_hw, old_hw, strict=True))
        random_crop = RandomCrop(tile_hw, min_visibility=self.min_visibility)
        tile = random_crop(geometry.resize(tensors, (height, width)), generator=generator)
        return geometry.crop(tile, top=-top, left=-left, to_hw=self.size_hw)


@dataclass(frozen=True)
class CopyPaste:
    """Paste objects of another image onto this one by their masks.

    Ghiasi et al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, CVPR 2021. Each object
    with a mask that is not a crowd is pasted with probability ``share``. Objects below lose the hidden pixels and are
    dropped if less than ``min_visibility`` remains; their keypoints there become occluded. Amodal masks do not change,
    unless :func:`~otus.data.tensors.to_tensors` put them in ``masks``.
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
        has_mask = (geometry.object_areas(other)["masks"] > 0) & ~other["is_crowd"]
        pasted_rows = has_mask & (torch.rand(len(has_mask), generator=generator) < self.share)
        if not pasted_rows.any():
            return tensors
        pasted = geometry.select_objects(other, pasted_rows)
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
    """Paste ``above`` over ``below`` where ``cover`` is True; columns that only one of them has are dropped.

    Proposals of ``above`` are kept if their centre is covered.
    """
    before = geometry.object_areas(below)
    lower = dict(below)
    lower["image"] = tv_tensors.Image(torch.where(cover, above["image"], below["image"]))
    if "masks" in below:
        lower["masks"] = tv_tensors.Mask(below["masks"] & ~cover)
    if "visibility" in below:
        hidden = _is_covered(cover, below["keypoints"]) & (below["visibility"] == 2)
        lower["visibility"] = torch.where(hidden, 1, below["visibility"])
    lower = geometry.refit_objects(lower, before, min_visibility=min_visibility)
    combined = {key: value for key, value in lower.items() if key in above or not _has_rows(lower, key)}
    for key in combined:
        if is_image_boxes(combined, key):
            boxes = above[key].as_subclass(Tensor)
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            combined[key] = _concatenate(combined[key], above[key][_is_covered(cover, centres)])
        elif _has_rows(combined, key):
            combined[key] = _concatenate(combined[key], above[key])
    return combined | _combine_maps(below, above, cover)


def _has_rows(tensors: TensorSample, key: str) -> bool:
    return key in object_keys(tensors) or is_image_boxes(tensors, key)


def _concatenate(first: Tensor, second: Tensor) -> Tensor:
    values = torch.cat([first.as_subclass(Tensor), second.as_subclass(Tensor)])
    return tv_tensors.wrap(values, like=first) if isinstance(first, tv_tensors.TVTensor) else values


def _is_covered(cover: Bool[Tensor, "h w"], points: Tensor) -> Bool[Tensor, "..."]:
    """Return whether each point (..., 2) lies on a covered pixel."""
    points = points.as_subclass(Tensor)
    limit = torch.tensor(cover.shape[::-1])
    inside = ((points >= 0) & (points < limit)).all(dim=-1)
    x, y = points.long().clamp(min=torch.zeros_like(limit), max=limit - 1).unbind(-1)
    return inside & cover[y, x]


def _combine_maps(below: TensorSample, above: TensorSample, cover: Bool[Tensor, "h w"]) -> dict[str, Any]:
    """Return the combined semantic and panoptic maps; the pixels of an image without a map are ignored (255) or 0."""
    maps: dict[str, Any] = {}
    for key, fill in (("semantic", IGNORE), ("panoptic", 0)):
        if key not in below and key not in above:
            continue
        empty = torch.full(cover.shape, fill)
        below_map, above_map = below.get(key, empty), above.get(key, empty)
        if key == "panoptic":  # the ids of ``above`` follow those of ``below``
            offset = max((segment.id for segment in below.get("segments", ())), default=0)
            above_map = torch.where(above_map > 0, above_map + offset, 0)
            shifted = (replace(segment, id=segment.id + offset) for segment in above.get("segments", ()))
            maps["segments"] = [*below.get("segments", ()), *shifted]
        maps[key] = tv_tensors.Mask(torch.where(cover, above_map, below_map))
    return maps
