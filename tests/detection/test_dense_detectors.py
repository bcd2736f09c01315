"""Dense detectors beyond the contract: assigners against torchvision's and slow loops, oriented boxes, bad input."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import _utils as reference
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator as ReferenceDefaultBoxes
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, sigmoid_focal_loss

from otus.data.scenes.generator import THING_CATEGORIES, Scenes
from otus.data.tensors import to_tensors
from otus.detection.set_prediction.detr import detr_efficientnet_lite0
from otus.detection.single_stage.fcos import fcos_efficientnet_lite0_fpn
from otus.detection.single_stage.oriented_fcos import oriented_geometry
from otus.detection.single_stage.retinanet import retinanet_efficientnet_lite0_fpn
from otus.detection.single_stage.rpn_classifier import SampledLoss
from otus.detection.single_stage.ssd import (
    DefaultBoxGenerator,
    DefaultBoxMatcher,
    VGGExtractor,
)
from otus.detection.single_stage.ssdlite import ssdlite_efficientnet_lite0
from otus.errors import ShapeError
from otus.inference.predictor import Predictor
from otus.parts.backbones.norms import LenientBatchNorm
from otus.parts.batching import make_target
from otus.parts.boxes.coding import DeltaBoxCoder, LTRBCoder
from otus.parts.boxes.locations import LocationMatcher, centerness, location_generator
from otus.parts.boxes.matching import NEGATIVE, NEUTRAL
from otus.parts.boxes.oriented import (
    OrientedBoxCoder,
    from_corners,
    gaussian_distance,
    oriented_boxes,
)
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.heads.dense_head import DenseAssignment, DenseOutputs
from otus.parts.heads.dense_scores import SigmoidScores, SoftmaxScores
from otus.parts.losses import focal_loss
from otus.parts.preprocess import Preprocess
from otus.structures import Categories, Instances, oriented

seeds = st.integers(0, 2**31 - 1)


def boxes(count: int, seed: int, *, side: float = 100.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, generator=generator) * side / 2], dim=1)


def random_oriented_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * 60
    size = 6 + torch.rand(count, 2, generator=generator) * 40
    return torch.cat([centre, size, (torch.rand(count, 1, generator=generator) - 0.5) * math.pi], dim=1)


@given(seeds)
def test_focal_loss_and_its_gradient_are_torchvisions(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(40, 7, generator=generator) * 6).requires_grad_()
    class_indices = torch.randint(-2, 7, (40,), generator=generator)
    target = torch.zeros(40, 7)
    target[class_indices >= 0, class_indices[class_indices >= 0]] = 1
    expected, loss = sigmoid_focal_loss(logits, target, reduction="sum"), focal_loss(logits, class_indices)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@given(seeds)
def test_losses_of_the_rpn_classifier_are_divided_as_those_of_torchvisions_rpn(seed):
    """torchvision's ``RegionProposalNetwork.compute_loss`` divides both by the number of sampled anchors."""
    generator = torch.Generator().manual_seed(seed)
    anchors, objects = boxes(30, seed), boxes(2, seed + 1)
    matches = torch.randint(NEUTRAL, 2, (30,), generator=generator)
    positives, not_neutral = torch.where(matches >= 0)[0], matches != NEUTRAL
    class_indices = torch.where(matches >= 0, matches + 1, matches)
    logits, box_deltas = torch.randn(30, 4, generator=generator), torch.randn(30, 4, generator=generator)
    losses = SampledLoss(BalancedSampler(batch_size_per_image=100, positive_fraction=1.0))(
        DenseOutputs([logits[None]], [box_deltas[None]]),
        anchors,
        [DenseAssignment(matches, class_indices, positives, objects[matches[positives]])],
        DeltaBoxCoder(),
    )
    target_deltas = reference.BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(
        objects[matches[positives]], anchors[positives]
    )
    box_loss = functional.smooth_l1_loss(box_deltas[positives], target_deltas, beta=1 / 9, reduction="sum")
    torch.testing.assert_close(
        losses["class"], functional.cross_entropy(logits[not_neutral], class_indices[not_neutral].clamp(min=0))
    )
    torch.testing.assert_close(losses["box"], box_loss / not_neutral.sum())


