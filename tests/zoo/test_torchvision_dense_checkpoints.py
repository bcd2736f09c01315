"""Dense detectors against torchvision's: with the same weights, equal predictions and losses."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection as reference_models
from torchvision.models.detection import backbone_utils
from torchvision.models.detection import retinanet as retinanet_reference
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import otus
from otus.data.tensors import TensorSample, bounding_boxes
from otus.detection.single_stage import fcos, retinanet, ssd, ssdlite
from otus.detection.single_stage.dense_detector import DenseDetector
from otus.errors import CheckpointError
from otus.parts.backbones import Freezing, torchvision_backbone
from otus.parts.backbones.feature_pyramid import ConvolutionLevels, FeaturePyramid
from otus.parts.backbones.norms import FoldedNorm
from otus.parts.backbones.with_fpn import BackboneWithFPN
from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.locations import location_generator
from otus.parts.preprocess import Preprocess
from otus.zoo.checkpoint import load_into
from otus.zoo.coco import COCO, COCO_IDS
from otus.zoo.models import build_model, model_entry
from otus.zoo.torchvision_checkpoints import is_torchvision_detector
from otus.zoo.torchvision_dense_checkpoints import (
    DENSE_ZERO_EPS_SHA256,
    is_torchvision_dense_detector,
    read_torchvision_dense_detector,
)
from otus.zoo.weights import read_weights_file

BUILDERS: dict[str, Callable[..., DenseDetector]] = {
    "retinanet_resnet50_fpn": retinanet.retinanet_resnet50_fpn,
    "retinanet_resnet50_fpn_v2": retinanet.retinanet_resnet50_fpn_v2,
    "fcos_resnet50_fpn": fcos.fcos_resnet50_fpn,
    "ssd300_vgg16": ssd.ssd300_vgg16,
    "ssdlite320_mobilenet_v3_large": ssdlite.ssdlite320_mobilenet_v3_large,
}
SMALL = ("retinanet_resnet18", "retinanet_resnet18_v2", "fcos_resnet18")
"""The same models with a small backbone and a narrow pyramid, for fast tests."""
LOSSES = {"classification": "class", "bbox_regression": "box", "bbox_ctrness": "centerness"}
NO_CATEGORY = sorted(set(range(91)) - set(COCO_IDS))


def photos(*sizes_hw: tuple[int, int]) -> list[Tensor]:
    """Return images of coloured rectangles and noise, so that all locations differ."""
    generator = torch.Generator().manual_seed(3)
    images = []
    for height, width in sizes_hw:
        image = torch.rand(3, height, width, generator=generator) * 0.2
        for _ in range(12):
            y, x = (int(torch.randint(side - 8, (), generator=generator)) for side in (height, width))
            h, w = (int(torch.randint(8, 60, (), generator=generator)) for _ in range(2))
            image[:, y : y + h, x : x + w] += torch.rand(3, 1, 1, generator=generator)
        images.append(image)
    return images


def freeze(module: nn.Module, eps: float) -> None:
    """Freeze the norms, as torchvision does for RetinaNet and FCOS if weights are given."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze(child, eps)


def built(name: str, **arguments: int) -> nn.Module:
    """Return torchvision's model by name, or the small one of SMALL."""
    if name not in SMALL:
        return getattr(reference_models, name)(weights=None, weights_backbone=None, **arguments)
    backbone, width = models.resnet18(weights=None), 64
    extra = LastLevelP6P7(512 if name.endswith("_v2") else width, width)
    layers = {f"layer{i}": str(i) for i in (2, 3, 4)}
    backbone = backbone_utils.BackboneWithFPN(backbone, layers, [128, 256, 512], width, extra_blocks=extra)
    if name.startswith("fcos"):
        return reference_models.FCOS(backbone, 91, **arguments)
    head = retinanet_reference.RetinaNetHead(
        width, 9, 91, norm_layer=partial(nn.GroupNorm, 32) if name.endswith("_v2") else None
    )
    if name.endswith("_v2"):
        head.regression_head._loss_type = "giou"
    return reference_models.RetinaNet(backbone, 91, head=head, **arguments)


