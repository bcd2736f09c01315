"""Backbones: images in, feature maps out, fine to coarse."""

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
