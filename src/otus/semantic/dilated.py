"""Segmenters with one head on the last feature map of a dilated backbone: what torchvision's FCN and DeepLabV3 share.

Shape shorthand: C channels, K categories.

A stage with dilation instead of stride has the same receptive field, at a higher resolution. The auxiliary head on the next
to last feature map is that of "Pyramid Scene Parsing Network" (Zhao et al., CVPR 2017, arXiv:1612.01105), section 3.2. Code
relied on: torchvision (BSD-3-Clause), with the same layer names, so that its checkpoints can be loaded.
"""

from collections.abc import Callable

from torch import nn

from otus.parts.backbones import Backbone, torchvision_backbone
from otus.parts.backbones.norms import LenientBatchNorm
from otus.semantic.encoders import BackboneEncoder
from otus.semantic.segmenter import CoarsestMap, Segmenter
from otus.structures import Categories


def dilated_resnet(name: str) -> Backbone:
    """Build a ResNet whose last two stages are dilated and stay at stride 8, with the feature maps of both."""
    return torchvision_backbone(name, levels=("layer3", "layer4"), output_stride=8)


def dilated_mobilenet_v3_large() -> Backbone:
    """Build MobileNetV3-Large with output stride 16, with the last feature map and that of stride 8, as torchvision does."""
    return torchvision_backbone("mobilenet_v3_large", levels=("4", "16"), output_stride=16)


def fcn_head(in_channels: int, num_categories: int) -> nn.Sequential:
    """Build torchvision's FCN head: a 3x3 convolution to a quarter of the channels, dropout, and a 1x1 classifier."""
    inner = in_channels // 4
    return nn.Sequential(
        nn.Conv2d(in_channels, inner, 3, padding=1, bias=False),
        LenientBatchNorm(inner),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Conv2d(inner, num_categories, 1),
    )


def dilated_segmenter(
    backbone: Backbone, categories: Categories, *, head: Callable[[int, int], nn.Module], auxiliary: bool = True
) -> Segmenter:
    """Build a segmenter with one head on the last feature map of a dilated backbone.

    Parameters
    ----------
    backbone
        Backbone with at least two feature maps; the head is on the last one.
    categories
        Names of the class indices, with background if it has a label.
    head
        Function that builds the head from the channels of the feature map and the number of categories.
    auxiliary
        Train with an auxiliary head, :func:`fcn_head`, on the next to last feature map.
    """
    return Segmenter(
        categories=categories,
        encoder=BackboneEncoder(backbone),
        decoder=CoarsestMap(backbone.channels[-1]),
        head=head(backbone.channels[-1], len(categories)),
        auxiliary_head=fcn_head(backbone.channels[-2], len(categories)) if auxiliary else None,
    )
