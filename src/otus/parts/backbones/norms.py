"""What is done to the norms of a trunk: freeze them, freeze whole stages, fold them into convolutions.

Folding: with frozen statistics a norm is y = a x + b for each channel, a = weight / sqrt(variance + eps) and
b = bias - a mean, so the convolution before it can carry it: weights times a, bias times a plus b. FrozenBatchNorm2d is
torchvision's (BSD-3-Clause), from maskrcnn-benchmark.
"""

import copy
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from otus.parts.backbones.trunk import LayeredTrunk

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def freeze_norms(module: nn.Module, *, eps: float | None = None) -> None:
    """Put a FrozenBatchNorm2d with the same numbers in the place of each BatchNorm2d inside a module.

    Small batches of large pictures give poor statistics, so detectors keep those of ImageNet.

    Parameters
    ----------
    module
        Changed in place. Make its optimizer afterwards: frozen norms have no parameters.
    eps
        The eps of all norms, of those that were frozen before as well; each keeps its own without it. torchvision's
        COCO_V1 checkpoints of ResNet-50 detectors were made with 0.0.
    """
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen.to(child.running_mean))
        else:
            freeze_norms(child)
    if eps is not None:
        for layer in module.modules():
            if isinstance(layer, FrozenBatchNorm2d):
                layer.eps = eps


def freeze_stages(trunk: LayeredTrunk, level: int) -> None:
    """Stop all layers of stride up to 2**level from learning, and their norms' statistics from moving.

    Level 0 stops nothing. Level 2 of a ResNet is the stem and ``layer1``, what detectors that start from ImageNet usually
    freeze (torchvision's ``trainable_layers=3``).
    """
    for name, stride in trunk.layer_strides.items():
        if level > 0 and stride <= 2**level:
            layer = trunk.get_submodule(name)
            layer.requires_grad_(False)
            holder = nn.ModuleDict({name: layer})
            freeze_norms(holder)
            setattr(trunk, name, holder[name])


def fuse_frozen_norms(module: AnyModule) -> AnyModule:
    """Copy a module for fast inference: norms folded into the convolutions before them, channels last.

    A norm is folded where it is registered right after the convolution whose output it takes, as in all trunks and heads
    here and in torchvision's; any other is left as it is. The copy is in evaluation mode and must not be trained; its
    state dict is another one, so load weights before.

    Parameters
    ----------
    module
        Not changed. Its norms count as frozen, whatever its mode.
    """
    fused = copy.deepcopy(module).eval()
    for parent in list(fused.modules()):
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            # Subclasses of norms may hold an activation too, as timm's do.
            if type(conv) is nn.Conv2d and type(norm) in (nn.BatchNorm2d, FrozenBatchNorm2d):
                _fold(conv, norm)
                setattr(parent, name, nn.Identity())
    return fused.to(memory_format=torch.channels_last)


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """In float64, so that two roundings become one."""
    weight, bias, mean, variance = (
        tensor.double() for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight / (variance + norm.eps).sqrt()
    before = 0 if conv.bias is None else conv.bias.double()
    conv.bias = nn.Parameter(((before - mean) * scale + bias).to(conv.weight.dtype), requires_grad=False)
    conv.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).to(conv.weight.dtype), requires_grad=False)
