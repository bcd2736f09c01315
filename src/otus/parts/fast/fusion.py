"""A copy of a system for fast inference on a CPU: the same figures but for rounding, in less time.

Three things cost time without changing a figure, and go:

- norms whose statistics are fixed are folded into the convolution before them (:func:`fuse_frozen_norms`);
- memory lies channels last, as oneDNN's convolutions want it;
- an activation, or a residual sum and the activation after it, is done by the convolution while its result is still in the
  cache. PyTorch has these operators for its own compiler (``torch.ops.mkldnn``); without them the modules stay as they are.

3x3 convolutions of many channels are computed with a quarter of the multiplications (:mod:`otus.parts.fast.winograd`).

The readable modules stay what is trained and saved; the copy is for predicting only.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from otus.parts.backbones.backbone import LayeredBackbone
from otus.parts.backbones.norms import fuse_frozen_norms, is_plain_convolution
from otus.parts.fast.winograd import WinogradConvolution, suits_winograd
from otus.parts.transformer.attention import Float32Linear

AnyModule = TypeVar("AnyModule", bound=nn.Module)

# Name and scalars of an activation as oneDNN has it.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}


class FusedConvolution(nn.Module):
    """A convolution that also adds and activates.

    Parameters
    ----------
    conv
        Its weights are shared, not copied.
    activation
        Of the types in ``_ACTIVATIONS``; None for none.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (list(_pair(conv.padding)), list(_pair(conv.stride)), list(_pair(conv.dilation)), conv.groups)
        self.activation, self.scalars = _ACTIVATIONS[type(activation)] if activation is not None else ("none", [])

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The activated convolution of ``x``, plus ``residual`` before the activation where there is one.

        ``residual`` is overwritten.
        """
        x = x.to(self.weight.dtype)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.geometry, self.activation, self.scalars, ""
            )
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, self.weight, self.bias, *self.geometry, "add", 1.0, self.activation, self.scalars, None
        )


class FusedBlock(nn.Module):
    """A residual block of ResNet whose last convolution adds the shortcut and activates the sum."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convs = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        self.convs = nn.Sequential(*(_activated(conv, block.relu) for conv in convs[:-1]))
        self.last = FusedConvolution(convs[-1], block.relu)
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """What the block it was made of gives."""
        y = self.convs(x)
        # The sum is written over the shortcut, which without a downsampling is the caller's own map.
        shortcut = x.to(self.last.weight.dtype, copy=True) if self.downsample is None else self.downsample(x)
        return self.last(y, shortcut)


def fused_for_inference(module: AnyModule, *, precision: str = "float32") -> AnyModule:
    """A copy for predicting on a CPU: ``float32``, or ``bfloat16`` to be run under autocast.

    In bfloat16 the weights of convolutions and linear layers are stored so, instead of being converted at every call.
    """
    fused = fuse_frozen_norms(module)
    if precision == "bfloat16":
        for layer in fused.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and not isinstance(layer, Float32Linear):
                layer.to(torch.bfloat16)
    if _operators_work():
        _replace(fused)
    return fused


def _replace(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, BasicBlock | Bottleneck) and _folded(child):
            setattr(module, name, FusedBlock(child))
        else:
            _replace(child)
    if isinstance(module, nn.Sequential | LayeredBackbone):
        _replace_in_sequence(module)


def _replace_in_sequence(sequence: nn.Sequential | LayeredBackbone) -> None:
    """Convolution, nothing (a norm that was folded), activation: one module and two that do nothing."""
    asked_for = sequence.taps if isinstance(sequence, LayeredBackbone) else ()
    names = [name for name, child in sequence.named_children() if not isinstance(child, nn.Identity)]
    for name, following in zip(names, [*names[1:], ""], strict=True):
        conv = sequence.get_submodule(name)
        activation = sequence.get_submodule(following) if following else None
        if not is_plain_convolution(conv) or type(activation) not in _ACTIVATIONS:
            continue
        if conv.padding_mode == "zeros" and name not in asked_for:
            setattr(sequence, name, _activated(conv, activation))
            setattr(sequence, following, nn.Identity())


def _activated(conv: nn.Conv2d, activation: nn.Module | None) -> nn.Module:
    direct = FusedConvolution(conv, activation)
    if suits_winograd(conv) and isinstance(activation, nn.ReLU):
        return WinogradConvolution(conv, direct, relu=True)
    return direct


def _folded(block: BasicBlock | Bottleneck) -> bool:
    norms = [block.bn1, block.bn2, *([block.bn3] if isinstance(block, Bottleneck) else [])]
    return all(isinstance(norm, nn.Identity) for norm in norms)


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _operators_work() -> bool:
    """Try them, because PyTorch does not promise them to anybody."""
    conv = nn.Conv2d(2, 2, 1)
    x = torch.ones(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = F.relu(conv(x) + x)
        try:
            return torch.allclose(FusedConvolution(conv, nn.ReLU())(x, x.clone()), expected, atol=1e-5)
        except (AttributeError, RuntimeError, TypeError):
            return False
