"""Region-based detectors against torchvision's: with the same weights, equal predictions and losses."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.models import detection as reference_models
from torchvision.models.detection import backbone_utils
from torchvision.models.detection import keypoint_rcnn as keypoint_reference
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d

from otus.data.tensors import TensorSample, bounding_boxes
from otus.detection.region_based import faster_rcnn
from otus.detection.region_based.region_detector import RegionDetector
from otus.errors import CheckpointError
from otus.instance import keypoint_rcnn, mask_rcnn
from otus.parts.backbones import Freezing
from otus.parts.boxes.matching import NEGATIVE, NEUTRAL
from otus.parts.boxes.sampling import BalancedSampler
from otus.parts.preprocess import Preprocess
from otus.structures import Categories, Instances
from otus.zoo.checkpoint import load_into
from otus.zoo.coco import COCO, COCO_IDS, COCO_PERSON
from otus.zoo.models import build_model
from otus.zoo.torchvision_checkpoints import read_torchvision_detector

BUILDERS: dict[str, Callable[..., RegionDetector]] = {
    "fasterrcnn_resnet50_fpn": faster_rcnn.faster_rcnn_resnet50_fpn,
    "fasterrcnn_resnet50_fpn_v2": faster_rcnn.faster_rcnn_resnet50_fpn_v2,
    "fasterrcnn_mobilenet_v3_large_fpn": faster_rcnn.faster_rcnn_mobilenet_v3_large_fpn,
    "fasterrcnn_mobilenet_v3_large_320_fpn": faster_rcnn.faster_rcnn_mobilenet_v3_large_320_fpn,
    "maskrcnn_resnet50_fpn": mask_rcnn.mask_rcnn_resnet50_fpn,
    "maskrcnn_resnet50_fpn_v2": mask_rcnn.mask_rcnn_resnet50_fpn_v2,
    "keypointrcnn_resnet50_fpn": keypoint_rcnn.keypoint_rcnn_resnet50_fpn,
}
LOSSES = {
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
    "loss_keypoint": "keypoints",
}
FEW = {"rpn_post_nms_top_n_test": 80, "box_detections_per_img": 12}
FEW_TO_LEARN_FROM = {"rpn_post_nms_top_n_train": 150, "box_batch_size_per_image": 24}
NO_CATEGORY = sorted(set(range(1, 91)) - set(COCO_IDS))


def photos(*sizes_hw: tuple[int, int]) -> list[Tensor]:
    """Return images of coloured rectangles on noise, which random weights can distinguish."""
    generator = torch.Generator().manual_seed(3)
    images = []
    for height, width in sizes_hw:
        image = torch.rand(3, height, width, generator=generator) * 0.2
        for _ in range(12):
            y, x = (int(torch.randint(side - 8, (), generator=generator)) for side in (height, width))
            h, w = (int(torch.randint(8, 60, (), generator=generator)) for _ in range(2))
            image[:, y : y + h, x : x + w] = torch.rand(3, 1, 1, generator=generator)
        images.append(image)
    return images


def freeze(module: nn.Module, eps: float) -> None:
    """Freeze the norms, as torchvision does if weights are given."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze(child, eps)


def reference(name: str, images: Sequence[Tensor], *, eps: float = 1e-5, **arguments: int) -> nn.Module:
    """Return torchvision's model with random weights, scaled so that it detects many objects of many categories."""
    torch.manual_seed(0)
    model = getattr(reference_models, name)(weights=None, weights_backbone=None, **arguments)
    return prepared(model, images, frozen=not name.endswith("_v2"), eps=eps)


def prepared(model: nn.Module, images: Sequence[Tensor], *, frozen: bool, eps: float = 1e-5) -> nn.Module:
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    vectors: list[Tensor] = []
    predictor = model.roi_heads.box_predictor
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.1)
    nn.init.normal_(model.rpn.head.bbox_pred.weight, std=0.02)
    with torch.inference_mode():
        model.backbone.train()  # one pass with momentum 1 leaves plausible statistics
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.backbone(model.transform(list(images))[0].tensors)
        model.backbone.eval()
        if frozen:
            freeze(model.backbone.body, eps)
        hook = predictor.register_forward_pre_hook(lambda _, inputs: vectors.append(inputs[0]))
        detections, model.roi_heads.detections_per_img = model.roi_heads.detections_per_img, 1
        model(list(images))
        model.roi_heads.detections_per_img = detections
        hook.remove()
        spread = (vectors[0] - vectors[0].mean(dim=0)).norm(dim=1).mean()
        nn.init.normal_(predictor.cls_score.weight, std=4 / float(spread))
        nn.init.normal_(predictor.bbox_pred.weight, std=1 / float(spread))
        predictor.cls_score.bias -= predictor.cls_score.weight @ vectors[0].mean(dim=0)
        predictor.bbox_pred.bias -= predictor.bbox_pred.weight @ vectors[0].mean(dim=0)
    return model


