"""Winograd's 3x3 convolutions: equal to the direct sum for every size, dilation and batch, with small rounding errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from otus.parts.fast import winograd
from otus.parts.fast.fusion import fused_for_inference
from otus.parts.fast.winograd import WinogradConvolution, suits_winograd
from otus.semantic.dilated import fcn_head


def direct_of(conv: nn.Conv2d) -> nn.Module:
    class Refused(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the map is large enough")

    return Refused()


@pytest.fixture(autouse=True)
def of_few_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_MIN_TILES", 1)
    monkeypatch.setattr(winograd, "_MIN_CHANNELS", 2)


@pytest.mark.parametrize("size_hw", [(1, 1), (4, 4), (5, 13), (16, 9), (33, 21)])
@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("relu", [False, True])
def test_it_is_the_direct_convolution(size_hw: tuple[int, int], dilation: int, relu: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, 3, padding=dilation, dilation=dilation, bias=not relu)
    x = torch.randn(2, 5, *size_hw)
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.inference_mode():
            output = WinogradConvolution(conv, direct_of(conv), relu=relu)(x.contiguous(memory_format=layout))
            expected = F.relu(conv(x)) if relu else conv(x)
        torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_large_maps_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=2, dilation=2)
    x = torch.randn(1, 3, 50, 30)
    with torch.inference_mode():
        monkeypatch.setattr(winograd, "_MAX_TRANSFORMED_VALUES", 1)  # a row of tiles at a time
        output = WinogradConvolution(conv, direct_of(conv), relu=False)(x)
        torch.testing.assert_close(output, conv(x), atol=1e-5, rtol=1e-5)


def test_it_rounds_hardly_more_than_the_direct_sum() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 32, 3, padding=1)
    x = torch.randn(1, 256, 40, 40).relu()
    with torch.inference_mode():
        exact = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
        output = WinogradConvolution(conv, direct_of(conv), relu=False)(x)
        error_ratio = (output - exact).abs().mean() / (conv(x) - exact).abs().mean()
    assert error_ratio < 8
    assert float((output - exact).abs().max()) < 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding=1).bfloat16(),
        nn.Conv2d(1, 4, 3, padding=1),
    ],
    ids=str,
)
def test_what_it_is_not_for(conv: nn.Conv2d) -> None:
    assert not suits_winograd(conv)
    assert suits_winograd(nn.Conv2d(4, 4, 3, padding=2, dilation=2))


def test_a_fused_head_takes_it_and_a_small_map_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = fcn_head(32, 3).eval()
    fused = fused_for_inference(head)
    assert any(isinstance(layer, WinogradConvolution) for layer in fused.modules())
    x = torch.randn(1, 32, 17, 23).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), head(x), atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(winograd, "_MIN_TILES", 32)
        monkeypatch.setattr(WinogradConvolution, "_tiles", lambda *arguments: pytest.fail("30 tiles are too few"))
        torch.testing.assert_close(fused(x), head(x), atol=1e-5, rtol=1e-5)
