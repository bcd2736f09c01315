"""NMS: the boxes kept are those of torchvision and of a slow loop, for few boxes or many, upright or oriented."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import ops
from torchvision.ops import box_iou

from otus.parts.boxes import nms as suppression
from otus.parts.boxes.nms import batched_nms
from otus.parts.boxes.oriented import OrientedPostprocess, oriented_nms
from otus.parts.postprocess import Postprocess
from otus.structures.oriented import pairwise_oriented_iou

seeds = st.integers(0, 2**31 - 1)
thresholds = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])


def crowd(count: int, seed: int, *, groups: int, ties: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes that overlap a lot, scores and groups; with ``ties``, many equal boxes, scores and IoUs."""
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=generator) * 40
    scores = torch.randperm(count, generator=generator) / max(1, count)
    if ties:
        corner, size, scores = corner.floor(), (size / 4).floor(), (scores * 20).floor()
    return torch.cat([corner, corner + size], 1), scores, torch.randint(0, groups, (count,), generator=generator) - 1


def slow_suppression(similarity: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(groups[k] != groups[i] or not float(similarity[k, i]) > threshold for k in kept):
            kept.append(i)
    return kept


@given(seeds, st.integers(0, 40), thresholds, st.booleans())
@settings(max_examples=100, deadline=None)
def test_what_stays_is_a_slow_loops(seed, count, threshold, ties):
    boxes, scores, groups = crowd(count, seed, groups=3, ties=ties)
    with patch.object(suppression, "_OFFSET_TRICK_MAX", 0):  # so that the compiled kernel is used
        kept = batched_nms(boxes, scores, groups, iou_threshold=threshold)
    assert kept.tolist() == slow_suppression(box_iou(boxes, boxes), scores, groups, threshold)
    again = batched_nms(boxes[kept], scores[kept], groups[kept], iou_threshold=threshold)
    assert again.tolist() == list(range(len(kept)))
    limited = Postprocess(nms_iou=threshold, max_detections=3).keep(boxes, scores, groups)
    assert torch.equal(limited, kept[:3])


def torchvisions(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Return the boxes that torchvision keeps, equal scores, whose order it leaves open, by index."""
    kept = ops.batched_nms(boxes, scores, groups, threshold).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


@given(seeds, st.integers(1, 2000), st.sampled_from([1, 5, 80, 1000]), thresholds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_stays_is_torchvisions(seed, count, groups, threshold, ties):
    boxes, scores, group = crowd(count, seed, groups=groups, ties=ties)
    kept = batched_nms(boxes, scores, group, iou_threshold=threshold)
    assert torch.equal(kept, torchvisions(boxes, scores, group, threshold))
    for limit in (0, 1, 7, 100):
        assert torch.equal(batched_nms(boxes, scores, group, iou_threshold=threshold, limit=limit), kept[:limit])


def test_what_is_no_number_stays_as_in_torchvision():
    boxes, scores, groups = crowd(1500, 0, groups=4, ties=False)
    boxes[::7, 1], boxes[1::7, 2], boxes[2::7, 3] = torch.nan, torch.inf, -5.0
    boxes[3::7] = 1e-30 * boxes[3::7]  # areas underflow
    scores[::11], scores[1::11] = torch.nan, torch.inf
    expected = torchvisions(boxes, scores, groups, 0.4)
    for limit in (5, 100, None):
        assert torch.equal(batched_nms(boxes, scores, groups, iou_threshold=0.4, limit=limit), expected[:limit])


def test_any_kind_of_tensor_may_come():
    boxes, scores, groups = crowd(1500, 1, groups=600, ties=False)
    expected = batched_nms(boxes, scores, groups, iou_threshold=0.5)
    strided = torch.stack([boxes.double(), torch.zeros(1500, 4)], 2)[..., 0].requires_grad_()
    assert not strided.is_contiguous()
    strided_groups = torch.stack([groups * 2**40, groups], 1)[:, 0]
    assert torch.equal(batched_nms(strided, scores.double(), strided_groups, iou_threshold=0.5), expected)
    coarse = scores.bfloat16()
    assert torch.equal(
        batched_nms(boxes, coarse, groups, iou_threshold=0.5), torchvisions(boxes, coarse.float(), groups, 0.5)
    )


@pytest.mark.filterwarnings("ignore:.create_unbacked_symint:FutureWarning")  # torchvision's own use of torch
def test_what_is_traced_keeps_torchvisions_operator():
    boxes, scores, groups = crowd(1500, 2, groups=1, ties=False)
    expected = batched_nms(boxes, scores, groups, iou_threshold=0.5, limit=20)
    with patch.object(suppression, "kernels", None):
        traced = torch.compile(batched_nms, backend="eager")
        assert torch.equal(traced(boxes, scores, groups, iou_threshold=0.5, limit=20), expected)


def random_oriented_boxes(count: int, seed: int, *, ties: bool = False) -> Tensor:
    """Return oriented boxes; with ``ties``, many that coincide, share edges or have no area."""
    generator = torch.Generator().manual_seed(seed)
    centre, size = torch.rand(2, count, 2, generator=generator) * 40 + 1
    angle = (torch.rand(count, 1, generator=generator) - 0.5) * torch.pi
    if ties:
        centre, size, angle = (centre / 8).floor() * 4, (size / 16).floor() * 4, (angle * 2).floor() * torch.pi / 4
    return torch.cat([centre, size, angle], dim=1)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(0, 30), st.floats(0.05, 0.7), st.booleans())
def test_what_stays_of_oriented_boxes_is_a_slow_loops(seed, count, threshold, ties):
    boxes, (_, scores, groups) = random_oriented_boxes(count, seed, ties=ties), crowd(count, seed, groups=2, ties=ties)
    iou = torch.from_numpy(pairwise_oriented_iou(boxes.numpy(), boxes.numpy()))
    kept = slow_suppression(iou, scores, groups, threshold)
    assert oriented_nms(boxes, scores, groups, iou_threshold=threshold).tolist() == kept
    postprocess = OrientedPostprocess(nms_iou=threshold, max_detections=3)
    assert postprocess.keep(boxes, scores, groups).tolist() == kept[:3]


def test_upright_boxes_are_suppressed_alike_when_they_may_turn():
    boxes, scores, groups = crowd(300, 3, groups=3, ties=False)
    upright = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2], torch.zeros(300, 1)], 1)
    far = upright + torch.tensor([1e5, 1e5, 0, 0, 0])
    kept = batched_nms(boxes, scores, groups, iou_threshold=0.2)
    assert torch.equal(oriented_nms(upright, scores, groups, iou_threshold=0.2), kept)
    rotated = far.double() @ torch.eye(5).double()[:, [0, 1, 3, 2, 4]]
    rotated[:, 4] += np.pi / 2
    iou = [pairwise_oriented_iou(boxes_xywhr.numpy(), boxes_xywhr.numpy()) for boxes_xywhr in (far.double(), rotated)]
    np.testing.assert_allclose(*iou, atol=1e-8)
    assert oriented_nms(rotated, scores, groups, iou_threshold=0.2).tolist() == slow_suppression(
        torch.from_numpy(iou[0]), scores, groups, 0.2
    )
