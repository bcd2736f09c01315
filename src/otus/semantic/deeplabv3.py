"""DeepLabV3: a dilated encoder of small stride, and a head with atrous spatial pyramid pooling.

Shape shorthand: B images, C input and D output channels, h x w the feature map.

Paper: "Rethinking Atrous Convolution for Semantic Image Segmentation" (Chen, Papandreou, Schroff, Adam, 2017,
arXiv:1706.05587), section 3.3 and figure 5. Code relied on: torchvision (BSD-3-Clause), with the same layer names, so that
its checkpoints can be loaded.

A *dilated* (atrous) convolution skips pixels between its taps: at rate r, a 3x3 kernel covers (2r + 1) x (2r + 1) pixels. So
the last stages of a ResNet need no stride for a large receptive field, and the feature map stays at stride 8. The head,
atrous spatial pyramid pooling, has parallel branches: a 1x1 convolution, three 3x3 convolutions of rates 12, 24 and 36, and
the mean of the whole image.

Departures: those of torchvision.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.parts.backbones.norms import LenientBatchNorm
from otus.semantic.dilated import dilated_mobilenet_v3_large, dilated_resnet, dilated_segmenter
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories


class ImagePooling(nn.Sequential):
    """Global average pooling and a 1x1 convolution, whose result is repeated at every location."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_normalised(in_channels, out_channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Return the pooled and convolved vector at every location."""
        pooled = super().forward(x)  # type: ignore[no-untyped-call]
        return F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=False)


class AtrousSpatialPyramidPooling(nn.Module):
    """Parallel convolutions of several dilation rates and image pooling, fused by a 1x1 convolution.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the input, and of each branch and the output.
    rates
        Dilation rates of the 3x3 convolutions.
    """

    def __init__(self, in_channels: int, rates: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        branches = [nn.Sequential(*_normalised(in_channels, out_channels, 1))]
        branches += [nn.Sequential(*_normalised(in_channels, out_channels, 3, dilation=rate)) for rate in rates]
        self.convs = nn.ModuleList([*branches, ImagePooling(in_channels, out_channels)])
        self.project = nn.Sequential(*_normalised(len(self.convs) * out_channels, out_channels, 1), nn.Dropout(0.5))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """Return the fused outputs of all branches."""
        return self.project(torch.cat([branch(x) for branch in self.convs], dim=1))


def deeplab_head(in_channels: int, num_categories: int) -> nn.Sequential:
    """Build the paper's head: atrous spatial pyramid pooling, a 3x3 convolution, and a 1x1 classifier."""
    return nn.Sequential(
        AtrousSpatialPyramidPooling(in_channels, (12, 24, 36)),
        *_normalised(256, 256, 3),
        nn.Conv2d(256, num_categories, 1),
    )


def deeplabv3_resnet50(categories: Categories, *, auxiliary: bool = True) -> Segmenter:
    """Build DeepLabV3 over ResNet-50 at stride 8; see :func:`~otus.semantic.dilated.dilated_segmenter`."""
    return dilated_segmenter(dilated_resnet("resnet50"), categories, head=deeplab_head, auxiliary=auxiliary)


def deeplabv3_resnet101(categories: Categories, *, auxiliary: bool = True) -> Segmenter:
    """Build DeepLabV3 over ResNet-101 at stride 8; see :func:`~otus.semantic.dilated.dilated_segmenter`."""
    return dilated_segmenter(dilated_resnet("resnet101"), categories, head=deeplab_head, auxiliary=auxiliary)


def deeplabv3_mobilenet_v3_large(categories: Categories, *, auxiliary: bool = True) -> Segmenter:
    """Build DeepLabV3 over MobileNetV3-Large at stride 16; see :func:`~otus.semantic.dilated.dilated_segmenter`."""
    return dilated_segmenter(dilated_mobilenet_v3_large(), categories, head=deeplab_head, auxiliary=auxiliary)


def _normalised(in_channels: int, out_channels: int, size: int, *, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (size // 2)
    convolution = nn.Conv2d(in_channels, out_channels, size, padding=padding, dilation=dilation, bias=False)
    return [convolution, LenientBatchNorm(out_channels), nn.ReLU()]