@pytest.mark.parametrize("steps", [None, [8, 16, 32]])
def test_default_boxes_are_torchvisions(steps):
    ratios, scales = [[2], [2, 3], [2, 3]], [0.1, 0.4, 0.8, 1.05]
    grids = [(12, 20), (6, 10), (3, 5)]
    images = ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)])
    expected = ReferenceDefaultBoxes(ratios, scales=scales, steps=steps)(images, [torch.zeros(1, 1, *g) for g in grids])
    boxes_per_map = DefaultBoxGenerator(ratios, scales, steps=steps)(grids, (96, 160))
    torch.testing.assert_close(torch.cat(boxes_per_map), expected[0], rtol=0, atol=0)


def test_default_boxes_lie_in_images_of_any_size_or_a_step_beside():
    for size_hw, grid in (((300, 300), (10, 10)), ((512, 200), (16, 7)), ((40, 1000), (3, 30))):
        (default_boxes,) = DefaultBoxGenerator([[2]], [0.2, 0.4], steps=[32])([grid], size_hw)
        centres = (default_boxes[:, :2] + default_boxes[:, 2:]) / 2
        assert (centres > 0).all()
        assert (centres < torch.tensor([size_hw[1] + 16, size_hw[0] + 16])).all()
    with pytest.raises(ShapeError, match="expected 1 feature maps, got 2"):
        DefaultBoxGenerator([[2]], [0.2, 0.4])([(1, 1)] * 2, (4, 4))


@given(seeds, st.integers(1, 6))
def test_default_boxes_are_matched_as_torchvision_does(seed, count):
    anchors, objects = boxes(80, seed), boxes(count, seed + 1)
    expected = reference.SSDMatcher(0.5)(box_iou(objects, anchors))
    reachable = box_iou(objects, anchors).amax(dim=1) > 0
    if reachable.all() and len(set(box_iou(objects, anchors).argmax(dim=1).tolist())) == count:
        assert torch.equal(DefaultBoxMatcher()(anchors, objects), expected)


def test_an_object_that_no_default_box_meets_is_nobodys():
    matches = DefaultBoxMatcher()(boxes(20, 0), torch.tensor([[500.0, 500.0, 510.0, 510.0]]))
    assert (matches == NEGATIVE).all()


def fcos_by_loops(locations: Tensor, objects: Tensor, radius: float = 1.5) -> list[int]:
    sizes = (locations[:, 2] - locations[:, 0]).tolist()
    matches = []
    for (x1, y1, x2, y2), size in zip(locations.tolist(), sizes, strict=True):
        x, y, best, area = (x1 + x2) / 2, (y1 + y2) / 2, -1, math.inf
        for i, (left, top, right, bottom) in enumerate(objects.tolist()):
            edges = (x - left, y - top, right - x, bottom - y)
            near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < radius * size
            low = 0 if size == min(sizes) else 4 * size
            high = math.inf if size == max(sizes) else 8 * size
            if min(edges) > 0 and near and low < max(edges) < high and (right - left) * (bottom - top) < area:
                best, area = i, (right - left) * (bottom - top)
        matches.append(best)
    return matches


@settings(max_examples=20)
@given(seeds, st.integers(0, 6))
def test_locations_are_matched_as_a_slow_loop_does(seed, count):
    locations = torch.cat(location_generator((4, 8, 16))([(16, 16), (8, 8), (4, 4)], (64, 64)))
    objects = boxes(count, seed, side=50)
    assert LocationMatcher()(locations, objects).tolist() == fcos_by_loops(locations, objects)
    upright = torch.cat(
        [(objects[:, :2] + objects[:, 2:]) / 2, objects[:, 2:] - objects[:, :2], torch.zeros(count, 1)], 1
    )
    same = LocationMatcher(geometry=oriented_geometry)(locations, upright) == LocationMatcher()(locations, objects)
    assert same.float().mean() > 0.99  # a location on an edge may fall on either side by rounding


def test_locations_of_a_crowd_are_neutral():
    locations = torch.tensor([[10.0, 10.0, 18.0, 18.0], [80.0, 80.0, 88.0, 88.0]])
    crowd = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    assert LocationMatcher()(locations, torch.zeros(0, 4), crowds=crowd).tolist() == [NEUTRAL, NEGATIVE]
    assert DefaultBoxMatcher()(locations, torch.zeros(0, 4), crowds=crowd).tolist() == [NEUTRAL, NEGATIVE]


@given(seeds)
def test_distances_to_edges_are_torchvisions(seed):
    anchors, objects = boxes(20, seed), boxes(20, seed + 1)
    ltrb = LTRBCoder().encode(objects, anchors)
    torch.testing.assert_close(ltrb, reference.BoxLinearCoder().encode(anchors, objects), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        LTRBCoder().decode(ltrb, anchors), reference.BoxLinearCoder().decode(ltrb.relu(), anchors)
    )
    assert (centerness(ltrb.abs() + 0.1) <= 1).all()


