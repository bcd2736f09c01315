"""Backbones: images in, feature maps out, fine to coarse.

*Level* l is the feature map of stride 2**l: level 2 has a quarter of the image's side, as C2 to C5 are counted in the
paper of the feature pyramid. Every backbone has ``channels`` and ``strides``, one per feature map, and takes images of
any size.

- :mod:`~otus.parts.backbones.backbone`: the base class, and :class:`LayeredBackbone`, a sequence of layers that returns
  the outputs of some of them;
- :mod:`~otus.parts.backbones.torchvision`: AlexNet, VGG, ResNet, MobileNetV3 by torchvision's names;
- :mod:`~otus.parts.backbones.efficientnet_lite`: EfficientNet-Lite0, small and made for CPUs, the backbone of the packaged
  models;
- :mod:`~otus.parts.backbones.timm`: any ``features_only`` model of timm, where it is installed;
- :mod:`~otus.parts.backbones.feature_pyramid`, :mod:`~otus.parts.backbones.with_fpn`: the feature pyramid, alone and
  combined with a backbone;
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
