"""Preparation against torchvision's, and the way back."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from otus.data.tensors import bounding_boxes
from otus.errors import UsageError
from otus.parts.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from otus.structures import Instances, Masks

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))


def sample(height: int, width: int) -> dict:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return {
        "image": tv_tensors.Image(torch.rand(3, height, width, generator=generator)),
        "key": "a",
        "boxes": bounding_boxes([[0, 0, width, height], [1, 2, width / 2, height / 2]], (height, width)),
        "labels": torch.tensor([0, 1]),
        "areas": torch.tensor([float(height * width), 1.0]),
        "masks": tv_tensors.Mask(torch.rand(2, height, width, generator=generator) > 0.5),
        "keypoints": tv_tensors.KeyPoints(torch.rand(2, 3, 2, generator=generator) * 20, canvas_size=(height, width)),
        "proposals": bounding_boxes([[0, 0, 4, 4]], (height, width)),
    }


@pytest.mark.parametrize(("height", "width"), [(60, 91), (120, 50), (300, 40), (96, 128)])
def test_pictures_and_targets_are_prepared_as_torchvision_does(height, width):
    reference = GeneralizedRCNNTransform(96, 150, list(IMAGENET_MEAN), list(IMAGENET_STD)).eval()
    before = sample(height, width)
    target = {name: before[name].as_subclass(Tensor) for name in ("boxes", "masks", "keypoints")}
    batch, targets = reference([before["image"].as_subclass(Tensor)], [target])
    prepared = Preprocess(shorter_side=96, longer_side=150).sample(before)
    h, w = batch.image_sizes[0]
    assert prepared["image"].shape == (3, h, w)
    torch.testing.assert_close(prepared["image"].as_subclass(Tensor), batch.tensors[0, :, :h, :w])
    torch.testing.assert_close(prepared["boxes"].as_subclass(Tensor), targets[0]["boxes"])
    torch.testing.assert_close(prepared["keypoints"].as_subclass(Tensor), targets[0]["keypoints"])
    assert (prepared["masks"].as_subclass(Tensor).byte() != targets[0]["masks"]).float().mean() < 0.01
    assert prepared["boxes"].canvas_size == (h, w)
    torch.testing.assert_close(prepared["proposals"][0, 2], torch.tensor(4.0 * w / width))
    torch.testing.assert_close(prepared["areas"][0], torch.tensor(float(h * w)))
    assert before["image"].shape == (3, height, width)


@given(SIZES, st.integers(1, 200), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_sides_keep_their_limits(size_hw, shorter, more):
    height, width = Preprocess(shorter_side=shorter, longer_side=shorter + more).size_of(size_hw)
    assert min(height, width) >= 1
    assert max(height, width) <= shorter + more
    assert min(height, width) <= shorter


@given(SIZES)
@settings(max_examples=25, deadline=None)
def test_undo_brings_boxes_points_and_masks_back(size_hw):
    height, width = size_hw
    preprocess = Preprocess(shorter_side=64, longer_side=100)
    prepared = preprocess.sample(sample(height, width))
    frame = (prepared["image"].shape[1], prepared["image"].shape[2])
    boxes = prepared["boxes"].numpy()
    points = np.concatenate([prepared["keypoints"].numpy(), np.full((2, 3, 1), 2.0, dtype=np.float32)], axis=2)
    masks = Masks.from_probabilities(np.ones((2, 28, 28), dtype=np.float32), boxes, frame)
    found = preprocess.undo(Instances(boxes, [0, 1], frame, keypoints=points, masks=masks, scores=[1, 1]), size_hw)
    before = sample(height, width)
    assert found.size_hw == size_hw
    np.testing.assert_allclose(found.boxes_xyxy, before["boxes"].numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.keypoints[..., :2], before["keypoints"].numpy(), rtol=1e-4, atol=1e-4)
    assert (found.keypoints[..., 2] == 2).all()
    assert found.masks.size_hw == size_hw
    assert found.masks.form == "low_resolution"


def test_dense_masks_come_back_by_nearest_pixel():
    dense = np.zeros((1, 4, 6), dtype=bool)
    dense[0, :2, :3] = True
    found = Preprocess().undo(Instances([[0, 0, 3, 2]], [0], (4, 6), masks=Masks.from_dense(dense)), (8, 12))
    np.testing.assert_array_equal(found.masks.dense()[0], np.kron(dense[0], np.ones((2, 2), dtype=bool)))
    assert found.boxes_xyxy.tolist() == [[0, 0, 6, 4]]


def test_a_fixed_size_forgets_the_aspect():
    preprocess = Preprocess(fixed_hw=(30, 50), antialias=True)
    assert preprocess.apply(torch.rand(3, 200, 10)).shape == (3, 30, 50)


def test_antialiasing_smooths():
    stripes = (torch.arange(400) % 2).float().expand(3, 400, 400)
    plain = Preprocess(fixed_hw=(60, 60)).apply(stripes)
    smooth = Preprocess(fixed_hw=(60, 60), antialias=True).apply(stripes)
    assert float(smooth.std(dim=(1, 2)).max()) < 0.2 < float(plain.std(dim=(1, 2)).max())


def test_it_goes_through_json():
    preprocess = Preprocess(fixed_hw=(30, 50), mean=(0.5, 0.5, 0.5), antialias=True)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess


@pytest.mark.parametrize(
    "values", [{"shorter_side": 3}, {"longer_side": 3}, {"shorter_side": 3, "longer_side": 4, "fixed_hw": (1, 1)}]
)
def test_half_a_rule_is_refused(values):
    with pytest.raises(UsageError, match="shorter_side and longer_side, or fixed_hw"):
        Preprocess(**values)
