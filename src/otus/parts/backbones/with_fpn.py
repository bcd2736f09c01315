"""A backbone followed by a feature pyramid: the feature extractor of RetinaNet, FCOS and similar detectors.

Level l has stride 2**l. P2 would have most of the anchors and only serve objects of a few pixels, so dense detectors
begin at P3.
"""

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.backbones.backbone import Backbone
from otus.parts.backbones.efficientnet_lite import efficientnet_lite0_backbone
from otus.parts.backbones.feature_pyramid import ConvolutionLevels, FeaturePyramid
from otus.parts.backbones.freezing import Freezing
from otus.parts.backbones.torchvision import torchvision_backbone


class BackboneWithFPN(nn.Module):
    """A backbone followed by a feature pyramid."""

    def __init__(self, backbone: Backbone, pyramid: FeaturePyramid) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid

    @property
    def min_size(self) -> int:
        """Minimum height and width of an image: the backbone's."""
        return self.backbone.min_size

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return the levels of the pyramid, fine to coarse."""
        return self.pyramid(self.backbone(images))


def resnet50_fpn(freezing: Freezing, *, extra_from_backbone: bool = False) -> BackboneWithFPN:
    """Build ResNet-50 with P3 to P7 of 256 channels.

    Parameters
    ----------
    freezing
        Which weights of the backbone are not trained.
    extra_from_backbone
        Whether P6 is computed from C5, as in the paper of RetinaNet, instead of from P5.
    """
    backbone = torchvision_backbone("resnet50", levels=(3, 4, 5), freezing=freezing)
    in_channels = backbone.channels[-1] if extra_from_backbone else 256
    extra = ConvolutionLevels(in_channels, 256, from_backbone=extra_from_backbone)
    return BackboneWithFPN(backbone, FeaturePyramid(backbone.channels, extra_levels=extra))


def efficientnet_lite0_fpn(freezing: Freezing, *, channels: int = 96) -> BackboneWithFPN:
    """Build EfficientNet-Lite0 with P3 to P6 of ``channels`` channels, for images of about 320 pixels."""
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing)
    extra = ConvolutionLevels(channels, channels, count=1)
    return BackboneWithFPN(backbone, FeaturePyramid(backbone.channels, channels, extra_levels=extra))
