"""DETR and query-selection DETR: padding, crowds, more objects than queries, fused copies, the small models."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from otus.data.dataset import Dataset, Images
from otus.data.tensors import TensorSample, bounding_boxes
from otus.detection.set_prediction.detr import DETRHead, detr_efficientnet_lite0
from otus.detection.set_prediction.query_selection_detr import (
    QuerySelectionHead,
    _DensePredictions,
    query_selection_detr_efficientnet_lite0,
)
from otus.detection.set_prediction.set_detector import SetDetector, valid_locations
from otus.parts.backbones import LayeredBackbone, freeze_norms, torchvision_backbone
from otus.parts.batching import make_batch
from otus.parts.fast.fusion import fused_for_inference
from otus.structures import Categories, Objects

CATEGORIES = Categories(("cat", "dog", "owl"))


def backbone() -> LayeredBackbone:
    layers = {
        f"c{i}": nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())
        for i, (a, b) in enumerate([(3, 8), (8, 16), (16, 16)])
    }
    return LayeredBackbone(layers, levels=(2, 3))


def plain() -> SetDetector:
    torch.manual_seed(0)
    head = DETRHead(
        16,
        (0, 1, 2),
        embed_dim=16,
        num_heads=2,
        ffn_dim=32,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_queries=6,
        dropout=0.0,
    )
    return SetDetector(categories=CATEGORIES, backbone=backbone(), head=head)


def improved() -> SetDetector:
    torch.manual_seed(0)
    head = QuerySelectionHead((16, 16), (4, 8), 3, embed_dim=16, num_heads=2, ffn_dim=32, num_layers=2, num_queries=6)
    return SetDetector(categories=CATEGORIES, backbone=backbone(), head=head)


@pytest.fixture(params=[plain, improved], ids=["plain", "improved"])
def system(request: pytest.FixtureRequest) -> SetDetector:
    return request.param()


def sample(
    boxes: list[list[float]], labels: list[int], *, size_hw: tuple[int, int] = (48, 64), **more: Tensor
) -> TensorSample:
    image = torch.rand(3, *size_hw, generator=torch.Generator().manual_seed(size_hw[0]))
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return {
        "image": image,
        "boxes": bounding_boxes(array, size_hw),
        "labels": torch.tensor(labels, dtype=torch.int64),
        **more,
    }


def test_the_transformer_does_not_see_padding():
    head = plain().eval().head
    x = torch.randn(2, 16, 6, 8, generator=torch.Generator().manual_seed(1))
    inside = torch.ones(2, 6, 8, dtype=torch.bool)
    inside[0, 4:] = False
    inside[0, :, 5:] = False
    together, alone = head(x, inside), head(x[:1, :, :4, :5], inside[:1, :4, :5])
    torch.testing.assert_close(together.logits[:, :1], alone.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.boxes[:, :1], alone.boxes, atol=1e-5, rtol=1e-4)
    attention = together.attention()[0]
    assert attention[:, 4:].abs().max() == attention[:, :, 5:].abs().max() == 0


def test_valid_locations_are_those_of_a_resized_mask():
    batch = make_batch([sample([], [], size_hw=(37, 50)), sample([], [], size_hw=(64, 20))], size_divisor=1)
    mask = torch.zeros(2, 64, 50)
    for image_mask, (height, width) in zip(mask, batch.sizes_hw, strict=True):
        image_mask[:height, :width] = 1
    for map_hw in ((64, 50), (32, 25), (8, 7), (2, 2), (1, 1)):
        expected = nn.functional.interpolate(mask[None], size=map_hw)[0].bool()
        assert torch.equal(valid_locations(batch, map_hw), expected)


def test_more_objects_than_queries_are_learned_as_far_as_they_go_and_said(system):
    generator = np.random.default_rng(0)
    corner = generator.uniform(0, 40, (30, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(2, 8, (30, 2))], axis=1)
    crowded = sample(boxes.tolist(), generator.integers(0, 3, 30).tolist())
    losses = system.train().losses([crowded], generator=torch.Generator().manual_seed(0))
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    (match,) = system.match(system.stages([crowded]))
    assert len(match.queries) == len(set(match.queries.tolist())) == len(set(match.objects.tolist())) == 6
    objects = Objects.build(
        image_index=[0] * 30 + [1] * 6 + [2] * 8, labels=[0] * 44, boxes_xyxy=np.tile([0, 0, 5, 5], (44, 1))
    )
    images = Images(root=Path("."), files=("a", "b", "c"), sizes_hw=np.array([[64, 96]] * 3), ids=(1, 2, 3))
    dataset = Dataset(source=Path("."), format="made", images=images, categories=CATEGORIES, objects=objects)
    assert system.warnings(dataset) == [
        "note: 2 images have more objects (at most 30) than the 6 queries; of these, 26 objects are not learned"
    ]
    flat = objects.boxes_xyxy.copy()
    flat[30:, 2] = 0  # without area they are none to learn
    (line,) = system.warnings(replace(dataset, objects=replace(objects, boxes_xyxy=flat)))
    assert line.startswith("note: 1 image has more objects (at most 30)")
    few = replace(dataset, objects=objects.take(objects.image_index == 1))
    assert system.warnings(few) == system.warnings(replace(dataset, objects=None)) == []


def test_a_crowd_over_everything_teaches_nothing(system):
    crowded = sample([[0, 0, 64, 48]], [0], is_crowd=torch.tensor([True]))
    losses = system.train().losses([crowded], generator=torch.Generator().manual_seed(0))
    assert all(float(value.detach()) == 0 for value in losses.values())
    empty = system.losses([sample([], [])], generator=torch.Generator().manual_seed(0))
    assert float(empty["class"].detach()) > 0


@pytest.mark.parametrize(
    "samples",
    [
        [sample([], []), sample([], [], size_hw=(20, 70))],
        [sample([[5, 5, 5, 20]], [0])],
        [sample([[63.99, 47.99, 64, 48]], [2]), sample([[0, 0, 64, 48]], [1])],
        [sample([[0, 0, 1, 1]], [0], size_hw=(1, 1))],
        [sample([[0, 0, 1, 300]], [1], size_hw=(300, 1)), sample([], [], size_hw=(1, 2))],
    ],
    ids=["no objects", "no area", "tiny and huge", "one pixel", "thin"],
)
def test_losses_are_finite_on_any_input(system, samples):
    losses = system.train().losses(samples, generator=torch.Generator().manual_seed(0))
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in system.parameters())
    sizes_hw = [tuple(sample["image"].shape[1:]) for sample in samples]
    assert [instances.size_hw for instances in system.predict(samples)] == sizes_hw


def test_nothing_is_suppressed_unless_asked_for(system):
    (instances,) = system.predict([sample([], [])])
    assert len(instances) == (6 if isinstance(system.head, DETRHead) else 18)
    assert (np.diff(instances.scores) <= 0).all()
    system.postprocess = replace(system.postprocess, nms_iou=0.0)
    (fewer,) = system.predict([sample([], [])])
    assert 0 < len(fewer) < len(instances)
    system.postprocess = replace(system.postprocess, nms_iou=1.0, max_detections=2)
    assert len(system.predict([sample([], [])])[0]) == 2


def test_queries_do_not_depend_on_denoising_queries():
    system = improved()
    samples = [sample([[5, 5, 30, 30]], [1]), sample([[10, 8, 60, 40], [2, 2, 9, 9]], [0, 2])]
    batch = make_batch(samples, size_divisor=1)
    targets = [system.target(sample) for sample in samples]
    maps = system.backbone(batch.images)
    with_noise, _ = system.head.forward_train(maps, batch, targets, generator=torch.Generator().manual_seed(0))
    without, _ = system.head.forward_train(maps, batch, None)
    torch.testing.assert_close(with_noise.logits, without.logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(with_noise.boxes, without.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(with_noise.attention(), without.attention(), atol=1e-5, rtol=1e-4)


def test_selected_queries_are_locations_whose_boxes_differ():
    system = improved()
    batch = make_batch([sample([], [], size_hw=(48, 64)), sample([], [], size_hw=(32, 48))], size_divisor=32)
    maps, inside = system.head._encode(system.backbone(batch.images), batch)
    dense = _DensePredictions(system.head, maps, inside, batch)
    dense.logits = torch.randn(dense.logits.shape, generator=torch.Generator().manual_seed(0))
    count = dense.logits.shape[1]
    for image, chosen in enumerate(dense.top_queries(count, nms_iou=0.3)):
        scores = dense.logits[image, chosen].amax(dim=1)
        overlaps = box_iou(*[box_convert(dense.boxes[image, chosen], "cxcywh", "xyxy")] * 2).tril(-1)
        num_inside = int(dense.inside[image].sum())
        differ = overlaps.amax(dim=1) <= 0.3
        first = int(differ[:num_inside].logical_not().float().argmax())  # the first that overlaps a higher-scoring one
        assert 3 < first < num_inside
        assert scores[:first].tolist() == sorted(scores[:first].tolist(), reverse=True)
        assert scores[first:num_inside].tolist() == sorted(scores[first:num_inside].tolist(), reverse=True)
        overlaps_with_first = overlaps[first:num_inside, :first]
        assert (overlaps_with_first.amax(dim=1) > 0.3).all()  # none is left out that could have been among them
        assert dense.inside[image, chosen[:num_inside]].all()


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.bfloat16)])
def test_fused_copies_predict_the_same(precision):
    torch.manual_seed(0)
    backbone = torchvision_backbone("resnet18", levels=(4, 5))
    freeze_norms(backbone)
    for head in (
        DETRHead(
            512,
            (0, 1, 2),
            embed_dim=32,
            num_heads=4,
            ffn_dim=64,
            num_encoder_layers=1,
            num_decoder_layers=2,
            num_queries=9,
        ),
        QuerySelectionHead(
            backbone.channels, backbone.strides, 3, embed_dim=32, num_heads=4, ffn_dim=64, num_layers=2, num_queries=9
        ),
    ):
        system = SetDetector(categories=CATEGORIES, backbone=backbone, head=head).eval()
        fused = fused_for_inference(system, precision=precision)
        images = [sample([], [], size_hw=(70, 90))]
        exact = system.stages(images).outputs
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            fast = fused.stages(images).outputs
        assert fast.boxes.dtype == fast.logits.dtype == torch.float32
        tolerance = 1e-4 if precision == "float32" else 0.15
        torch.testing.assert_close(fast.logits[-1], exact.logits[-1], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("build", [detr_efficientnet_lite0, query_selection_detr_efficientnet_lite0])
def test_the_small_ones(build: Callable[..., SetDetector]):
    system = build(CATEGORIES, num_queries=20)
    (instances,) = system.predict([sample([], [], size_hw=(96, 128))])
    assert instances.size_hw == (96, 128)
    assert system.head.num_queries == 20
    frozen = [name for name, parameter in system.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(name.startswith(("backbone.stem", "backbone.stage1", "backbone.stage2")) for name in frozen)
