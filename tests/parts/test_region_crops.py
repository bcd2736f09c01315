"""Crops against a slow loop; the backbone in chunks."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from otus.errors import UsageError
from otus.parts.backbones import LayeredBackbone
from otus.parts.batching import make_batch
from otus.parts.regions.crops import WarpedCrops, warp


def slow_warp(image: np.ndarray, box: list[float], *, side: int, context: int) -> np.ndarray:
    """Warp pixel by pixel: interpolate the four image pixels around its source position; 0 outside the image."""
    height, width = image.shape[1:]
    x1, y1, x2, y2 = box
    crop = np.zeros((3, side, side))
    for row in range(side):
        for column in range(side):
            x = x1 + (column + 0.5 - context) * (x2 - x1) / (side - 2 * context)
            y = y1 + (row + 0.5 - context) * (y2 - y1) / (side - 2 * context)
            if not (0 <= x <= width and 0 <= y <= height):
                continue
            x, y = min(max(x, 0.5), width - 0.5) - 0.5, min(max(y, 0.5), height - 0.5) - 0.5
            for i in (math.floor(y), math.floor(y) + 1):
                for j in (math.floor(x), math.floor(x) + 1):
                    if i < height and j < width:
                        crop[:, row, column] += (1 - abs(y - i)) * (1 - abs(x - j)) * image[:, i, j]
    return crop


@pytest.mark.parametrize(("side", "context"), [(9, 0), (12, 2), (7, 3)])
def test_warp_equals_the_slow_loop(side, context):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 13, 17)).astype(np.float32)
    boxes = [[0, 0, 17, 13], [2.5, 3.25, 9, 7], [0, 0, 1, 13], [16, 12, 17, 13], [5, 1, 5.4, 12.9]]
    crops = warp(torch.from_numpy(image), torch.tensor(boxes), crop_size=side, context=context)
    for box, crop in zip(boxes, crops, strict=True):
        np.testing.assert_allclose(crop, slow_warp(image, box, side=side, context=context), atol=2e-5)


def test_the_context_is_as_many_pixels_of_the_crop_as_asked_for():
    """The paper's 16 pixels at 227: the region itself fills 195."""
    image = torch.zeros(3, 100, 120)
    image[:, 20:80, 30:90] = 1.0
    crop = warp(image, torch.tensor([[30.0, 20.0, 90.0, 80.0]]), crop_size=227, context=16)[0, 0]
    inside = (crop > 0.5).nonzero()
    assert inside.min(dim=0).values.tolist() == [16, 16]
    assert inside.max(dim=0).values.tolist() == [227 - 17, 227 - 17]


def crops_of(chunk: int) -> WarpedCrops:
    torch.manual_seed(0)
    layers = {"c1": nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU())}
    return WarpedCrops(LayeredBackbone(layers, levels=(1,)), crop_size=10, context=1, chunk_size=chunk)


def test_chunks_change_nothing_and_bound_what_is_in_the_backbone(monkeypatch):
    batch = make_batch([{"image": torch.rand(3, 20, 30)}, {"image": torch.rand(3, 24, 18)}], size_divisor=1)
    rng = torch.Generator().manual_seed(0)
    boxes = [torch.rand(n, 2, generator=rng) * 8 for n in (7, 4)]
    boxes = [torch.cat([corners, corners + 6], dim=1) for corners in boxes]
    unchunked, chunked = crops_of(100), crops_of(3)
    chunk_sizes = []
    chunked.backbone.register_forward_hook(lambda module, inputs, maps: chunk_sizes.append(len(inputs[0])))
    roi_features = chunked.extract([], batch, boxes)
    torch.testing.assert_close(roi_features, unchunked.extract([], batch, boxes))
    assert roi_features.shape == (11, *unchunked.out_shape)
    assert unchunked.out_features == 4 * 5 * 5
    assert chunk_sizes == [3, 3, 1, 3, 1]


def test_without_regions_the_backbone_still_gets_its_gradient():
    crops = crops_of(3)
    batch = make_batch([{"image": torch.rand(3, 20, 30)}], size_divisor=1)
    roi_features = crops.extract([], batch, [torch.zeros(0, 4)])
    assert roi_features.shape == (0, *crops.out_shape)
    roi_features.sum().backward()
    assert all(float(parameter.grad.abs().sum()) == 0 for parameter in crops.parameters())


def test_sizes_that_cannot_be():
    backbone = crops_of(1).backbone
    too_small = 2 * backbone.minimum_side - 1  # it would be padded in training, for batch norms, and only then
    for wrong in (
        {"crop_size": 10, "context": 5},
        {"crop_size": 0},
        {"crop_size": 10, "chunk_size": 0},
        {"crop_size": too_small},
    ):
        with pytest.raises(UsageError, match="crops: expected"):
            WarpedCrops(backbone, **wrong)
