"""Preprocessing against torchvision's, and results mapped back to the original image."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from otus.data.sample import Sample
from otus.data.scenes.generator import Scenes
from otus.data.tensors import bounding_boxes, to_tensors
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
def test_images_and_targets_are_prepared_as_torchvision_does(height, width):
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
    restored = preprocess.undo(Instances(boxes, [0, 1], frame, keypoints=points, masks=masks, scores=[1, 1]), size_hw)
    before = sample(height, width)
    assert restored.size_hw == size_hw
    np.testing.assert_allclose(restored.boxes_xyxy, before["boxes"].numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(restored.keypoints[..., :2], before["keypoints"].numpy(), rtol=1e-4, atol=1e-4)
    assert (restored.keypoints[..., 2] == 2).all()
    assert restored.masks.size_hw == size_hw
    assert restored.masks.form == "low_resolution"


def test_dense_masks_come_back_by_nearest_pixel():
    dense = np.zeros((1, 4, 6), dtype=bool)
    dense[0, :2, :3] = True
    restored = Preprocess().undo(Instances([[0, 0, 3, 2]], [0], (4, 6), masks=Masks.from_dense(dense)), (8, 12))
    np.testing.assert_array_equal(restored.masks.dense()[0], np.kron(dense[0], np.ones((2, 2), dtype=bool)))
    assert restored.boxes_xyxy.tolist() == [[0, 0, 6, 4]]


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


@pytest.mark.parametrize("boxes", ["modal", "amodal"])
@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(shorter_side=60, longer_side=90),
        Preprocess(shorter_side=300, longer_side=500),
        Preprocess(fixed_hw=(61, 50), antialias=True),
        Preprocess(),
    ],
)
def test_preparing_a_sample_at_once_is_the_same_to_the_bit(preprocess, boxes):
    scene = Scenes(1, seed=3).scene(0)
    assert scene.instances is not None
    assert len(scene.instances) > 2
    columns = {"proposals_xyxy": np.array([[0.0, 1, 30, 40]])}
    for masks in (scene.instances.masks.to_rle(), Masks.from_dense(scene.instances.masks.dense())):
        original = replace(scene, instances=replace(scene.instances, masks=masks), columns=columns)
        step_by_step, at_once = (
            preprocess.sample(to_tensors(original, boxes=boxes)),
            preprocess.prepare(original, boxes=boxes),
        )
        assert step_by_step.keys() == at_once.keys()
        for name, value in step_by_step.items():
            if isinstance(value, Tensor):
                assert type(at_once[name]) is type(value)
                assert torch.equal(at_once[name], value), name
            else:
                assert at_once[name] == value


@pytest.mark.parametrize("antialias", [False, True])
def test_an_image_prepared_in_place_is_what_torchvisions_order_gives(antialias):
    image = torch.rand(3, 97, 130)
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    options = {"mode": "bilinear", "align_corners": False, "antialias": antialias}
    expected = torch.nn.functional.interpolate(((image - mean) / std)[None], (50, 60), **options)[0]
    assert torch.equal(Preprocess(fixed_hw=(50, 60), antialias=antialias).apply(image), expected)


def test_masks_of_a_large_image_are_never_made_at_its_size():
    """300 masks of 3000 x 4000 pixels would be 3.6 GB."""
    ring = np.array([[0, 0], [50, 10], [40, 60], [5, 45]], dtype=np.float64)
    polygons = [[ring + np.array([160 * (i % 20), 160 * (i // 20)])] for i in range(300)]
    size_hw = (3000, 4000)
    masks = Masks.from_polygons(polygons, size_hw)
    instances = Instances(masks.boxes_xyxy(), np.zeros(300), size_hw, masks=masks)
    sample = Sample(np.zeros((*size_hw, 3), np.uint8), "large", instances=instances)
    tracemalloc.start()
    prepared = Preprocess(shorter_side=150, longer_side=200).prepare(sample)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert prepared["masks"].shape == (300, 150, 200)
    assert prepared["masks"].flatten(1).any(dim=1).all()
    assert peak < 100e6


def test_a_large_image_is_there_as_floats_once():
    class LargeStorages(TorchDispatchMode):
        """Keeps all float memory of an image's size, so that no address comes again."""

        def __init__(self) -> None:
            super().__init__()
            self.kept: dict[int, torch.Tensor] = {}

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.numel() >= 3 * 300 * 400:
                self.kept[result.untyped_storage().data_ptr()] = result
            return result

    with LargeStorages() as storages:
        Preprocess(shorter_side=30, longer_side=40).prepare(Sample(np.zeros((300, 400, 3), np.uint8), "large"))
    assert len(storages.kept) == 1
