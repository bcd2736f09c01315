"""Dense detectors against torchvision's: the same weights, the same answers and the same losses."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as reference_models
from torchvision.ops import FrozenBatchNorm2d

from otus.data.tensors import TensorSample, bounding_boxes
from otus.detection import fcos, retinanet, ssd
from otus.detection.dense_detector import DenseDetector
from otus.errors import CheckpointError
from otus.parts.preprocess import Preprocess
from otus.zoo.checkpoint import load_into
from otus.zoo.coco import COCO, COCO_IDS
from otus.zoo.models import model_entry
from otus.zoo.torchvision_checkpoints import is_torchvision_detector
from otus.zoo.torchvision_dense_checkpoints import is_torchvision_dense_detector, read_torchvision_dense_detector

BUILDERS: dict[str, Callable[..., DenseDetector]] = {
    "retinanet_resnet50_fpn": retinanet.retinanet_resnet50_fpn,
    "retinanet_resnet50_fpn_v2": retinanet.retinanet_resnet50_fpn_v2,
    "fcos_resnet50_fpn": fcos.fcos_resnet50_fpn,
    "ssd300_vgg16": ssd.ssd300_vgg16,
    "ssdlite320_mobilenet_v3_large": ssd.ssdlite320_mobilenet_v3_large,
}
LOSSES = {"classification": "class", "bbox_regression": "box", "bbox_ctrness": "centerness"}
NO_CATEGORY = sorted(set(range(91)) - set(COCO_IDS))


def pictures(*sizes_hw: tuple[int, int]) -> list[Tensor]:
    """Coloured rectangles and noise everywhere, so that no two places are equal."""
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
    """Frozen norms, as torchvision builds RetinaNet and FCOS when it is given weights."""
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
            module.momentum = 1.0  # one pass leaves plausible statistics
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.inference_mode():
        prepared = model.transform(list(images))[0].tensors
        for module in model.modules():
            module.train(isinstance(module, nn.BatchNorm2d))
        model.head(list(model.backbone(torch.cat([prepared, prepared.flip(3)])).values()))
        model.eval()
        if name in ("retinanet_resnet50_fpn", "fcos_resnet50_fpn"):
            freeze(model.backbone.body, eps)
        maps = list(model.backbone(prepared).values())
        for head, spread in ((model.head.classification_head, 2.0), (model.head.regression_head, 0.7)):
            outputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in answers_of(head)}
            hooks = [
                layer.register_forward_hook(lambda layer, _, out, outputs=outputs: outputs[layer].append(out))
                for layer in outputs
            ]
            head(maps)
            for layer, found in outputs.items():
                layer.weight *= (
                    spread / torch.cat([x.transpose(0, 1).flatten(1) for x in found], dim=1).std(dim=1).mean()
                )
                layer.bias.zero_()
            for hook in hooks:
                hook.remove()
        slots = model.head.classification_head.num_columns if "ssd" in name else 91
        for layer in answers_of(model.head.classification_head):
            bias = torch.randn(layer.bias.numel() // slots, slots)
            if "ssd" not in name:
                bias -= 3
            bias[
                :, [slot for slot in NO_CATEGORY if slot or "ssd" not in name]
            ] = -1e4  # never named by trained weights
            layer.bias.copy_(bias.flatten())
        if name.startswith("fcos"):
            model.head.regression_head.bbox_reg.bias += 2.0
    return model


def answers_of(head: nn.Module) -> list[nn.Conv2d]:
    """The last convolutions."""
    if hasattr(head, "module_list"):
        return [one if isinstance(one, nn.Conv2d) else one[1] for one in head.module_list]
    return [getattr(head, name) for name in ("cls_logits", "bbox_reg", "bbox_ctrness") if hasattr(head, name)]


def ours(name: str, state: dict[str, Tensor], *, sha256: str | None = None) -> DenseDetector:
    checkpoint = read_torchvision_dense_detector(state, sha256=sha256)
    everything = {} if "ssd" in name else {"frozen_level": 0}
    model = BUILDERS[name](COCO, **everything, **checkpoint.arguments)
    load_into(model, checkpoint.state, source=name)
    return model


def compare(model: nn.Module, mine: DenseDetector, images: Sequence[Tensor], preprocess: Preprocess) -> None:
    with torch.inference_mode():
        expected = model.eval()(list(images))
    assert sum(len(one["boxes"]) for one in expected) >= 20
    assert len({int(label) for one in expected for label in one["labels"]}) >= 5
    found = mine.predict([preprocess.sample({"image": image}) for image in images])
    for image, raw, theirs in zip(images, found, expected, strict=True):
        one = preprocess.undo(raw, (image.shape[1], image.shape[2]))
        assert len(one) == len(theirs["boxes"])
        np.testing.assert_allclose(one.scores, theirs["scores"].numpy(), atol=1e-4)
        np.testing.assert_array_equal(np.array(COCO_IDS)[one.labels], theirs["labels"].numpy())
        np.testing.assert_allclose(one.boxes_xyxy, theirs["boxes"].numpy(), atol=1e-4, rtol=1e-6)


def preprocess_of(name: str, **sides: int) -> Preprocess:
    if "ssd" in name:
        return model_entry(name).preprocess
    return Preprocess(shorter_side=sides["min_size"], longer_side=sides["max_size"])


Pair = tuple[nn.Module, DenseDetector, Preprocess]


@pytest.fixture(scope="module", params=BUILDERS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """The reference, ours with its weights, and how pictures are prepared: small ones where any size will do."""
    name = request.param
    sides = {} if "ssd" in name else {"min_size": 96, "max_size": 150}
    eps = 0.0 if name == "retinanet_resnet50_fpn" else 1e-5  # as the hash of its checkpoint wants it
    model = reference(name, pictures((90, 128), (110, 75)), eps=eps, **sides)
    mine = ours(name, model.state_dict(), sha256="eeacb38b" + "0" * 56 if eps == 0 else None)
    return model, mine, preprocess_of(name, **sides)


def test_small_pictures_give_torchvisions_answers(pair):
    model, mine, preprocess = pair
    compare(model, mine, pictures((90, 128), (110, 75)), preprocess)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BUILDERS if "ssd" not in name])
def test_usual_pictures_give_torchvisions_answers(name):
    sides = {"min_size": 800, "max_size": 1333}
    assert model_entry(name).preprocess == preprocess_of(name, **sides)
    images = pictures((480, 640), (500, 353))
    model = reference(name, images, **sides)
    compare(model, ours(name, model.state_dict()), images, preprocess_of(name, **sides))


def targets(images: Sequence[Tensor]) -> list[TensorSample]:
    """Four objects and two; with a third picture, one without any."""
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
    images = pictures((120, 170), (150, 97), (100, 100))
    samples = targets(images)
    theirs = [
        {"boxes": one["boxes"].as_subclass(Tensor), "labels": torch.tensor(COCO_IDS)[one["labels"]]} for one in samples
    ]
    for system in (model, mine):
        for module in system.train().modules():
            if isinstance(module, nn.BatchNorm2d):
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
    """The tensors that the reader looks into."""
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


def test_other_numbers_of_classes_are_the_trainers_own():
    state = reference_models.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    ).state_dict()
    checkpoint = read_torchvision_dense_detector(state)
    assert checkpoint.arguments == {"class_slots": [1, 2, 3]}
    assert is_torchvision_dense_detector(state)
    assert not is_torchvision_detector(state)


def test_the_state_of_something_else_is_refused():
    with pytest.raises(CheckpointError, match=r"cls_logits.bias.*got 1 others such as head"):
        read_torchvision_dense_detector({"head.weight": torch.zeros(1)})
