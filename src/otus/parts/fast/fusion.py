"""A copy of a system for fast inference on a CPU: the same results up to rounding, in less time.

Three optimisations:

- norms with fixed statistics are folded into the preceding convolution (:func:`fuse_frozen_norms`);
- the memory format is channels last, which oneDNN's convolutions prefer;
- an activation, or a residual sum and the activation after it, is fused into the convolution, while its result is still in
  the cache. PyTorch has these operators for its own compiler (``torch.ops.mkldnn``); if they are missing, the modules are
  not replaced.

3x3 convolutions of many channels are computed with a quarter of the multiplications (:mod:`otus.parts.fast.winograd`).

The original modules are those that are trained and saved; the copy is for inference only.
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

# oneDNN's name and scalars of each activation.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}


class FusedConvolution(nn.Module):
    """A convolution fused with a residual sum and an activation.

    Parameters
    ----------
    conv
        The convolution; its weights are shared, not copied.
    activation
        The activation, of a type in ``_ACTIVATIONS``; None for none.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.geometry = (list(_pair(conv.padding)), list(_pair(conv.stride)), list(_pair(conv.dilation)), conv.groups)
        self.activation, self.scalars = _ACTIVATIONS[type(activation)] if activation is not None else ("none", [])

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Compute ``activation(conv(x) + residual)``; ``residual`` is overwritten by the result."""
        x = x.to(self.weight.dtype)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.geometry, self.activation, self.scalars, ""
            )
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            residual, x, self.weight, self.bias, *self.geometry, "add", 1.0, self.activation, self.scalars, None
        )


class FusedBlock(nn.Module):
    """A residual block of ResNet whose last convolution is fused with the residual sum and the activation."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        convs = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, Bottleneck) else [])]
        self.convs = nn.Sequential(*(_fuse(conv, block.relu) for conv in convs[:-1]))
        self.last = FusedConvolution(convs[-1], block.relu)
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """Compute the residual block."""
        y = self.convs(x)
        # The sum overwrites the shortcut; without downsampling that would be the caller's tensor, so it is copied.
        shortcut = x.to(self.last.weight.dtype, copy=True) if self.downsample is None else self.downsample(x)
        return self.last(y, shortcut)


def fused_for_inference(module: AnyModule, *, precision: str = "float32") -> AnyModule:
    """Return a copy of a module for fast inference on a CPU.

    Parameters
    ----------
    module
        Not changed.
    precision
        ``float32``, or ``bfloat16`` for a copy to be run under autocast: the weights of convolutions and linear layers are
        stored in bfloat16 instead of being converted at every call.
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
        if isinstance(child, BasicBlock | Bottleneck) and _has_folded_norms(child):
            setattr(module, name, FusedBlock(child))
        else:
            _replace(child)
    if isinstance(module, nn.Sequential | LayeredBackbone):
        _replace_in_sequence(module)


def _replace_in_sequence(sequence: nn.Sequential | LayeredBackbone) -> None:
    """Fuse each convolution with the activation after it; a folded norm, now an identity, may be in between."""
    taps = sequence.taps if isinstance(sequence, LayeredBackbone) else ()
    names = [name for name, child in sequence.named_children() if not isinstance(child, nn.Identity)]
    for name, next_name in zip(names, [*names[1:], ""], strict=True):
        conv = sequence.get_submodule(name)
        activation = sequence.get_submodule(next_name) if next_name else None
        if not is_plain_convolution(conv) or type(activation) not in _ACTIVATIONS:
            continue
        if conv.padding_mode == "zeros" and name not in taps:  # a returned feature map must not be activated
            setattr(sequence, name, _fuse(conv, activation))
            setattr(sequence, next_name, nn.Identity())


def _fuse(conv: nn.Conv2d, activation: nn.Module | None) -> nn.Module:
    direct = FusedConvolution(conv, activation)
    if suits_winograd(conv) and isinstance(activation, nn.ReLU):
        return WinogradConvolution(conv, direct, relu=True)
    return direct


def _has_folded_norms(block: BasicBlock | Bottleneck) -> bool:
    norms = [block.bn1, block.bn2, *([block.bn3] if isinstance(block, Bottleneck) else [])]
    return all(isinstance(norm, nn.Identity) for norm in norms)


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _operators_work() -> bool:
    """Return whether the fused operators exist and work; they are not part of PyTorch's public interface."""
    conv = nn.Conv2d(2, 2, 1)
    x = torch.ones(1, 2, 3, 3).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = F.relu(conv(x) + x)
        try:
            return torch.allclose(FusedConvolution(conv, nn.ReLU())(x, x.clone()), expected, atol=1e-5)
        except (AttributeError, RuntimeError, TypeError):
            return False
