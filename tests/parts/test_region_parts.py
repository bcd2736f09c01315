"""The parts of region-based detectors against torchvision's, against slow loops, and their properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models.detection import _utils as reference
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_iou, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from otus.errors import ShapeError
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.batching import make_batch, make_target
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.coding import DeltaBoxCoder
from otus.parts.boxes.matching import NEGATIVE, NEUTRAL, IoUMatcher, pairwise_ioa
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.fast.roi_align import RoIAlignOnCPU
from otus.parts.heads.box_head import BoxHead
from otus.parts.inference_mode import inference_mode
from otus.parts.losses import box_delta_loss, zero_loss
from otus.parts.regions.roi_features import RoIPooler

seeds = st.integers(0, 2**31 - 1)


def boxes(count: int, seed: int, *, side: float = 100.0, min_size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat([corner, corner + min_size + torch.rand(count, 2, generator=generator) * side / 2], dim=1)


@pytest.mark.parametrize(("height", "width"), [(96, 160), (800, 1088), (32, 64)])
def test_anchors_are_torchvisions(height, width):
    grids = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64)]
    sizes = ((16, 32), (64, 90), (128, 130), (256, 300))
    images = ImageList(torch.zeros(1, 3, height, width), [(height, width)])
    expected = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4)(images, [torch.zeros(1, 1, *grid) for grid in grids])[0]
    anchors = GridAnchorGenerator(sizes)
    assert anchors.anchors_per_location == 6
    assert torch.equal(torch.cat(anchors(grids, (height, width))), expected)


def test_anchors_made_while_predicting_serve_training():
    anchors = GridAnchorGenerator([[8.0, 16.0]])
    with torch.inference_mode():
        anchors([(3, 5)], (24, 40))
    (cached,) = anchors([(3, 5)], (24, 40))
    offset = torch.zeros(len(cached), 4, requires_grad=True)
    (cached * offset).sum().backward()
    assert torch.equal(offset.grad, cached)


def test_anchors_for_another_number_of_maps_are_refused():
    with pytest.raises(ValueError, match="expected 1 feature maps, as many as sizes, got 2"):
        GridAnchorGenerator([[8.0]])([(1, 1), (1, 1)], (8, 8))


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_box_deltas_are_torchvisions_and_invert(seed):
    weights = (10.0, 10.0, 5.0, 5.0)
    box_coder, oracle = DeltaBoxCoder(weights), reference.BoxCoder(weights)
    regions, objects = boxes(20, seed), boxes(20, seed + 1)
    box_deltas = box_coder.encode(objects, regions)
    torch.testing.assert_close(box_deltas, oracle.encode_single(objects, regions))
    torch.testing.assert_close(
        box_coder.decode(box_deltas, regions), oracle.decode_single(box_deltas, regions).reshape(-1, 4)
    )
    torch.testing.assert_close(box_coder.decode(box_deltas, regions), objects, atol=1e-3, rtol=1e-4)


def test_box_deltas_too_large_for_the_exponential_are_clamped():
    region = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    decoded = DeltaBoxCoder().decode(torch.full((1, 4), 1000.0), region)
    assert decoded.isfinite().all()
    torch.testing.assert_close(decoded[0, 2] - decoded[0, 0], torch.tensor(1000.0), rtol=1e-3, atol=0)


@given(seeds, st.booleans(), st.sampled_from([(0.7, 0.3), (0.5, 0.5), (0.3, 0.1)]))
@settings(max_examples=50, deadline=None)
def test_matches_are_torchvisions(seed, keep_best, thresholds):
    regions, objects = boxes(60, seed, side=40), boxes(4, seed + 1, side=40)
    iou = box_iou(objects, regions)
    matches = IoUMatcher(*thresholds, keep_best=keep_best)(regions, objects)
    expected = reference.Matcher(*thresholds, allow_low_quality_matches=keep_best)(iou)
    touched = (iou > 0).any(dim=1).all()  # torchvision makes all regions positive for an object that none touches
    if touched or not keep_best:
        assert torch.equal(matches, expected)


def test_an_object_that_no_anchor_touches_makes_none_positive():
    matches = IoUMatcher(0.7, 0.3, keep_best=True)(boxes(5, 0), torch.tensor([[500.0, 500, 510, 510]]))
    assert (matches == NEGATIVE).all()


def test_without_objects_all_is_negative_but_in_a_crowd():
    regions = torch.tensor([[0.0, 0, 10, 10], [4, 0, 14, 10], [6, 0, 16, 10], [50, 50, 60, 60], [5, 5, 5, 5]])
    crowd = torch.tensor([[0.0, 0, 10, 10]])
    matcher = IoUMatcher(0.5, 0.5)
    assert (matcher(regions, torch.zeros(0, 4)) == NEGATIVE).all()
    matches = matcher(regions, torch.zeros(0, 4), crowds=crowd)
    assert matches.tolist() == [NEUTRAL, NEUTRAL, NEGATIVE, NEGATIVE, NEGATIVE]
    torch.testing.assert_close(pairwise_ioa(regions, crowd), torch.tensor([1.0, 0.6, 0.4, 0.0, 0.0]))


def test_an_object_in_a_crowd_is_still_an_object():
    box = torch.tensor([[0.0, 0, 10, 10]])
    assert IoUMatcher(0.5, 0.5)(box, box, crowds=box).tolist() == [0]


@given(seeds, st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_samples_have_the_share_of_positives_that_there_are(seed, positives, negatives, neutrals):
    matches = torch.tensor([3] * positives + [NEGATIVE] * negatives + [NEUTRAL] * neutrals, dtype=torch.int64)
    matches = matches[torch.randperm(len(matches), generator=torch.Generator().manual_seed(seed))]
    sampler = BalancedSampler(batch_size_per_image=16, positive_fraction=0.25)
    chosen, rest = sampler(matches, generator=torch.Generator().manual_seed(seed))
    assert len(chosen) == min(4, positives)
    assert len(rest) == min(negatives, 16 - len(chosen))
    assert (matches[chosen] >= 0).all()
    assert (matches[rest] == NEGATIVE).all()
    assert len(set(chosen.tolist() + rest.tolist())) == len(chosen) + len(rest)
    again = sampler(matches, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(chosen, again[0])
    assert torch.equal(rest, again[1])


@pytest.mark.parametrize("norm_layer", [None, nn.BatchNorm2d])
def test_the_pyramid_is_torchvisions(norm_layer):
    oracle = FeaturePyramidNetwork([4, 8, 16], 6, extra_blocks=LastLevelMaxPool(), norm_layer=norm_layer).eval()
    pyramid = FeaturePyramid((4, 8, 16), 6, norm_layer=norm_layer).eval()
    pyramid.load_state_dict(oracle.state_dict())
    maps = [torch.rand(2, c, h, w) for c, h, w in ((4, 13, 21), (8, 7, 11), (16, 4, 6))]
    expected = oracle({str(i): x for i, x in enumerate(maps)}).values()
    for level, expected_level in zip(pyramid(maps), expected, strict=True):
        torch.testing.assert_close(level, expected_level)


def test_aligned_regions_of_a_pyramid_are_torchvisions():
    maps = [torch.rand(2, 5, 256 // stride, 256 // stride) for stride in (4, 8, 16, 32)]
    regions = [boxes(40, 1, side=900), boxes(30, 3, side=30)]
    oracle = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    expected = oracle({str(i): x for i, x in enumerate(maps)}, regions, [(256, 256)] * 2)
    roi_pooler = RoIPooler(7, strides=(4, 8, 16, 32))
    assert len(roi_pooler.levels(torch.cat(regions)).unique()) > 1
    torch.testing.assert_close(roi_pooler(maps, regions), expected)
    assert roi_pooler([x.bfloat16() for x in maps], regions).dtype == torch.float32


def test_pooled_regions_take_the_maximum_of_whole_cells():
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    region = torch.tensor([[16.0, 32.0, 79.0, 95.0]])  # columns 1..5 and rows 2..6 of a map of stride 16
    roi_features = RoIPooler(2, strides=(16,), method="pool")([x], [region])
    assert roi_features.flatten().tolist() == [4 * 8 + 3, 4 * 8 + 5, 6 * 8 + 3, 6 * 8 + 5]


@pytest.mark.parametrize("strides", [(16,), (4, 8)])
def test_no_regions_give_no_features(strides):
    maps = [torch.rand(2, 5, 8, 8) for _ in strides]
    assert RoIPooler(7, strides=strides)(maps, [torch.zeros(0, 4)] * 2).shape == (0, 5, 7, 7)


def test_the_box_loss_counts_every_sampled_region():
    predicted, target = torch.tensor([[1.0, 0, 0, 0]]), torch.zeros(1, 4)
    torch.testing.assert_close(box_delta_loss(predicted, target, count=4), torch.tensor((1 - 1 / 18) / 4))
    assert float(box_delta_loss(predicted[:0], target[:0], count=0)) == 0


def test_no_loss_has_a_gradient_of_zeros_for_every_parameter():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    zero_loss(module).backward()
    assert all((parameter.grad == 0).all() for parameter in module.parameters())


def test_images_of_different_sizes_make_one_batch():
    samples = [{"image": torch.ones(3, 10, 33)}, {"image": torch.full((3, 40, 5), 2.0)}]
    batch = make_batch(samples, size_divisor=32)
    assert batch.padded_hw == (64, 64)
    assert batch.sizes_hw == ((10, 33), (40, 5))
    assert float(batch.images[0].sum()) == 3 * 10 * 33
    assert (batch.images[1, :, :40, :5] == 2).all()


@pytest.mark.parametrize("image", [torch.zeros(1, 4, 4), torch.zeros(3, 0, 4), torch.zeros(3, 4, 4, dtype=torch.uint8)])
def test_what_is_no_prepared_image_is_refused(image):
    with pytest.raises(ShapeError, match=r"image odd: expected float \(3, H, W\)"):
        make_batch([{"image": image, "key": "odd"}], size_divisor=32)
    with pytest.raises(ShapeError, match="at least one"):
        make_batch([], size_divisor=32)


def test_targets_leave_out_crowds_and_boxes_without_area():
    sample = {
        "boxes": torch.tensor([[0.0, 0, 4, 4], [1, 1, 1, 5], [2, 2, 9, 9]]),
        "labels": torch.tensor([2, 0, 1]),
        "is_crowd": torch.tensor([False, False, True]),
        "masks": torch.ones(3, 10, 10, dtype=torch.bool),
        "keypoints": torch.ones(3, 5, 2),
        "visibility": torch.full((3, 5), 2),
    }
    target = make_target(sample, category_count=3, device=torch.device("cpu"))
    assert target.labels.tolist() == [2]
    assert target.crowds.tolist() == [[2, 2, 9, 9]]
    assert target.masks.shape == (1, 10, 10)
    assert target.keypoints[0, 0].tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"key": "a"}, "sample a: expected boxes and labels"),
        ({"key": "b", "boxes": torch.ones(1, 4), "labels": torch.tensor([3])}, r"expected labels 0\.\.2, got 3\.\.3"),
    ],
)
def test_samples_without_valid_targets_are_refused(sample, message):
    with pytest.raises(ShapeError, match=message):
        make_target(sample, category_count=3, device=torch.device("cpu"))


@pytest.mark.parametrize("class_indices", [(), (0, 1), (1, 1)])
def test_class_indices_must_differ_and_leave_room_for_background(class_indices):
    with pytest.raises(ShapeError, match="class_indices"):
        BoxHead(nn.Identity(), in_features=4, class_indices=class_indices)


def test_predicting_leaves_each_part_as_it_is_even_after_an_error():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    module.train()
    module[1].eval()
    with inference_mode(module) as evaluated:
        assert module[0].training
        assert not evaluated[0].training
        assert evaluated[0].weight is module[0].weight
        assert evaluated(torch.zeros(1, 3)).is_inference()
    with pytest.raises(RuntimeError, match="shapes"), inference_mode(module) as evaluated:
        evaluated(torch.zeros(2, 9))
    assert module[0].training
    assert not module[1].training
    with inference_mode(module.eval()) as evaluated:
        assert evaluated is module


@given(seed=seeds, samples=st.integers(1, 3), side=st.integers(1, 8))
@settings(max_examples=25)
def test_the_gradient_of_roi_align_is_torchvisions(seed, samples, side):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(3, 5, 6, 9, generator=generator).requires_grad_()
    regions = torch.cat([torch.arange(12)[:, None] % 3, boxes(12, seed, side=60) - 10], dim=1)
    output_grad = torch.randn(12, 5, side, side, generator=generator)
    roi_features = RoIAlignOnCPU.apply(maps, regions, side, 1 / 8, samples)
    expected = roi_align(maps, regions, side, 1 / 8, sampling_ratio=samples)
    assert torch.equal(roi_features, expected)
    ours, theirs = (torch.autograd.grad(output, maps, output_grad)[0] for output in (roi_features, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
