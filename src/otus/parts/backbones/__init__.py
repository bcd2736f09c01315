"""Backbones: images in, feature maps out, fine to coarse.

*Level* l is the feature map of stride 2**l: level 2 is a quarter of the image's size, as C2 to C5 are counted in the
paper of the feature pyramid. Whatever the network, a backbone says its ``channels`` and ``strides``, and takes images
of any size.

- :mod:`~otus.parts.backbones.backbone`: the base, and :class:`LayeredBackbone`, layers in a row of which some are tapped;
- :mod:`~otus.parts.backbones.torchvision`: AlexNet, VGG, ResNet, MobileNetV3 by torchvision's names;
- :mod:`~otus.parts.backbones.efficientnet_lite`: EfficientNet-Lite0, small and made for CPUs, over which the packaged
  models are;
- :mod:`~otus.parts.backbones.timm`: any ``features_only`` model of timm, where it is installed;
- :mod:`~otus.parts.backbones.feature_pyramid`, :mod:`~otus.parts.backbones.with_fpn`: the pyramid, alone and over a
  backbone;
- :mod:`~otus.parts.backbones.freezing`: which weights are not trained; :mod:`~otus.parts.backbones.norms`: batch norms,
  frozen and folded.
"""

from otus.parts.backbones.backbone import Backbone, LayeredBackbone
from otus.parts.backbones.efficientnet_lite import efficientnet_lite0_backbone, imagenet_efficientnet_lite0
from otus.parts.backbones.freezing import Freezing
from otus.parts.backbones.norms import freeze_norms, freeze_stages, fuse_frozen_norms
from otus.parts.backbones.timm import timm_backbone
from otus.parts.backbones.torchvision import torchvision_backbone

__all__ = [
    "Backbone",
    "Freezing",
    "LayeredBackbone",
    "efficientnet_lite0_backbone",
    "freeze_norms",
    "freeze_stages",
    "fuse_frozen_norms",
    "imagenet_efficientnet_lite0",
    "timm_backbone",
    "torchvision_backbone",
]
