"""Region-based detectors before Faster R-CNN: operators against slow loops, assignment rules, and odd input."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from otus.detection.region_based.fast_rcnn import fast_rcnn
from otus.detection.region_based.rcnn import rcnn, rcnn_vgg16
from otus.detection.region_based.region_detector import RegionDetector
from otus.detection.region_based.spp_net import (
    PYRAMID_BINS,
    SpatialPyramidPooling,
    boxes_to_cells,
    spp_net,
    spp_net_vgg16,
)
from otus.errors import UsageError
from otus.parts.backbones import LayeredBackbone
from otus.parts.batching import make_batch
from otus.parts.regions.crops import WarpedCrops
from otus.parts.regions.roi_features import RoIFeatures, RoIPooler
from otus.proposals.interface import Proposals, ResizedProposer
from otus.proposals.proposers import PrecomputedProposals, SlidingWindowProposer
from otus.structures import Categories
from otus.zoo.models import MODELS, build_model

CATEGORIES = Categories(("cat", "dog"))
LINEAGE = ("classifier", "regression", "sliding_window", "rcnn", "spp_net", "fast_rcnn", "faster_rcnn")


def backbone() -> LayeredBackbone:
    torch.manual_seed(0)
    layers = {
        f"c{i}": nn.Sequential(nn.Conv2d(3 if i == 1 else 8, 8, 3, stride=2, padding=1), nn.ReLU()) for i in (1, 2)
    }
    return LayeredBackbone(layers, levels=(2,))


def slow_pyramid(x: np.ndarray, box: list[float], *, stride: int, levels: tuple[int, ...]) -> np.ndarray:
    """Pool bin by bin, as in section 2.2 and appendix A."""
    height, width = x.shape[1:]

    def cells(low: float, high: float, limit: int) -> tuple[int, int]:
        first, last = math.floor(low / stride) + 1, math.ceil(high / stride) - 1
        if first > last:
            first = last = round((low + high) / (2 * stride))
        return min(first, limit - 1), min(last, limit - 1)

    left, right = cells(box[0], box[2], width)
    top, bottom = cells(box[1], box[3], height)
    window = x[:, top : bottom + 1, left : right + 1]
    h, w = window.shape[1:]
    pooled = []
    for level in levels:
        bins = np.zeros((len(x), level, level))
        for i in range(level):
            for j in range(level):
                rows = slice(math.floor(i * h / level), math.ceil((i + 1) * h / level))
                columns = slice(math.floor(j * w / level), math.ceil((j + 1) * w / level))
                bins[:, i, j] = window[:, rows, columns].max(axis=(1, 2))
        pooled.append(bins.reshape(-1))
    return np.concatenate(pooled)


@pytest.mark.parametrize("levels", [PYRAMID_BINS, (4, 2, 1), (5,)])
def test_the_spatial_pyramid_equals_the_slow_loop(levels):
    pyramid = SpatialPyramidPooling(backbone(), bins=levels)
    rng = np.random.default_rng(1)
    maps = torch.from_numpy(rng.normal(size=(2, 8, 12, 16)).astype(np.float32))
    corners = np.sort(rng.uniform(0, [64, 48], (2, 40, 2, 2)), axis=2)  # stride 4
    boxes = corners.transpose(0, 1, 2, 3).reshape(2, 40, 4)
    boxes[:, 0] = [0, 0, 64, 48]
    boxes[:, 1] = [5, 5, 6, 6]
    boxes[:, 2] = [63, 47, 64, 48]
    batch = make_batch([{"image": torch.zeros(3, 48, 64)}] * 2, size_divisor=1)
    roi_features = pyramid.extract([maps], batch, [torch.from_numpy(image_boxes).float() for image_boxes in boxes])
    assert roi_features.shape == (80, pyramid.out_features)
    for i, box in enumerate(boxes.astype(np.float32).reshape(-1, 4)):
        slow = slow_pyramid(maps[i // 40].numpy(), box.tolist(), stride=4, levels=levels)
        np.testing.assert_array_equal(roi_features[i], slow.astype(np.float32))


def test_a_roi_pool_is_a_spatial_pyramid_of_one_level():
    """On boxes whose borders both round to the same cells."""
    maps = [torch.randn(1, 8, 12, 16)]
    boxes = torch.tensor([[8.0, 4.0, 40.0, 32.0], [0.0, 0.0, 56.0, 44.0]])
    batch = make_batch([{"image": torch.zeros(3, 48, 64)}], size_divisor=1)
    pyramid = SpatialPyramidPooling(backbone(), bins=(3,))
    pooled = RoIPooler(3, strides=(4,), method="pool")(maps, [boxes])
    # A box from cell 2 to cell 10: RoI pool takes 2 to 10, the pyramid what lies between the borders' cells, 3 to 9.
    wider = boxes + torch.tensor([-4.0, -4.0, 4.0, 4.0])
    torch.testing.assert_close(pyramid.extract(maps, batch, [wider]), pooled.flatten(start_dim=1))


def test_the_cells_of_a_box_lie_on_the_map():
    boxes = torch.rand(500, 4) * 64
    boxes = torch.cat([torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])], dim=1)
    cells = boxes_to_cells(boxes, stride=16, map_hw=(4, 4))
    assert (cells[:, :2] <= cells[:, 2:]).all()
    assert cells.min() >= 0
    assert cells.max() <= 3


def test_the_cells_of_vgg_see_half_a_stride_further():
    """By the gradient of a cell, through VGG-16's strides and paddings with one channel and means for maxima."""
    layers = []
    for layer in spp_net_vgg16(CATEGORIES, representation_size=4).region_features.backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.Conv2d(1, 1, 3, stride=layer.stride, padding=layer.padding, bias=False))
            nn.init.ones_(layers[-1].weight)
        elif isinstance(layer, nn.MaxPool2d):
            layers.append(nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
    image = torch.ones(1, 1, 512, 512, requires_grad=True)
    nn.Sequential(*layers)(image)[0, 0, 16, 16].backward()
    weight = image.grad[0, 0].sum(dim=0)
    centre = float((weight * (torch.arange(512) + 0.5)).sum() / weight.sum())
    features = spp_net_vgg16(CATEGORIES, representation_size=4).region_features
    assert centre == pytest.approx(16 * 16 + features.offset)
    # A box of four cells' width is seen by the four whose centres lie in it, alike from both sides.
    maps = [torch.arange(32.0).expand(1, 512, 32, 32).contiguous()]
    batch = make_batch([{"image": torch.zeros(3, 512, 512)}], size_divisor=1)
    pooled = [features.extract(maps, batch, [torch.tensor([[left, 0.0, left + 64, 64]])])[0] for left in (0.0, 192.0)]
    assert [float(region[-1]) for region in pooled] == [3, 15]
    assert [float(region[0]) for region in pooled] == [0, 12]


def tiny_rcnn() -> RegionDetector:
    return rcnn(WarpedCrops(backbone(), crop_size=16, context=1), CATEGORIES, representation_size=8)


def tiny_spp_net() -> RegionDetector:
    return spp_net(SpatialPyramidPooling(backbone(), bins=(2, 1)), CATEGORIES, representation_size=8)


def tiny_fast_rcnn() -> RegionDetector:
    shared = backbone()
    return fast_rcnn(
        RoIFeatures(shared, RoIPooler(2, strides=shared.strides, method="pool")), CATEGORIES, representation_size=8
    )


SYSTEMS = [tiny_rcnn, tiny_spp_net, tiny_fast_rcnn]


def sample(proposals: list[list[float]], boxes: list[list[float]] = (), **more) -> dict:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "image": torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0)),
        "proposals": torch.tensor(proposals, dtype=torch.float32).reshape(-1, 4),
        "boxes": boxes,
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
        **more,
    }