def test_candidates_are_those_of_a_full_search():
    torch.manual_seed(0)
    logits, centerness_logits = [torch.randn(2, n, 5) for n in (30, 10)], [torch.randn(2, n) for n in (30, 10)]
    never = torch.inf
    thresholds = torch.tensor([never, 0.4, 0.5, never, 0.4])
    for outputs in (DenseOutputs(logits, []), DenseOutputs(logits, [], centerness_logits)):
        scores, class_indices, anchors = SigmoidScores(top_k_per_level=12).choose(outputs, 1, thresholds)
        expected, first = [], 0
        for i, x in enumerate(logits):
            s = x[1].sigmoid()
            if outputs.centerness is not None:
                s = (s * centerness_logits[i][1].sigmoid()[:, None]).sqrt()
            rows = [(float(s[a, c]), c, a + first) for a in range(len(s)) for c in range(5) if s[a, c] > thresholds[c]]
            expected += sorted(rows, reverse=True)[:12]
            first += len(s)
        assert [(c, a) for _, c, a in expected] == list(zip(class_indices.tolist(), anchors.tolist(), strict=True))
        torch.testing.assert_close(scores, torch.tensor([s for s, _, _ in expected]))
    s = torch.cat([x[0] for x in logits]).softmax(dim=1)
    thresholds = torch.tensor([never, 0.3, 0.3, never, 0.2])
    max_count = max(int((s[:, c] > thresholds[c]).sum()) for c in (1, 2, 4))
    for limit in (1, 3, max_count, 100):  # all categories have too many, some, one, none
        chosen = SoftmaxScores(top_k_per_class=limit).choose(DenseOutputs(logits, []), 0, thresholds)
        scores, class_indices, anchors = chosen
        best = {c: s[:, c].topk(min(limit, len(s))).indices.tolist() for c in (1, 2, 4)}
        expected = sorted((c, a) for c in best for a in best[c] if s[a, c] > thresholds[c])
        assert list(zip(class_indices.tolist(), anchors.tolist(), strict=True)) == expected
        torch.testing.assert_close(scores, s[anchors, class_indices])


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_ends_of_the_threshold(threshold):
    outputs = DenseOutputs([torch.zeros(1, 4, 2)], [])
    for scores in (SigmoidScores(), SoftmaxScores()):
        candidates = scores.choose(outputs, 0, torch.full((2,), threshold))
        assert len(candidates[0]) == (0 if threshold == 1 else 8)


@given(seeds)
def test_oriented_codes_invert_and_corners_agree_with_numpy(seed):
    objects, anchors = random_oriented_boxes(12, seed), boxes(12, seed + 1)
    anchors[:, 2:] = anchors[:, :2] + 8
    back = OrientedBoxCoder().decode(OrientedBoxCoder().encode(objects, anchors), anchors)
    torch.testing.assert_close(back[:, :4], objects[:, :4], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close((2 * back[:, 4]).cos(), (2 * objects[:, 4]).cos(), rtol=1e-3, atol=1e-3)
    points = torch.from_numpy(oriented.corners(objects.numpy()))
    np.testing.assert_allclose(from_corners(points), oriented.from_corners(points.numpy()), atol=1e-6)


@settings(max_examples=15)
@given(seeds)
def test_the_distance_of_gaussians_knows_the_same_box_by_any_writing(seed):
    objects = random_oriented_boxes(8, seed)
    rewritten = torch.stack(
        [objects[:, 0], objects[:, 1], objects[:, 3], objects[:, 2], objects[:, 4] + math.pi / 2], dim=1
    )
    assert (gaussian_distance(objects, rewritten) < 0.02).all()
    # Against the integral of the root of the product of both densities, on a grid.
    others = random_oriented_boxes(8, seed + 1)
    distances = gaussian_distance(objects, others)
    torch.testing.assert_close(distances, gaussian_distance(others, objects), rtol=1e-3, atol=1e-3)
    axis = torch.linspace(-80, 160, 241, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).reshape(-1, 2)
    a, b = density(objects[0].double(), points), density(others[0].double(), points)
    expected = (1 - (a * b).sqrt().sum()).clamp(min=0).sqrt()
    assert abs(float(distances[0]) - float(expected)) < 0.02


def density(box: Tensor, points: Tensor) -> Tensor:
    cos, sin = box[4].cos(), box[4].sin()
    rotation = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    covariance = rotation @ torch.diag(box[2:4] ** 2 / 12) @ rotation.T
    return torch.distributions.MultivariateNormal(box[:2], covariance).log_prob(points).exp()


def test_gradients_of_oriented_boxes_are_finite_everywhere():
    box_deltas = torch.zeros(3, 6, requires_grad=True)
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).expand(3, 4)
    target = torch.tensor([[4.0, 4.0, 8.0, 8.0, 0.0], [4.0, 4.0, 900.0, 0.01, 1.0], [1e4, 0.0, 5.0, 5.0, 0.0]])
    loss = gaussian_distance(OrientedBoxCoder().decode(box_deltas, anchors), target).sum()
    loss.backward()
    assert loss.isfinite()
    assert box_deltas.grad.isfinite().all()


