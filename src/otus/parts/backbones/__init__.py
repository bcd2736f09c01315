"""Trunks: pictures in, feature maps out, fine to coarse."""

from otus.parts.backbones.torchvision import torchvision_trunk
from otus.parts.backbones.trunk import LayeredTrunk, Trunk

__all__ = ["LayeredTrunk", "Trunk", "torchvision_trunk"]