@pytest.mark.parametrize("build", SYSTEMS)
def test_without_proposals_nothing_is_found_and_the_objects_are_learned_from(build):
    system = build()
    empty = sample([], [[5, 5, 30, 30]])
    assert len(system.predict([empty])[0]) == 0
    assert all(loss.isfinite() and loss > 0 for loss in system.losses([empty]).values())
    nothing = system.losses([sample([])])
    assert all(float(loss.detach()) == 0 for loss in nothing.values())
    sum(nothing.values()).backward()
    assert all(parameter.grad is not None for parameter in system.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("build", SYSTEMS)
def test_proposals_without_area_are_left_out(build):
    system = build()
    system.postprocess = type(system.postprocess)(score_threshold=0.0)
    bad = [[5, 5, 5, 30], [10, 10, 40, 10], [70, 5, 90, 30], [float("nan"), 0, 10, 10], [30, 30, 20, 20]]
    good = [[1, 1, 20, 20], [50, 30, 80, 60]]
    mixed, alone = system.stages([sample([*bad[:3], good[0], *bad[3:], good[1]])]), system.stages([sample(good)])
    assert mixed.proposals.boxes[0].tolist() == [[1, 1, 20, 20], [50, 30, 60, 40]]
    torch.testing.assert_close(mixed.scores[0], alone.scores[0])
    assert len(system.predict([sample(bad)])[0]) == 0
    assert all(loss.isfinite() for loss in system.losses([sample(bad, [[5, 5, 30, 30]])]).values())


@pytest.mark.parametrize("build", SYSTEMS)
def test_images_without_any_positive_region_teach_background(build):
    system = build()
    losses = system.losses([sample([[0, 0, 20, 20]]), sample([[5, 5, 40, 30]], [[3, 3, 3, 9]])])
    assert losses["class"] > 0
    assert float(losses["box"].detach()) == 0


def test_rcnn_learns_from_positives_and_negatives_and_leaves_the_neutral_out():
    system = tiny_rcnn()
    iou_08, iou_04, iou_02 = [0, 0, 20, 16], [0, 0, 20, 8], [0, 0, 20, 4]
    training_sample = sample([iou_08, iou_04, iou_02], [[0, 0, 20, 20]])
    record = system.training_stages([training_sample])
    (assignment,) = record.assignments
    targets = dict(zip(map(tuple, assignment.regions.tolist()), assignment.class_indices.tolist(), strict=True))
    assert targets == {(0, 0, 20, 16): 1, (0, 0, 20, 4): 0, (0, 0, 20, 20): 1}
    fast = tiny_fast_rcnn().training_stages([training_sample]).assignments[0]
    assert len(fast.regions) == 4  # nothing is neutral there


def test_at_most_the_first_proposals_are_looked_at():
    system = tiny_fast_rcnn()
    system.proposer = PrecomputedProposals(2)
    record = system.stages([sample([[0, 0, 9, 9], [0, 0, 20, 20], [0, 0, 30, 30]])])
    assert record.proposals.boxes[0].tolist() == [[0, 0, 9, 9], [0, 0, 20, 20]]
    assert record.proposals.scores[0].tolist() == [1.0, 0.5]


def test_a_sample_without_proposals_is_searched_in_the_images_own_colours():
    photos = []

    def search(photo: np.ndarray) -> Proposals:
        photos.append(photo)
        return Proposals([[0, 0, 50, 25]], [1.0])

    small = ResizedProposer(search, longer_side=100)
    proposer = PrecomputedProposals(search=small, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    colour = torch.tensor([0.2, 0.6, 1.0])
    image = ((colour - torch.tensor(proposer.mean)) / torch.tensor(proposer.std))[:, None, None].expand(3, 80, 200)
    proposals, losses = proposer.propose([], make_batch([{"image": image}], size_divisor=1), None)
    assert photos[0].shape == (40, 100, 3)
    assert photos[0].dtype == np.uint8
    assert np.unique(photos[0].reshape(-1, 3), axis=0).tolist() == [[51, 153, 255]]
    assert proposals.boxes[0].tolist() == [[0, 0, 100, 50]]
    assert losses == {}


def test_every_window_of_each_image_is_proposed():
    batch = make_batch([{"image": torch.zeros(3, 20, 30)}, {"image": torch.zeros(3, 40, 10)}], size_divisor=1)
    proposals, _ = SlidingWindowProposer().propose([], batch, None)
    for boxes, (height, width) in zip(proposals.boxes, batch.sizes_hw, strict=True):
        assert len(boxes) > 50
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()


def test_the_original_sizes():
    """VGG-16 on crops of 224, two layers of 4096, 2,000 proposals."""
    with torch.device("meta"):
        system = rcnn_vgg16(CATEGORIES)
    crops = system.region_features
    assert (crops.crop_size, crops.context, crops.out_shape) == (224, 16, (512, 7, 7))
    assert system.proposer.count == 2000
    assert system.box_head.network.fc7.out_features == 4096
    assert (system.box_head.matcher.positive_iou, system.box_head.matcher.negative_iou) == (0.5, 0.3)
    for name in ("spp_net", "fast_rcnn", "faster_rcnn", "sliding_window", "regression", "classifier"):
        arguments = inspect.signature(MODELS[f"{name}_vgg16"].builder).parameters
        assert arguments["representation_size"].default == 4096


@pytest.mark.parametrize("kind", LINEAGE)
def test_the_small_ones_are_small(kind):
    with torch.device("meta"):
        system = build_model(f"{kind}_efficientnet_lite0", CATEGORIES)
    assert sum(parameter.numel() for parameter in system.parameters()) < 16e6


def test_a_pyramid_without_levels():
    with pytest.raises(UsageError, match="bins: expected"):
        SpatialPyramidPooling(backbone(), bins=())