def all_learns(
    build: Callable[..., RegionDetector], categories: Categories, arguments: dict[str, Any]
) -> RegionDetector:
    """Return arguments that train all stages, with norms frozen with the checkpoint's eps, if any."""
    norms = "freezing" in arguments
    freezing = Freezing(norms=norms, level=0, **arguments.get("freezing", {}))
    return build(categories, **{**arguments, "freezing": freezing})


def ours(name: str, state: dict[str, Tensor], *, sha256: str | None = None) -> RegionDetector:
    checkpoint = read_torchvision_detector(state, sha256=sha256)
    model = all_learns(BUILDERS[name], COCO_PERSON if name.startswith("keypoint") else COCO, checkpoint.arguments)
    load_into(model, checkpoint.state, source=name)
    return model


def predict(model: RegionDetector, images: Sequence[Tensor], preprocess: Preprocess) -> list[Instances]:
    found = model.predict([preprocess.sample({"image": image}) for image in images])
    return [preprocess.undo(one, (image.shape[1], image.shape[2])) for one, image in zip(found, images, strict=True)]


def assert_equal(found: Instances, expected: dict[str, Tensor], *, class_indices: Sequence[int]) -> None:
    assert len(found) == len(expected["boxes"])
    np.testing.assert_array_equal(np.array(class_indices)[found.labels], expected["labels"].numpy())
    np.testing.assert_allclose(found.scores, expected["scores"].numpy(), atol=1e-4)
    np.testing.assert_allclose(found.boxes_xyxy, expected["boxes"].numpy(), atol=1e-4, rtol=1e-6)
    if "masks" in expected:
        assert found.masks is not None
        np.testing.assert_allclose(found.masks.probabilities(), expected["masks"][:, 0].numpy(), atol=1e-4)
    if "keypoints" in expected:
        assert found.keypoints is not None
        np.testing.assert_allclose(
            found.keypoints[..., :2], expected["keypoints"][..., :2].numpy(), atol=1e-4, rtol=1e-6
        )
        np.testing.assert_allclose(found.keypoint_scores, expected["keypoints_scores"].numpy(), atol=1e-4, rtol=1e-5)


def compare(
    name: str, images: Sequence[Tensor], *, shorter_side: int, longer_side: int, eps: float = 1e-5, **fewer: int
) -> None:
    model = reference(name, images, eps=eps, min_size=shorter_side, max_size=longer_side, **fewer)
    if not name.startswith("keypoint"):
        model.roi_heads.box_predictor.cls_score.bias.data[NO_CATEGORY] = -1e4  # trained weights never name these
    with torch.inference_mode():
        expected = model(list(images))
    categories = {int(label) for one in expected for label in one["labels"]}
    assert sum(len(one["boxes"]) for one in expected) >= 20
    assert len(categories) >= (1 if name.startswith("keypoint") else 5)
    sha256 = "258fb6c6" + "0" * 56 if eps == 0 else None
    mine = ours(name, model.state_dict(), sha256=sha256)
    if fewer:
        mine.proposer.post_nms_top_n = fewer["rpn_post_nms_top_n_test"]
        mine.postprocess = replace(mine.postprocess, max_detections=fewer["box_detections_per_img"])
    preprocess = Preprocess(shorter_side=shorter_side, longer_side=longer_side)
    for found, one in zip(predict(mine, images, preprocess), expected, strict=True):
        assert_equal(found, one, class_indices=(1,) if name.startswith("keypoint") else COCO_IDS)


