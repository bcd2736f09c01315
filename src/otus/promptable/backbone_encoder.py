"""A small image encoder for promptable models: a convolutional backbone and the pyramid of the small detectors.

Shape shorthand: B images, S x S pixels, C channels of the map, which has stride 16.

Not of a paper. SAM's vision transformers need a billion masks to learn from; a backbone that knows ImageNet, and a pyramid
that has learned to detect, need far fewer images, and a tenth of MobileSAM's time. The levels of strides 8, 16 and 32 are
brought to stride 16 and mixed by SAM's neck (arXiv:2304.02643, appendix A).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d

from otus.parts.backbones import Backbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid


class BackboneEncoder(nn.Module):
    """Levels of strides 8, 16 and 32 of a pyramid as one map of stride 16.

    Parameters
    ----------
    backbone
        With maps of these strides.
    image_size
        S, a multiple of 32.
    pyramid_channels
        Of the pyramid's levels.
    out_channels
        C.
    """

    def __init__(
        self, backbone: Backbone, *, image_size: int = 512, pyramid_channels: int = 96, out_channels: int = 128
    ) -> None:
        super().__init__()
        self.image_size, self.out_channels = image_size, out_channels
        self.backbone = backbone
        self.pyramid = FeaturePyramid(backbone.channels, pyramid_channels)
        self.downsampling = nn.Conv2d(pyramid_channels, pyramid_channels, 3, stride=2, padding=1)
        self.neck = nn.Sequential(
            nn.Conv2d(3 * pyramid_channels, out_channels, 1, bias=False),
            LayerNorm2d(out_channels, eps=1e-6),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            LayerNorm2d(out_channels, eps=1e-6),
        )

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Return the map of a batch of padded images."""
        fine, middle, coarse, *_ = self.pyramid(self.backbone(images))
        coarse = F.interpolate(coarse, middle.shape[-2:], mode="bilinear")
        return self.neck(torch.cat([self.downsampling(fine), middle, coarse], dim=1))
