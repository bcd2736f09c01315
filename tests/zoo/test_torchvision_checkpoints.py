"""Whole models against torchvision's: the same weights, the same answers and the same losses."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as reference_models
from torchvision.ops import FrozenBatchNorm2d

from otus.detection import faster_rcnn
from otus.detection.region_detector import RegionDetector
from otus.instance import keypoint_rcnn, mask_rcnn
from otus.parts.preprocess import Preprocess
from otus.structures import Instances
from otus.zoo.checkpoint import load_into
from otus.zoo.coco import COCO, COCO_IDS, COCO_PERSON
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
FEW = {"rpn_post_nms_top_n_test": 120, "box_detections_per_img": 25}
NO_CATEGORY = sorted(set(range(1, 91)) - set(COCO_IDS))


def pictures(*sizes_hw: tuple[int, int]) -> list[Tensor]:
    """Coloured rectangles on noise: what random weights tell apart."""
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
    """Frozen norms, as torchvision builds these models when it is given weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze(child, eps)


def reference(name: str, images: Sequence[Tensor], *, eps: float = 1e-5, **arguments: int) -> nn.Module:
    """torchvision's own model of random weights, scaled so that it finds many objects of many categories."""
    torch.manual_seed(0)
    model = getattr(reference_models, name)(weights=None, weights_backbone=None, **arguments).eval()
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
        if not name.endswith("_v2"):
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


def ours(name: str, state: dict[str, Tensor], *, sha256: str | None = None) -> RegionDetector:
    checkpoint = read_torchvision_detector(state, sha256=sha256)
    arguments: dict[str, object] = {"class_slots": checkpoint.class_slots, "frozen_level": 0}
    if not name.endswith("_v2"):
        arguments["norm_eps"] = checkpoint.norm_eps
    model = BUILDERS[name](COCO_PERSON if name.startswith("keypoint") else COCO, **arguments)
    load_into(model, checkpoint.state, source=name)
    return model


def predict(model: RegionDetector, images: Sequence[Tensor], preprocess: Preprocess) -> list[Instances]:
    found = model.predict([preprocess.sample({"image": image}) for image in images])
    return [preprocess.undo(one, (image.shape[1], image.shape[2])) for one, image in zip(found, images, strict=True)]


def assert_equal(found: Instances, expected: dict[str, Tensor], *, slots: Sequence[int]) -> None:
    assert len(found) == len(expected["boxes"])
    np.testing.assert_array_equal(np.array(slots)[found.labels], expected["labels"].numpy())
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
    assert all(len(one["boxes"]) >= 20 for one in expected)
    assert len(categories) >= (1 if name.startswith("keypoint") else 5)
    sha256 = "258fb6c6" + "0" * 56 if eps == 0 else None
    mine = ours(name, model.state_dict(), sha256=sha256)
    if fewer:
        mine.proposer.count = fewer["rpn_post_nms_top_n_test"]
        mine.box_head.max_detections = fewer["box_detections_per_img"]
    preprocess = Preprocess(shorter_side=shorter_side, longer_side=longer_side)
    for found, one in zip(predict(mine, images, preprocess), expected, strict=True):
        assert_equal(found, one, slots=(1,) if name.startswith("keypoint") else COCO_IDS)


@pytest.mark.parametrize("name", BUILDERS)
def test_small_pictures_give_torchvisions_answers(name):
    compare(name, pictures((120, 170), (150, 97)), shorter_side=128, longer_side=200, **FEW)


def test_the_hash_of_a_checkpoint_says_its_eps():
    compare("fasterrcnn_resnet50_fpn", pictures((120, 170)), shorter_side=128, longer_side=200, eps=0.0, **FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_usual_pictures_give_torchvisions_answers(name):
    small = "320" in name
    sides = {"shorter_side": 320, "longer_side": 640} if small else {"shorter_side": 800, "longer_side": 1333}
    compare(name, pictures((480, 640), (500, 353)), **sides)