@pytest.mark.parametrize("name", BUILDERS)
def test_small_images_equal_torchvision(name):
    eps = 0.0 if name == "fasterrcnn_resnet50_fpn" else 1e-5  # one of them as the hash of its checkpoint wants it
    compare(name, photos((90, 128), (110, 75)), shorter_side=96, longer_side=150, eps=eps, **FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_usual_images_equal_torchvision(name):
    small = "320" in name
    sides = {"shorter_side": 320, "longer_side": 640} if small else {"shorter_side": 800, "longer_side": 1333}
    compare(name, photos((480, 640), (500, 353)), **sides)


def test_slots_without_category_stay_in_the_softmax_and_are_never_reported():
    name, images = "fasterrcnn_mobilenet_v3_large_320_fpn", photos((120, 170))
    model = reference(name, images, box_detections_per_img=10**6)
    with torch.inference_mode():
        expected = model(images)[0]
    named = torch.isin(expected["labels"], torch.tensor(COCO_IDS))
    assert 20 <= int(named.sum()) < len(named)
    mine = ours(name, model.state_dict())
    mine.postprocess = replace(mine.postprocess, max_detections=10**6)
    (found,) = predict(mine, images, Preprocess(shorter_side=320, longer_side=640))
    assert_equal(found, {key: value[named] for key, value in expected.items()}, class_indices=COCO_IDS)


class SameChoice:
    """Replaces torchvision's sampler by that of Otus."""

    def __init__(self, sampler: BalancedSampler, generator: torch.Generator) -> None:
        self.sampler, self.generator = sampler, generator

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for of_image in labels:
            matches = torch.where(of_image > 0, 0, torch.where(of_image == 0, NEGATIVE, NEUTRAL))
            for chosen, kept in zip(self.sampler(matches, generator=self.generator), masks, strict=True):
                kept.append(torch.zeros(len(matches), dtype=torch.uint8).index_fill(0, chosen, 1))
        return masks


def targets(images: Sequence[Tensor], categories: int) -> list[TensorSample]:
    generator = torch.Generator().manual_seed(5)
    samples: list[TensorSample] = []
    for image, count in zip(images, (4, 2), strict=False):
        size_hw = (image.shape[1], image.shape[2])
        corner = torch.rand(count, 2, generator=generator) * 60
        boxes = torch.cat([corner, corner + 15 + torch.rand(count, 2, generator=generator) * 30], dim=1)
        masks = torch.zeros(count, *size_hw, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1 : y2 - 3, x1 + 2 : x2] = True
        span = (boxes[:, 2:] - boxes[:, :2])[:, None]
        points = boxes[:, None, :2] + span * (torch.rand(count, 17, 2, generator=generator) * 1.2 - 0.1)
        samples.append(
            {
                "image": image,
                "boxes": bounding_boxes(boxes, size_hw),
                "labels": torch.randint(0, categories, (count,), generator=generator),
                "masks": tv_tensors.Mask(masks),
                "keypoints": tv_tensors.KeyPoints(points, canvas_size=size_hw),
                "visibility": torch.randint(0, 3, (count, 17), generator=generator),
            }
        )
    return samples


def mobilenet_with(head: str, **arguments: int) -> nn.Module:
    """Return torchvision's model with a mask or keypoint head and a small backbone, for fast tests."""
    backbone = backbone_utils.mobilenet_backbone(
        backbone_name="mobilenet_v3_large", weights=None, fpn=True, norm_layer=nn.BatchNorm2d, trainable_layers=6
    )
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),) * 3, ((0.5, 1.0, 2.0),) * 3)
    arguments |= {"rpn_anchor_generator": anchors, "rpn_score_thresh": 0.05}
    if head == "mask":
        return reference_models.MaskRCNN(backbone, 91, **arguments)
    narrow = keypoint_reference.KeypointRCNNHeads(256, (32,) * 8), keypoint_reference.KeypointRCNNPredictor(32, 17)
    return reference_models.KeypointRCNN(
        backbone, 2, keypoint_head=narrow[0], keypoint_predictor=narrow[1], **arguments
    )


@pytest.mark.parametrize("head", ["mask", "keypoint"])
def test_losses_are_torchvisions_on_the_same_regions(head):
    images = photos((120, 170), (150, 97))
    torch.manual_seed(0)
    model = prepared(mobilenet_with(head, min_size=128, max_size=200, **FEW_TO_LEARN_FROM), images, frozen=True)
    checkpoint = read_torchvision_detector(model.state_dict())
    build = faster_rcnn.faster_rcnn_mobilenet_v3_large_fpn
    if head == "mask":
        mine = mask_rcnn.mask_rcnn(all_learns(build, COCO, checkpoint.arguments))
    else:
        detector = all_learns(build, COCO_PERSON, checkpoint.arguments)
        mine = keypoint_rcnn.keypoint_rcnn(detector, hidden_channels=32)
    load_into(mine, checkpoint.state, source=head)
    compare_losses(model, mine, images, class_indices=COCO_IDS if head == "mask" else (1,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "keypointrcnn_resnet50_fpn"])
