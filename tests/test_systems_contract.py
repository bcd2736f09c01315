"""One contract for every trainable system: a new one adds a row to ``SYSTEMS``.

Trunks are tiny, so that each row takes seconds.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from otus.data.sample import Sample
from otus.data.tensors import TensorSample, bounding_boxes, to_tensors
from otus.detection.faster_rcnn import RegionProposalNetwork, faster_rcnn
from otus.detection.region_detector import RegionDetector
from otus.instance.keypoint_rcnn import keypoint_rcnn
from otus.instance.mask_rcnn import mask_rcnn
from otus.parts.anchors import Anchors
from otus.parts.backbones import LayeredTrunk
from otus.parts.feature_pyramid import FeaturePyramid
from otus.parts.preprocess import Preprocess
from otus.parts.region_features import RegionPooling, SharedMaps
from otus.structures import Categories, Instances, KeypointNames
from otus.zoo.checkpoint import CheckpointHeader, load_checkpoint, load_into, save_checkpoint

CATEGORIES = Categories(("bright", "dark"), keypoints=(("bright", KeypointNames(("corner", "centre"))),))


def tiny_trunk(levels: tuple[int, ...]) -> LayeredTrunk:
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU())

    layers = {"c1": block(3, 8), "c2": block(8, 16), "c3": block(16, 32), "c4": block(32, 32)}
    return LayeredTrunk(layers, levels=levels)


def pyramid_detector() -> RegionDetector:
    trunk = tiny_trunk((2, 3, 4))
    maps = SharedMaps(trunk, RegionPooling(7, strides=trunk.strides), pyramid=FeaturePyramid(trunk.channels, 16))
    proposer = RegionProposalNetwork(16, Anchors([[12], [24], [48], [96]]), count=50, training_count=50)
    return faster_rcnn(maps, proposer, CATEGORIES, box_features=32)


def single_map_detector() -> RegionDetector:
    trunk = tiny_trunk((3,))
    maps = SharedMaps(trunk, RegionPooling(7, strides=trunk.strides, method="pool"))
    proposer = RegionProposalNetwork(maps.out_channels, Anchors([[12, 24, 48]]), count=50, training_count=50)
    return faster_rcnn(maps, proposer, CATEGORIES, box_features=32)


SYSTEMS: dict[str, Callable[[], RegionDetector]] = {
    "faster_rcnn": pyramid_detector,
    "faster_rcnn_single_map": single_map_detector,
    "mask_rcnn": lambda: mask_rcnn(pyramid_detector(), width=8),
    "keypoint_rcnn": lambda: keypoint_rcnn(pyramid_detector(), width=8, depth=2),
    "mask_and_keypoint_rcnn": lambda: keypoint_rcnn(mask_rcnn(single_map_detector(), width=8), width=8, depth=2),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Such small networks only lose by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> RegionDetector:
    torch.manual_seed(0)
    return SYSTEMS[request.param]()


def picture(height: int, width: int, boxes: list[list[int]], labels: list[int], *, key: str = "made") -> TensorSample:
    """Bright and dark rectangles on grey noise, with masks and two keypoints each."""
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height)) * 0.1 + 0.4
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    points = torch.zeros(len(boxes), 2, 2)
    for i, ((x1, y1, x2, y2), label) in enumerate(zip(boxes, labels, strict=True)):
        image[:, y1:y2, x1:x2] = 1.0 - label
        masks[i, y1:y2, x1:x2] = True
        points[i] = torch.tensor([[x1, y1], [(x1 + x2) / 2, (y1 + y2) / 2]])
    return {
        "image": tv_tensors.Image((image - 0.5) / 0.25),
        "key": key,
        "boxes": bounding_boxes(np.array(boxes).reshape(-1, 4), (height, width)),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "is_crowd": torch.zeros(len(boxes), dtype=torch.bool),
        "masks": tv_tensors.Mask(masks),
        "keypoints": tv_tensors.KeyPoints(points, canvas_size=(height, width)),
        "visibility": torch.full((len(boxes), 2), 2),
    }


def pictures() -> list[TensorSample]:
    return [
        picture(64, 96, [[8, 8, 40, 30], [50, 20, 90, 60]], [0, 1]),
        picture(80, 48, [[4, 30, 30, 70]], [1]),
    ]


def losses(system: RegionDetector, samples: list[TensorSample]) -> dict[str, Tensor]:
    return system.train().losses(samples, generator=torch.Generator().manual_seed(1))


def equal(first: list[Instances], second: list[Instances]) -> bool:
    return all(
        np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.scores, b.scores)
        and (a.masks is None or np.array_equal(a.masks.dense(), b.masks.dense()))
        and (a.keypoints is None or np.array_equal(a.keypoints, b.keypoints))
        for a, b in zip(first, second, strict=True)
    )


def test_losses_are_finite_and_reach_every_parameter(system):
    found = losses(system, pictures())
    assert all(value.isfinite() and value.ndim == 0 for value in found.values())
    sum(found.values()).backward()
    without = [
        name for name, parameter in system.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not without


def test_losses_are_the_same_for_the_same_generator(system):
    first, second = losses(system, pictures()), losses(system, pictures())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("nothing", ["no_objects", "crowds_only", "boxes_without_area", "no_masks_no_keypoints"])
def test_losses_are_finite_where_there_is_little_to_learn(system, nothing):
    samples = pictures()
    for i, sample in enumerate(samples):
        if nothing == "no_objects":
            samples[i] = picture(64, 96, [], [])
        elif nothing == "crowds_only":
            sample["is_crowd"] = torch.ones_like(sample["is_crowd"])
        elif nothing == "boxes_without_area":
            sample["boxes"][:, 2] = sample["boxes"][:, 0]
        else:
            del sample["masks"], sample["keypoints"], sample["visibility"]
    found = losses(system, samples)
    assert all(value.isfinite() for value in found.values())
    sum(found.values()).backward()
    assert all(parameter.grad is not None for parameter in system.parameters() if parameter.requires_grad)
    if nothing != "no_masks_no_keypoints":
        assert float(found["box"].detach()) == 0


def test_a_crowd_teaches_neither_object_nor_background(system):
    crowded = picture(64, 64, [[0, 0, 64, 64]], [0])
    crowded["is_crowd"][:] = True
    found = losses(system, [crowded])
    inside = system.proposer.matcher(
        torch.tensor([[10.0, 10.0, 30.0, 30.0], [60.0, 0.0, 90.0, 64.0]]),
        torch.zeros(0, 4),
        crowds=torch.tensor([[0.0, 0.0, 64.0, 64.0]]),
    )
    assert inside.tolist() == [-2, -1]
    assert float(found["class"].detach()) == 0


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 2000), (33, 7), (65, 130)])
def test_any_size_is_predicted_and_learned_from(system, size_hw):
    (found,) = system.predict([{"image": torch.rand(3, *size_hw)}])
    assert found.size_hw == size_hw
    assert found.categories is CATEGORIES
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= np.array([size_hw[1], size_hw[0]] * 2)).all()
    assert all(value.isfinite() for value in losses(system, [picture(*size_hw, [], [])]).values())


def test_a_picture_of_one_pixel_goes_through_preprocessing(system):
    preprocess = Preprocess(shorter_side=64, longer_side=96)
    sample = to_tensors(Sample(np.zeros((1, 1, 3), dtype=np.uint8), "dot"))
    (found,) = system.predict([preprocess.sample(sample)])
    assert preprocess.undo(found, (1, 1)).size_hw == (1, 1)


def test_a_picture_is_answered_alike_alone_and_in_a_batch(system):
    samples = [picture(64, 96, [[8, 8, 40, 30]], [0]), picture(64, 96, [[50, 20, 90, 60]], [1])]
    together, alone = system.predict(samples), [system.predict([sample])[0] for sample in samples]
    for a, b in zip(together, alone, strict=True):
        assert len(a) == len(b) > 0
        np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy, atol=1e-3)


def test_prediction_is_deterministic_and_restores_the_mode_of_each_part(system):
    system.train()
    frozen = next(iter(system.region_features.trunk.children()))
    frozen.eval()
    assert equal(system.predict(pictures()), system.predict(pictures()))
    assert system.training
    assert not frozen.training
    assert system.box_head.training


def test_saved_and_loaded_it_answers_the_same(system, tmp_path, request):
    save_checkpoint(tmp_path / "tiny.safetensors", system.state_dict(), CheckpointHeader(categories=CATEGORIES))
    torch.manual_seed(1)
    other = SYSTEMS[request.node.callspec.params["system"]]()
    assert not equal(other.predict(pictures()), system.predict(pictures()))
    load_into(other, load_checkpoint(tmp_path / "tiny.safetensors")[0], source="tiny.safetensors")
    assert equal(other.predict(pictures()), system.predict(pictures()))


def test_the_record_of_a_pass_agrees_with_what_is_predicted(system):
    record = system.stages(pictures())
    found = system.predict(pictures())
    for i, (candidates, kept, one) in enumerate(zip(record.candidates, record.kept, found, strict=True)):
        np.testing.assert_array_equal(candidates[kept].boxes, one.boxes_xyxy)
        assert (candidates.scores > system.decision.score_threshold).all()
        regions = record.proposals.boxes[i]
        assert len(record.scores[i]) == len(regions) >= int(candidates.regions.max()) + 1
    assert set(record.milliseconds) >= {"batch", "maps", "proposals", "regions", "decision"}


def test_what_export_sees_agrees_with_what_is_predicted(system):
    samples = [picture(64, 96, [[8, 8, 40, 30]], [0]), picture(64, 96, [], [])]
    with torch.inference_mode():
        raw = system.eval()(torch.stack([sample["image"] for sample in samples]))
    found = system.predict(samples)
    for i, one in enumerate(found):
        np.testing.assert_allclose(raw["boxes"][raw["picture"] == i], one.boxes_xyxy, atol=1e-4)


def test_under_autocast_boxes_and_losses_stay_float32(system):
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(system, pictures())
        predicted = system.predict(pictures())
    assert all(value.dtype == torch.float32 and value.isfinite() for value in found.values())
    assert all(one.boxes_xyxy.dtype == np.float32 for one in predicted)


def test_a_tiny_set_is_overfitted(system):
    samples, steps = pictures()[:1], 250
    optimizer = torch.optim.AdamW(system.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        found = system.train().losses(samples, generator=torch.Generator().manual_seed(step))
        sum(found.values()).backward()
        nn.utils.clip_grad_norm_(system.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    (one,) = system.predict(samples)
    sure = one[one.scores > 0.5]
    sure, truth = sure[np.argsort(sure.labels)], samples[0]
    np.testing.assert_array_equal(sure.labels, truth["labels"])
    np.testing.assert_allclose(sure.boxes_xyxy, truth["boxes"], atol=4)
    if sure.masks is not None:
        drawn, masks = sure.masks.dense(), truth["masks"].numpy()
        assert ((drawn & masks).sum(axis=(1, 2)) / (drawn | masks).sum(axis=(1, 2)) > 0.8).all()
    if sure.keypoints is not None:
        np.testing.assert_allclose(sure.keypoints[..., :2], truth["keypoints"], atol=6)
