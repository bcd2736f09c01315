"""A small image encoder for promptable models: a convolutional backbone and the pyramid of the small detectors.

Shape shorthand: B images, S x S pixels, C channels of the feature map, which has stride 16.

Not from a paper. SAM's vision transformers were trained on a billion masks; a backbone pretrained on ImageNet and a pyramid
pretrained on detection need far fewer images, and run in a tenth of MobileSAM's time. The pyramid's levels of strides 8, 16
and 32 are resampled to stride 16, concatenated, and fused by SAM's neck (arXiv:2304.02643, appendix A).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.parts.backbones import Backbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.promptable.image_encoder import neck


class BackboneEncoder(nn.Module):
    """Fuse the levels of strides 8, 16 and 32 of a feature pyramid into one feature map of stride 16.

    Parameters
    ----------
    backbone
        Backbone with feature maps of strides 8, 16 and 32.
    image_size
        Side S of the padded images, a multiple of 32.
    pyramid_channels
        Channels of the pyramid's levels.
    out_channels
        Channels C of the feature map.
    """

    def __init__(
        self, backbone: Backbone, *, image_size: int = 512, pyramid_channels: int = 96, out_channels: int = 128
    ) -> None:
        super().__init__()
        self.image_size, self.out_channels = image_size, out_channels
        self.backbone = backbone
        self.pyramid = FeaturePyramid(backbone.channels, pyramid_channels)
        self.downsampling = nn.Conv2d(pyramid_channels, pyramid_channels, 3, stride=2, padding=1)
        self.neck = neck(3 * pyramid_channels, out_channels)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Return the feature map of a batch of padded images."""
        fine, middle, coarse, *_ = self.pyramid(self.backbone(images))
        coarse = F.interpolate(coarse, middle.shape[-2:], mode="bilinear")
        return self.neck(torch.cat([self.downsampling(fine), middle, coarse], dim=1))
