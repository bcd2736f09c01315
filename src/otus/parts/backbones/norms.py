"""Freeze the batch norms or whole stages of a backbone, and fold frozen norms into convolutions.

Folding: a norm with frozen statistics is the affine map y = a x + b per channel, with a = weight / sqrt(variance + eps)
and b = bias - a mean. It can be merged into the preceding convolution: its weight is multiplied by a, its bias by a and
then increased by b. In training this is computed at each step (:class:`FoldingConvolution`), which is cheap because
weights are smaller than feature maps; for inference it is computed once (:func:`fuse_frozen_norms`). FrozenBatchNorm2d
is torchvision's (BSD-3-Clause), from maskrcnn-benchmark.
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
    """A batch norm that uses its running statistics if a channel has a single value, whose variance is undefined.

    This occurs in the coarsest feature maps of a single small image, for which nn.BatchNorm2d raises an error in
    training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise feature maps (B, C, H, W)."""
        if self.training and x.numel() == self.num_features:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        return super().forward(x)


class FoldedNorm(FrozenBatchNorm2d):
    """A frozen batch norm that the preceding :class:`FoldingConvolution` applies in training.

    In evaluation the two layers run separately, so that outputs equal the reference implementation's to the last
    digits.
    """

    @property
    def folds(self) -> bool:
        """Whether the convolution applies the norm: in training mode."""
        return self.training

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the factor a and the offset b of each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise feature maps, unless the preceding convolution has done it."""
        return x if self.folds else super().forward(x)


class FoldingConvolution(nn.Conv2d):
    """A convolution that also applies the frozen norm after it if :attr:`FoldedNorm.folds`.

    It shares the parameters of the given convolution; their gradients are the same up to rounding.
    """

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)  # hyperparameters, and parameters under their names
        self._norm = (norm,)  # in a tuple, so that it is not registered as a submodule

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, and normalise if the norm is folded."""
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
    """Return whether a layer computes what nn.Conv2d does; other subclasses may pad differently, as timm's do."""
    return type(layer) in (nn.Conv2d, FoldingConvolution)


def freeze_norms(module: nn.Module, *, eps: float | None = None) -> None:
    """Replace each BatchNorm2d inside a module by a FrozenBatchNorm2d with the same parameters and statistics.

    Detectors keep the statistics of ImageNet, because small batches of large images give poor estimates. A norm
    registered directly after a convolution is assumed to take its output, as in all backbones and heads here and in
    torchvision; the convolution then folds it in training.

    Parameters
    ----------
    module
        Changed in place. Create its optimizer afterwards: frozen norms have no parameters.
    eps
        The eps of all norms, including those already frozen (default: each keeps its own). torchvision's COCO_V1
        checkpoints of ResNet-50 detectors were trained with 0.0.
    """
    children = list(module.named_children())
    for (conv_name, conv), (name, child) in pairwise([("", module), *children]):
        if type(child) is not nn.BatchNorm2d:
            freeze_norms(child)
            continue
        norm = FoldedNorm if type(conv) is nn.Conv2d else FrozenBatchNorm2d
        frozen = norm(child.num_features, eps=child.eps)
        frozen.load_state_dict(child.state_dict())
        setattr(module, name, frozen.to(child.running_mean).train(child.training))
        if isinstance(conv, nn.Conv2d) and isinstance(frozen, FoldedNorm):
            setattr(module, conv_name, FoldingConvolution(conv, frozen))
    if eps is not None:
        for layer in module.modules():
            if isinstance(layer, FrozenBatchNorm2d):
                layer.eps = eps


def freeze_stages(backbone: LayeredBackbone, level: int) -> None:
    """Freeze the parameters and norm statistics of all layers of stride up to 2**level.

    Level 0 freezes nothing. Level 2 of a ResNet freezes the stem and ``layer1``, as is usual for detectors that start
    from ImageNet weights (torchvision's ``trainable_layers=3``).
    """
    for name, stride in backbone.layer_strides.items():
        if level > 0 and stride <= 2**level:
            layer = backbone.get_submodule(name)
            layer.requires_grad_(False)
            wrapper = nn.ModuleDict({name: layer})
            freeze_norms(wrapper)
            setattr(backbone, name, wrapper[name])


def fuse_frozen_norms(module: AnyModule) -> AnyModule:
    """Copy a module for fast inference: norms folded into the preceding convolutions, memory format channels last.

    A norm is folded if it is registered directly after a convolution, whose output it must take; others are kept. The
    copy is in evaluation mode and must not be trained. Its state dict has other keys, so load weights before.

    Parameters
    ----------
    module
        Not changed. Its norms are treated as frozen, in training mode too.
    """
    fused = copy.deepcopy(module).eval()
    for parent in list(fused.modules()):
        for (_, conv), (name, norm) in pairwise(list(parent.named_children())):
            # Other subclasses of norms may include an activation, as timm's do.
            norms = (nn.BatchNorm2d, LenientBatchNorm, FrozenBatchNorm2d, FoldedNorm)
            if is_plain_convolution(conv) and type(norm) in norms:
                _fold(conv, norm)
                setattr(parent, name, nn.Identity())
    return fused.to(memory_format=torch.channels_last)


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: Any) -> None:
    """Fold a norm into a convolution, in float64 so that the result is rounded only once."""
    weight, bias, mean, variance = (
        tensor.double() for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight / (variance + norm.eps).sqrt()
    conv_bias = 0 if conv.bias is None else conv.bias.double()
    conv.bias = nn.Parameter(((conv_bias - mean) * scale + bias).to(conv.weight.dtype), requires_grad=False)
    conv.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).to(conv.weight.dtype), requires_grad=False)