def ours_over_resnet18(
    name: str, *, class_indices: Sequence[int], freezing: dict[str, float] | None = None
) -> DenseDetector:
    backbone, version_2 = torchvision_backbone("resnet18", levels=(3, 4, 5)), name.endswith("_v2")
    if freezing is not None:
        Freezing(level=0, **freezing).apply(backbone)
    extra = ConvolutionLevels(512 if version_2 else 64, 64, from_backbone=version_2)
    maps = BackboneWithFPN(backbone, FeaturePyramid(backbone.channels, 64, extra_levels=extra))
    if name.startswith("fcos"):
        return fcos.fcos(maps, location_generator((8, 16, 32, 64, 128)), COCO, class_indices=class_indices)
    anchors = GridAnchorGenerator(retinanet.octave_scales(32, 64, 128, 256, 512))
    variant = {"head_norm": "group", "box_loss": "giou"} if version_2 else {}
    return retinanet.retinanet(maps, anchors, COCO, class_indices=class_indices, **variant)


def reference(name: str, images: Sequence[Tensor], *, eps: float = 1e-5, **arguments: int) -> nn.Module:
    """Return torchvision's model with random weights, scaled so that it detects many objects of many categories."""
    torch.manual_seed(0)
    model = built(name, **arguments).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0  # one pass leaves plausible statistics
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.inference_mode():
        prepared = model.transform(list(images))[0].tensors
        for module in model.modules():
            module.train(isinstance(module, nn.BatchNorm2d))
        model.head(list(model.backbone(torch.cat([prepared, prepared.flip(3)])).values()))
        model.eval()
        if "ssd" not in name and not name.endswith("_v2"):
            freeze(model.backbone.body, eps)
        maps = list(model.backbone(prepared).values())
        for head, spread in ((model.head.classification_head, 2.0), (model.head.regression_head, 0.7)):
            outputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in output_layers(head)}
            hooks = [
                layer.register_forward_hook(lambda layer, _, out, outputs=outputs: outputs[layer].append(out))
                for layer in outputs
            ]
            head(maps)
            for layer, found in outputs.items():
                values = torch.cat([x.transpose(0, 1).flatten(1) for x in found], dim=1)
                layer.weight *= min(spread / values.std(dim=1).mean(), 6 * spread / values.abs().max())
                layer.bias.zero_()
            for hook in hooks:
                hook.remove()
        num_classes = model.head.classification_head.num_columns if "ssd" in name else 91
        for layer in output_layers(model.head.classification_head):
            bias = torch.randn(layer.bias.numel() // num_classes, num_classes)
            if "ssd" not in name:
                bias -= 3
            unused = [index for index in NO_CATEGORY if index or "ssd" not in name]
            bias[:, unused] = -1e4  # never predicted by trained weights
            layer.bias.copy_(bias.flatten())
        if name.startswith("fcos"):
            model.head.regression_head.bbox_reg.bias += 2.0
    return model


def output_layers(head: nn.Module) -> list[nn.Conv2d]:
    """Return the output layers of a head."""
    if hasattr(head, "module_list"):
        return [one if isinstance(one, nn.Conv2d) else one[1] for one in head.module_list]
    return [getattr(head, name) for name in ("cls_logits", "bbox_reg", "bbox_ctrness") if hasattr(head, name)]


def ours(name: str, state: dict[str, Tensor], *, sha256: str | None = None) -> DenseDetector:
    checkpoint = read_torchvision_dense_detector(state, sha256=sha256)
    if name in SMALL:
        model = ours_over_resnet18(name, **checkpoint.arguments)
    else:
        arguments = checkpoint.arguments
        if "ssd" not in name:
            norms = "freezing" in arguments
            arguments |= {"freezing": Freezing(norms=norms, level=0, **arguments.get("freezing", {}))}
        model = BUILDERS[name](COCO, **arguments)
    load_into(model, checkpoint.state, source=name)
    return model


def compare(model: nn.Module, mine: DenseDetector, images: Sequence[Tensor], preprocess: Preprocess) -> None:
    with torch.inference_mode():
        expected = model.eval()(list(images))
    assert sum(len(one["boxes"]) for one in expected) >= 20
    assert len({int(label) for one in expected for label in one["labels"]}) >= 5
    assert all((one["scores"] < 1).all() for one in expected)  # of many that are 1 any may be the best
    found = mine.predict([preprocess.sample({"image": image}) for image in images])
    for image, raw, theirs in zip(images, found, expected, strict=True):
        one = preprocess.undo(raw, (image.shape[1], image.shape[2]))
        assert len(one) == len(theirs["boxes"])
        np.testing.assert_allclose(one.scores, theirs["scores"].numpy(), atol=1e-4)
        # Scores that differ in their last bit only may stand the other way round: each is looked for.
        apart = np.abs(one.boxes_xyxy[:, None] - theirs["boxes"].numpy()).max(axis=2)
        apart[np.array(COCO_IDS)[one.labels][:, None] != theirs["labels"].numpy()] = np.inf
        mine_index, index = linear_sum_assignment(np.minimum(apart, 1e6))
        np.testing.assert_allclose(apart[mine_index, index], 0, atol=2e-4)
        np.testing.assert_allclose(one.scores[mine_index], theirs["scores"].numpy()[index], atol=1e-4)


def preprocess_of(name: str, **sides: int) -> Preprocess:
    if "ssd" in name:
        return model_entry(name).preprocess
    return Preprocess(shorter_side=sides["min_size"], longer_side=sides["max_size"])


Pair = tuple[nn.Module, DenseDetector, Preprocess]


QUICK = (*SMALL, "ssdlite320_mobilenet_v3_large")
OF_PAPER_SIZE = tuple(pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS if name not in QUICK)


@pytest.fixture(scope="module", params=QUICK + OF_PAPER_SIZE)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Return the reference, the model of Otus with its weights, and a preprocess with small images if possible."""
    name = request.param
    sides = {} if "ssd" in name else {"min_size": 96, "max_size": 150}
    eps = (
        0.0 if name in ("retinanet_resnet18", "retinanet_resnet50_fpn") else 1e-5
    )  # as the hash of its checkpoint wants it
    model = reference(name, photos((90, 128), (110, 75)), eps=eps, **sides)
    mine = ours(name, model.state_dict(), sha256="eeacb38b" + "0" * 56 if eps == 0 else None)
    return model, mine, preprocess_of(name, **sides)


def test_small_images_equal_torchvision(pair):
    model, mine, preprocess = pair
    compare(model, mine, photos((90, 128), (110, 75)), preprocess)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_tensor_of_a_published_model_has_its_place(name):
    with torch.device("meta"):
        checkpoint = read_torchvision_dense_detector(built(name).state_dict())
        mine = build_model(name, COCO, checkpoint.arguments)
    shapes = {key: tensor.shape for key, tensor in mine.state_dict().items() if "num_batches" not in key}
    assert shapes == {key: tensor.shape for key, tensor in checkpoint.state.items() if "num_batches" not in key}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUILDERS if "ssd" not in name])
def test_usual_images_equal_torchvision(name):
    sides = {"min_size": 800, "max_size": 1333}
    assert model_entry(name).preprocess == preprocess_of(name, **sides)
    images = photos((480, 640), (500, 353))
    model = reference(name, images, **sides)
    compare(model, ours(name, model.state_dict()), images, preprocess_of(name, **sides))


def targets(images: Sequence[Tensor]) -> list[TensorSample]:
    """Images with four and two objects, and a third image without objects."""
    generator = torch.Generator().manual_seed(5)
    samples: list[TensorSample] = []
    for image, count in zip(images, (4, 2, 0), strict=False):
        corner = torch.rand(count, 2, generator=generator) * 50
        boxes = torch.cat([corner, corner + 15 + torch.rand(count, 2, generator=generator) * 45], dim=1)
        samples.append(
            {
                "image": image,
                "boxes": bounding_boxes(boxes, (image.shape[1], image.shape[2])),
                "labels": torch.randint(0, 80, (count,), generator=generator),
            }
        )
    return samples


def test_losses_and_gradients_are_torchvisions(pair):
    model, mine, preprocess = pair
    images = photos((120, 170), (150, 97), (100, 100))
    samples = targets(images)
    theirs = [
        {"boxes": one["boxes"].as_subclass(Tensor), "labels": torch.tensor(COCO_IDS)[one["labels"]]} for one in samples
    ]
    for system in (model, mine):
        for module in system.train().modules():
            # Folded norms round otherwise, which an activation near 0 makes another gradient: they have their own test.
            if isinstance(module, nn.BatchNorm2d | FoldedNorm):
                module.eval()
    expected = model(images, theirs)
    found = mine.losses([preprocess.sample(sample) for sample in samples])
    assert set(found) == {LOSSES[key] for key in expected}
    for key, value in expected.items():
        assert float(value.detach()) > 0
        torch.testing.assert_close(found[LOSSES[key]], value, rtol=1e-4, atol=1e-4)
    sum(expected.values()).backward()
    sum(found.values()).backward()
    checkpoint = read_torchvision_dense_detector(
        {key: torch.tensor(i) for i, key in enumerate(model.state_dict())} | sizes_of(model)
    )
    names = list(model.state_dict())
    for key, number in checkpoint.state.items():
        if key in dict(mine.named_parameters()) and number.ndim == 0 and number.dtype == torch.int64:
            mine_gradient, gradient = mine.get_parameter(key).grad, model.get_parameter(names[int(number)]).grad
            scale = max(1e-3, float(gradient.abs().max()))
            torch.testing.assert_close(mine_gradient / scale, gradient / scale, rtol=1e-3, atol=1e-3)


def sizes_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors whose shapes the converter uses."""
    looked_at = ("cls_logits.bias", "bbox_reg.bias", "module_list.0.bias", "module_list.0.1.bias")
    return {key: tensor for key, tensor in model.state_dict().items() if key.endswith(looked_at)}


def test_both_generations_of_keys_are_read():
    state = reference_models.retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    older = {
        re.sub(
            r"conv\.(\d)\.0\.(weight|bias)$",
            lambda found: f"conv.{2 * int(found[1])}.{found[2]}",
            re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key),
        ): tensor
        for key, tensor in state.items()
    }
    assert "head.classification_head.conv.6.weight" in older
    assert "backbone.fpn.inner_blocks.2.bias" in older
    new, old = read_torchvision_dense_detector(state), read_torchvision_dense_detector(older)
    assert new.state.keys() == old.state.keys()
    assert all(new.state[key] is old.state[key] for key in new.state)
    assert new.arguments == old.arguments


