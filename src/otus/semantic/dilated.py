"""Segmenters with one head on the last map of a dilated backbone: what torchvision's FCN and DeepLabV3 share.

Shape shorthand: C channels, K categories.

A stage that keeps its stride by dilation sees as far as one that halves the map, and the map stays fine. The auxiliary
classifier on the map before the last is that of "Pyramid Scene Parsing Network" (Zhao et al., CVPR 2017, arXiv:1612.01105),
section 3.2. Code relied on: torchvision (BSD-3-Clause), whose layers' names these are, so that its checkpoints load.
"""

from collections.abc import Callable

from torch import nn

from otus.parts.backbones import Backbone, torchvision_backbone
from otus.parts.backbones.norms import LenientBatchNorm
from otus.semantic.encoders import BackboneEncoder
from otus.semantic.segmenter import CoarsestMap, Segmenter
from otus.structures import Categories


def dilated_resnet(name: str) -> Backbone:
    """Return a ResNet whose last two stages stay at stride 8, with the maps of both: what is labelled is the last."""
    return torchvision_backbone(name, levels=("layer3", "layer4"), output_stride=8)


def dilated_mobilenet_v3_large() -> Backbone:
    """Return MobileNetV3-Large at stride 16, with the map of stride 8 that torchvision's segmenters take and the last."""
    return torchvision_backbone("mobilenet_v3_large", levels=("4", "16"), output_stride=16)


def fcn_head(in_channels: int, num_categories: int) -> nn.Sequential:
    """Return torchvision's head of one map: a 3x3 convolution to a quarter of the channels, dropout, a classifier."""
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
    """Build a segmenter with one head on the last map of a dilated backbone.

    Parameters
    ----------
    backbone
        Its last map is labelled; the one before teaches too where ``auxiliary``.
    categories
        What the labels mean, background among them if it has a label.
    head
        Makes the head from the channels of the map and the number of categories.
    auxiliary
        Whether a second classifier, :func:`fcn_head`, learns from the map before the last, in training only.
    """
    return Segmenter(
        categories=categories,
        encoder=BackboneEncoder(backbone),
        decoder=CoarsestMap(backbone.channels[-1]),
        head=head(backbone.channels[-1], len(categories)),
        auxiliary_head=fcn_head(backbone.channels[-2], len(categories)) if auxiliary else None,
    )