def test_objects_without_an_oriented_box_are_learned_upright():
    sample = to_tensors(Scenes(1, size_hw=(120, 160), seed=2).scene(0))
    sample["corners"][0] = torch.nan
    target = make_target(sample, category_count=len(THING_CATEGORIES), device=torch.device("cpu"))
    boxes_xywhr = oriented_boxes(target)
    x1, y1, x2, y2 = target.boxes[0].tolist()
    torch.testing.assert_close(boxes_xywhr[0], torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, 0]))
    assert boxes_xywhr.isfinite().all()
    assert (oriented_boxes(replace(target, corners=None))[:, 4] == 0).all()


def test_oriented_boxes_come_back_to_the_images_frame():
    box = np.array([[40.0, 30.0, 20.0, 10.0, 0.5]])
    made = Instances([[0, 0, 9, 9]], [0], size_hw=(60, 80), scores=[0.5], oriented_boxes_xywhr=box)
    back = Preprocess(shorter_side=60, longer_side=80).undo(made, (120, 160))
    np.testing.assert_allclose(back.oriented_boxes_xywhr, box * [[2, 2, 2, 2, 1]])


def test_a_norm_of_one_value_takes_what_it_remembers():
    norm = LenientBatchNorm(3)
    norm(torch.randn(4, 3, 2, 2))
    remembered = norm.running_mean.clone()
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(x), norm.eval()(x))
    assert torch.equal(norm.running_mean, remembered)


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.bfloat16)])
@pytest.mark.parametrize(
    "build", [retinanet_efficientnet_lite0_fpn, ssdlite_efficientnet_lite0, fcos_efficientnet_lite0_fpn]
)
def test_fast_copies_predict_the_same(build, precision):
    torch.manual_seed(0)
    system = build(THING_CATEGORIES)
    preprocess = Preprocess(fixed_hw=(96, 96))
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    exact = Predictor(system, preprocess=preprocess, name="x", device="cpu")
    fast = Predictor(system, preprocess=preprocess, name="x", device="cpu", precision=precision)
    first, second = (predictor.predict(image, score_threshold=0.0)[0].instances for predictor in (exact, fast))
    assert len(first) > 0
    if precision == "float32":
        np.testing.assert_allclose(first.scores[:20], second.scores[:20], atol=1e-4)
    else:
        np.testing.assert_allclose(first.scores[:20], second.scores[:20], atol=0.05)
    assert second.boxes_xyxy.dtype == np.float32


def test_class_indices_that_do_not_fit_are_an_error():
    with pytest.raises(ShapeError, match="expected distinct integers from 1 on"):
        ssdlite_efficientnet_lite0(THING_CATEGORIES, class_indices=[0, *range(1, len(THING_CATEGORIES))])
    for build in (retinanet_efficientnet_lite0_fpn, detr_efficientnet_lite0):
        with pytest.raises(ShapeError, match="expected one index per category"):
            build(THING_CATEGORIES, class_indices=[0])
        with pytest.raises(ShapeError, match="expected distinct integers from 0 on"):
            build(THING_CATEGORIES, class_indices=[0] * len(THING_CATEGORIES))
        with pytest.raises(ShapeError, match=r"expected one index per category \(0\)"):
            build(Categories(()))


def test_ssd_takes_the_smallest_images():
    maps = VGGExtractor().to("meta")
    steps = [x.shape[-1] for x in maps(torch.empty(1, 3, maps.min_size, maps.min_size, device="meta"))]
    assert steps == [34, 17, 9, 5, 3, 1]
    with pytest.raises(RuntimeError, match="Kernel size"):  # so it is the smallest
        maps(torch.empty(1, 3, maps.min_size, maps.min_size - 1, device="meta"))