def test_the_hash_that_means_no_eps_is_that_of_the_first_retinanet():
    assert (model_entry("retinanet_resnet50_fpn").weights["coco_v1"].sha256,) == DENSE_ZERO_EPS_SHA256
    state = built("retinanet_resnet18").state_dict()
    assert read_torchvision_dense_detector(state, sha256="eeacb38b" + "0" * 56).arguments["freezing"] == {
        "norm_eps": 0.0
    }
    assert read_torchvision_dense_detector(state).arguments["freezing"] == {"norm_eps": 1e-5}
    assert "freezing" not in read_torchvision_dense_detector(built("retinanet_resnet18_v2").state_dict()).arguments


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large"])
def test_a_file_of_torchvisions_is_loaded_by_name(name, tmp_path):
    torch.manual_seed(0)
    torch.save(built(name).state_dict(), tmp_path / "theirs.pth")
    predictor = otus.load(name, weights=tmp_path / "theirs.pth", device="cpu")
    assert predictor.categories == COCO
    assert predictor.preprocess == model_entry(name).preprocess
    assert set(read_weights_file(tmp_path / "theirs.pth", model=name).arguments) >= {"class_indices"}


def test_other_numbers_of_classes_are_the_trainers_own():
    state = reference_models.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    ).state_dict()
    checkpoint = read_torchvision_dense_detector(state)
    assert checkpoint.arguments == {"class_indices": [1, 2, 3]}
    assert is_torchvision_dense_detector(state)
    assert not is_torchvision_detector(state)


def test_the_state_of_another_model_is_an_error():
    with pytest.raises(CheckpointError, match=r"cls_logits.bias.*got 1 others such as head"):
        read_torchvision_dense_detector({"head.weight": torch.zeros(1)})
