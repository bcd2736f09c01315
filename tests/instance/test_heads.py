"""Targets and predictions of the mask and keypoint heads against torchvision's, edge cases included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection import roi_heads as reference

from otus.detection.region_based.faster_rcnn import faster_rcnn_efficientnet_lite0_fpn
from otus.detection.region_based.region_detector import RegionDetector
from otus.errors import ShapeError, UsageError
from otus.instance.keypoint_rcnn import KeypointHead, heatmaps_to_keypoints, keypoint_rcnn, keypoints_to_heatmap
from otus.instance.mask_rcnn import MaskHead, mask_rcnn, project_masks_on_boxes
from otus.parts.batching import Target
from otus.parts.heads.box_head import Assignment, BoxHead
from otus.parts.regions.roi_features import RoIPooler
from otus.structures import Categories, KeypointNames


def regions(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corner, corner + 0.5 + torch.rand(count, 2, generator=generator) * 50], dim=1)


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_cells_of_keypoints_are_torchvisions(seed):
    boxes = regions(6, seed)
    generator = torch.Generator().manual_seed(seed)
    keypoints = torch.rand(6, 5, 3, generator=generator) * 80
    keypoints[..., 2] = torch.randint(0, 3, (6, 5), generator=generator)
    keypoints[:, 0, :2] = boxes[:, 2:]  # on the far corner, which still belongs to the last cell
    keypoints[:, 1, :2] = boxes[:, :2]
    cells, inside = keypoints_to_heatmap(keypoints, boxes, heatmap_size=56)
    expected, valid = reference.keypoints_to_heatmap(keypoints, boxes, 56)
    assert torch.equal(cells, expected)
    assert torch.equal(inside, valid.bool())
    labelled = keypoints[:, 0, 2] > 0
    assert (cells[labelled, 0] == 56 * 56 - 1).all()


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=15, deadline=None)
def test_predicted_keypoints_are_torchvisions(seed):
    boxes = regions(5, seed)
    logits = torch.randn(5, 3, 14, 14, generator=torch.Generator().manual_seed(seed))
    keypoints = heatmaps_to_keypoints(logits, boxes)
    points, scores = reference.heatmaps_to_keypoints(logits, boxes)
    torch.testing.assert_close(keypoints[..., :2], points[..., :2])
    torch.testing.assert_close(keypoints[..., 3], scores)
    assert (keypoints[..., 2] == 2).all()
    assert heatmaps_to_keypoints(logits[:0], boxes[:0]).shape == (0, 3, 4)


def test_cut_masks_are_torchvisions():
    masks = torch.rand(4, 90, 90) > 0.5
    boxes, matches = regions(7, 1), torch.tensor([3, 0, 0, 2, 3, 0, 2])
    expected = reference.project_masks_on_boxes(masks.byte(), boxes, matches, 28)
    torch.testing.assert_close(project_masks_on_boxes(masks, matches, boxes, output_size=28), expected)


def test_an_object_without_a_mask_adds_none_to_the_loss():
    torch.manual_seed(0)
    head = MaskHead(4, (1, 2), RoIPooler(14, strides=(4,)), hidden_channels=4)
    maps = [torch.randn(1, 4, 12, 12)]
    boxes = torch.tensor([[0.0, 0, 20, 20], [20, 20, 44, 44]])
    masks = torch.zeros(2, 48, 48, dtype=torch.bool)
    masks[0, 2:18, 2:18] = True

    def loss(count: int, target_masks: torch.Tensor) -> torch.Tensor:
        labels, class_indices = torch.tensor([0, 1])[:count], torch.tensor([1, 2])[:count]
        target = Target(boxes[:count], labels, boxes[:0], masks=target_masks)
        return head.losses(maps, [Assignment(boxes[:count], torch.arange(count), class_indices)], [target])["mask"]

    with_its_neighbour = loss(2, masks)
    assert with_its_neighbour > 0
    torch.testing.assert_close(with_its_neighbour, loss(1, masks[:1]))
    assert loss(2, torch.zeros_like(masks)) == 0


def test_keypoints_of_another_number_are_refused():
    head = KeypointHead(4, 3, RoIPooler(14, strides=(4,)), hidden_channels=4, num_convs=1)
    box = torch.tensor([[0.0, 0, 9, 9]])
    target = Target(box, torch.zeros(1, dtype=torch.int64), box[:0], keypoints=torch.ones(1, 17, 3))
    assignment = Assignment(box, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    with pytest.raises(ShapeError, match="this model expects 3 per object, the sample has 17"):
        head.losses([torch.zeros(1, 4, 8, 8)], [assignment], [target])


def test_heads_need_shared_maps_and_categories_with_keypoints():
    class Crops(nn.Module):
        pass

    detector = RegionDetector(
        categories=Categories(("cat",)),
        proposer=nn.Identity(),
        region_features=Crops(),
        box_head=BoxHead(nn.Identity(), in_features=4, class_indices=(1,)),
    )
    with pytest.raises(UsageError, match="needs RoIFeatures, which share feature maps, got Crops"):
        mask_rcnn(detector)
    with pytest.raises(ShapeError, match="expected a category with keypoints, got none among cat"):
        keypoint_rcnn(detector)
    points = (("cat", KeypointNames(("nose",))), ("dog", KeypointNames(("nose", "tail"))))
    detector.categories = Categories(("cat", "dog"), keypoints=points)
    with pytest.raises(ShapeError, match="the same number for all categories that have keypoints, got cat 1, dog 2"):
        keypoint_rcnn(detector)


def test_a_limit_on_the_masks_learned_from_keeps_every_object_in_reach() -> None:
    head = MaskHead(4, (1,), RoIPooler(4, strides=(8,)), hidden_channels=4, max_masks_per_image=3)
    side = torch.arange(1.0, 8.0)
    regions = torch.stack([torch.zeros(7), torch.zeros(7), side * 4, side * 4], dim=1)
    assignment = Assignment(regions, torch.arange(7) - 1, (torch.arange(7) > 0).long())  # the first is background
    masks = torch.ones(6, 32, 32, dtype=torch.bool)
    masks[1] = False  # missing
    target = Target(regions[1:], torch.zeros(6, dtype=torch.int64), torch.zeros(0, 4), masks)
    pool = head.roi_pooler.__call__
    pooled_boxes: list[torch.Tensor] = []

    class Watched(RoIPooler):
        def __call__(self, maps, boxes):
            pooled_boxes.extend(boxes)
            return pool(maps, boxes)

    head.roi_pooler = Watched(4, strides=(8,))
    assert head.losses([torch.zeros(1, 4, 4, 4)], [assignment], [target])["mask"].isfinite()
    torch.testing.assert_close(pooled_boxes[0], regions[[1, 4, 6]])  # of 1, 3, 4, 5, 6: first, middle and last


def test_a_further_head_leaves_the_detector_as_it_was():
    detector = faster_rcnn_efficientnet_lite0_fpn(Categories(("cat",)))
    with_masks = mask_rcnn(detector, hidden_channels=8)
    assert detector.mask_head is None
    assert with_masks.mask_head is not None
    assert with_masks.box_head is detector.box_head
    assert with_masks.postprocess == detector.postprocess
