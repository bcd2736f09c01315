"""The fused copy says what the module it was made of says."""

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

from otus.parts.backbones import efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.fast.fusion import FusedBlock, FusedConvolution, fused_for_inference


def with_live_norms(module: nn.Module) -> nn.Module:
    """Norms that are not the identity, so that folding them wrongly shows."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return module.eval()


BACKBONES = {
    "resnet18": lambda: torchvision_backbone("resnet18", levels=(2, 3, 4, 5)),
    "resnet50": lambda: torchvision_backbone("resnet50", levels=(4, 5)),
    "mobilenet_v3_large": lambda: torchvision_backbone("mobilenet_v3_large", levels=(4, 5)),
    "vgg11": lambda: torchvision_backbone("vgg11", levels=(4,)),
    "efficientnet_lite0": lambda: efficientnet_lite0_backbone(levels=(3, 4, 5)),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_differ_by_rounding_only(name):
    backbone = with_live_norms(BACKBONES[name]())
    before = copy.deepcopy(backbone.state_dict())
    fused = fused_for_inference(backbone)
    assert any(isinstance(layer, FusedConvolution) for layer in fused.modules())
    images = torch.randn(2, 3, 70, 96)
    with torch.inference_mode():
        for _ in range(2):  # a second pass over the same image: nothing was overwritten
            for ours, theirs in zip(fused(images), backbone(images), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.bfloat16
def test_bfloat16_stays_near():
    backbone = with_live_norms(BACKBONES["resnet18"]())
    fused = fused_for_inference(backbone, precision="bfloat16")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        coarse = fused(images)[-1]
    with torch.inference_mode():
        exact = backbone(images)[-1]
    assert coarse.dtype == torch.bfloat16
    assert float((coarse.float() - exact).abs().mean() / exact.abs().mean()) < 0.05


def test_a_block_whose_norms_cannot_be_folded_stays_as_it_is():
    backbone = BACKBONES["resnet18"]()
    backbone.layer1[0].bn1 = nn.GroupNorm(4, 64)
    fused = fused_for_inference(with_live_norms(backbone))
    assert not isinstance(fused.layer1[0], FusedBlock)
    assert isinstance(fused.layer1[1], FusedBlock)


def test_the_image_itself_is_not_overwritten():
    torch.manual_seed(0)
    layer = fused_for_inference(nn.Sequential(Conv2dNormActivation(3, 8, 3)).eval())
    images = torch.randn(1, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    kept = images.clone()
    with torch.inference_mode():
        layer(images)
    assert torch.equal(images, kept)


def test_without_the_operators_nothing_is_replaced(monkeypatch):
    monkeypatch.setattr("otus.parts.fast.fusion._operators_work", lambda: False)
    fused = fused_for_inference(with_live_norms(BACKBONES["resnet18"]()))
    assert not any(isinstance(layer, FusedConvolution | FusedBlock) for layer in fused.modules())
