"""Trunks: pictures in, feature maps out, fine to coarse."""

from otus.parts.backbones.backbone import LayeredTrunk, Trunk
from otus.parts.backbones.efficientnet_lite import efficientnet_lite0_trunk, imagenet_efficientnet_lite0
from otus.parts.backbones.norms import freeze_norms, freeze_stages, fuse_frozen_norms
from otus.parts.backbones.timm import timm_trunk
from otus.parts.backbones.torchvision import torchvision_trunk

__all__ = [
    "LayeredTrunk",
    "Trunk",
    "efficientnet_lite0_trunk",
    "freeze_norms",
    "freeze_stages",
    "fuse_frozen_norms",
    "imagenet_efficientnet_lite0",
    "timm_trunk",
    "torchvision_trunk",
]