def test_losses_equal_torchvision(name):
    images = photos((120, 170), (150, 97))
    model = reference(name, images, min_size=128, max_size=200, **FEW_TO_LEARN_FROM)
    class_indices = (1,) if name.startswith("keypoint") else COCO_IDS
    compare_losses(model, ours(name, model.state_dict()), images, class_indices=class_indices)


def compare_losses(
    model: nn.Module, mine: RegionDetector, images: list[Tensor], *, class_indices: Sequence[int]
) -> None:
    mine.proposer.train_post_nms_top_n = FEW_TO_LEARN_FROM["rpn_post_nms_top_n_train"]
    mine.box_head.sampler = replace(
        mine.box_head.sampler, batch_size_per_image=FEW_TO_LEARN_FROM["box_batch_size_per_image"]
    )
    generator = torch.Generator().manual_seed(7)
    model.rpn.fg_bg_sampler = SameChoice(mine.proposer.sampler, generator)
    model.roi_heads.fg_bg_sampler = SameChoice(mine.box_head.sampler, generator)
    samples = targets(images, len(class_indices))
    theirs = [
        {
            "boxes": sample["boxes"].as_subclass(Tensor),
            "labels": torch.tensor(class_indices)[sample["labels"]],
            "masks": sample["masks"].as_subclass(Tensor).byte(),
            "keypoints": torch.cat([sample["keypoints"].as_subclass(Tensor), sample["visibility"][..., None]], dim=2),
        }
        for sample in samples
    ]
    expected = model.train()(images, theirs)
    preprocess = Preprocess(shorter_side=128, longer_side=200)
    found = mine.train().losses(
        [preprocess.sample(sample) for sample in samples], generator=torch.Generator().manual_seed(7)
    )
    assert set(found) == {LOSSES[key] for key in expected}
    for key, value in expected.items():
        assert float(value.detach()) > 0
        torch.testing.assert_close(found[LOSSES[key]], value, rtol=1e-5, atol=1e-5)
    sum(expected.values()).backward()
    sum(found.values()).backward()
    for ours_name, theirs_name in (
        ("proposer.bbox_pred.weight", "rpn.head.bbox_pred.weight"),
        ("region_features.pyramid.inner_blocks.0.0.weight", "backbone.fpn.inner_blocks.0.0.weight"),
    ):
        gradient = mine.get_parameter(ours_name).grad
        torch.testing.assert_close(gradient, model.get_parameter(theirs_name).grad, rtol=1e-3, atol=1e-5)


def test_both_generations_of_keys_are_read():
    model = reference_models.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    state = model.state_dict()
    older = {
        re.sub(
            r"mask_head\.(\d)\.0\.",
            lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}.",
            re.sub(r"(_blocks\.\d|rpn\.head\.conv\.0)\.0\.", r"\1.", key).replace("head.conv.0.", "head.conv."),
        ): tensor
        for key, tensor in state.items()
    }
    assert "rpn.head.conv.weight" in older
    assert "roi_heads.mask_head.mask_fcn1.weight" in older
    assert "backbone.fpn.layer_blocks.3.bias" in older
    new, old = read_torchvision_detector(state), read_torchvision_detector(older)
    assert new.state.keys() == old.state.keys()
    assert all(new.state[key] is old.state[key] for key in new.state)


def test_the_state_of_another_model_is_an_error():
    with pytest.raises(CheckpointError, match=r"box_predictor.cls_score.weight.*got 1 others such as head"):
        read_torchvision_detector({"head.weight": torch.zeros(1)})
    state = reference_models.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None).state_dict()
    checkpoint = read_torchvision_detector(state)
    other = build_model("faster_rcnn_resnet50_fpn", COCO, checkpoint.arguments)
    before = other.get_parameter("box_head.cls_score.weight").clone()
    with pytest.raises(CheckpointError, match="missing"):
        load_into(other, checkpoint.state, source="mobilenet.pth")
    torch.testing.assert_close(other.get_parameter("box_head.cls_score.weight").data, before.data)
