"""What is done to the norms of a backbone: freeze them, freeze whole stages, fold them into convolutions.

Folding: with frozen statistics a norm is y = a x + b for each channel, a = weight / sqrt(variance + eps) and
b = bias - a mean, so the convolution before it can carry it: weights times a, bias times a plus b. While a backbone learns,
this is done anew at each step (:class:`FoldingConvolution`), for weights are small and maps are large; for inference once
(:func:`fuse_frozen_norms`). FrozenBatchNorm2d is torchvision's (BSD-3-Clause), from maskrcnn-benchmark.
"""

import copy
from itertools import pairwise
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from otus.parts.backbones.backbone import LayeredBackbone
from otus.parts.fast.depthwise import DepthwiseOnCPU, depthwise_pays

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class LenientBatchNorm(nn.BatchNorm2d):
    """A batch norm that takes its running statistics where a channel has one value only, of which there are none.

    Such are the coarsest maps of one small image, which nn.BatchNorm2d refuses to learn from.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised."""
        if self.training and x.numel() == self.num_features:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x)


class FoldedNorm(FrozenBatchNorm2d):
    """A frozen norm whose work is done by the :class:`FoldingConvolution` before it while both learn.

    In evaluation, layers run one by one, so that figures are the reference's to the last digits.
    """

    @property
    def folds(self) -> bool:
        """Whether the convolution does the work."""
        return self.training

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The factor and the summand of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, by this layer or the one before."""
        return x if self.folds else super().forward(x)


class FoldingConvolution(nn.Conv2d):
    """A convolution that does the work of the frozen norm after it where :attr:`FoldedNorm.folds`.

    Its parameters are those of the convolution it was made of, and get the same gradients but for rounding.
    """

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)  # geometry and parameters, which keep their names
        self._norm = (norm,)  # in a tuple, so that it stays a module of its parent alone

    def forward(self, x: Tensor) -> Tensor:
        """Convolved, and normalised if need be."""
        (norm,) = self._norm
        if not norm.folds:
            return super().forward(x)
        scale, shift = norm.scale_and_shift()
        weight = self.weight * scale[:, None, None, None]
        bias = shift if self.bias is None else self.bias * scale + shift
        if self.groups == 1 or x.device.type != "cpu":
            return self._conv_forward(x, weight, bias)
        # oneDNN's gradients of grouped convolutions take two to six times as long in bfloat16 as in float32.
        with torch.autocast("cpu", enabled=False):
            if depthwise_pays(self, x):
                maps: Tensor = DepthwiseOnCPU.apply(
                    x.float(), weight, bias, self.stride[0], self.padding[0], self.dilation[0]
                )
                return maps
            return self._conv_forward(x.float(), weight, bias)


def is_plain_convolution(layer: nn.Module | None) -> TypeGuard[nn.Conv2d]:
    """Whether a layer predicts as nn.Conv2d does; subclasses may pad in their own way, as timm's do."""
    return type(layer) in (nn.Conv2d, FoldingConvolution)


def freeze_norms(module: nn.Module, *, eps: float | None = None) -> None:
    """Put a FrozenBatchNorm2d with the same numbers in the place of each BatchNorm2d inside a module.

    A norm that is registered right after a convolution takes that one's output, as in all backbones and heads here and in
    torchvision's; the convolution then folds it while learning.

    Small batches of large images give poor statistics, so detectors keep those of ImageNet.

    Parameters
    ----------
    module
        Changed in place. Make its optimizer afterwards: frozen norms have no parameters.
    eps
        The eps of all norms, of those that were frozen before as well; each keeps its own without it. torchvision's
        COCO_V1 checkpoints of ResNet-50 detectors were made with 0.0.
    """
    children = list(module.named_children())
    for (before, conv), (name, child) in pairwise([("", module), *children]):
        if type(child) is not nn.BatchNorm2d:
            freeze_norms(child)
            continue
        norm = FoldedNorm if type(conv) is nn.Conv2d else FrozenBatchNorm2d
        frozen = norm(child.num_features, eps=child.eps)
        frozen.load_state_dict(child.state_dict())
        setattr(module, name, frozen.to(child.running_mean).train(child.training))
        if isinstance(conv, nn.Conv2d) and isinstance(frozen, FoldedNorm):
            setattr(module, before, FoldingConvolution(conv, frozen))
    if eps is not None:
        for layer in module.modules():
            if isinstance(layer, FrozenBatchNorm2d):
                layer.eps = eps


def freeze_stages(backbone: LayeredBackbone, level: int) -> None:
    """Stop all layers of stride up to 2**level from learning, and their norms' statistics from moving.

    Level 0 stops nothing. Level 2 of a ResNet is the stem and ``layer1``, what detectors that start from ImageNet usually
    freeze (torchvision's ``trainable_layers=3``).
    """
    for name, stride in backbone.layer_strides.items():
        if level > 0 and stride <= 2**level:
            layer = backbone.get_submodule(name)
            layer.requires_grad_(False)
            holder = nn.ModuleDict({name: layer})
            freeze_norms(holder)
            setattr(backbone, name, holder[name])


def fuse_frozen_norms(module: AnyModule) -> AnyModule:
    """Copy a module for fast inference: norms folded into the convolutions before them, channels last.

    A norm is folded where it is registered right after the convolution whose output it takes; any other is left as it is.
    The copy is in evaluation mode and must not be trained; its state dict is another one, so load weights before.

    Parameters
    ----------
    module
        Not changed. Its norms count as frozen, whatever its mode.
    """
    fused = copy.deepcopy(module).eval()
    for parent in list(fused.modules()):
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            # Subclasses of norms may hold an activation too, as timm's do.
            norms = (nn.BatchNorm2d, LenientBatchNorm, FrozenBatchNorm2d, FoldedNorm)
            if is_plain_convolution(conv) and type(norm) in norms:
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
