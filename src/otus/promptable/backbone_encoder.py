"""A small image encoder for promptable models: a convolutional backbone and the pyramid of the small detectors.

Shape shorthand: B images, S x S pixels, D channels of the feature map, which has stride 16.

Not from a paper. SAM's vision transformers were trained on a billion masks; a backbone pretrained on ImageNet and a pyramid
pretrained on detection need far fewer images, and run in a tenth of MobileSAM's time. The pyramid's levels of strides 8, 16
and 32 are resampled to stride 16, concatenated, and fused by SAM's neck (arXiv:2304.02643, appendix A).

So that masks follow borders that a map of stride 16 cannot locate, maps of strides 8 and 4 are passed to the mask decoder
too, as in "SAM 2" (Ravi et al., ICLR 2025, arXiv:2408.00714), appendix D.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d

from otus.errors import UsageError
from otus.parts.backbones import Backbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.promptable.image_encoder import neck

_DETAILS_SCALE = 0.2
"""Initial scale of the details: the decoder adds them to what depends on the prompt, which they must not drown."""


class BackboneEncoder(nn.Module):
    """Fuse the levels of strides 8, 16 and 32 of a feature pyramid into one feature map of stride 16; append finer ones.

    Parameters
    ----------
    backbone
        Backbone with feature maps of strides 4, 8, 16 and 32.
    image_size
        Side S of the padded images, a multiple of 32.
    pyramid_channels
        Channels of the pyramid's levels.
    out_channels
        Channels D of the feature map.
    """

    def __init__(
        self, backbone: Backbone, *, image_size: int = 512, pyramid_channels: int = 96, out_channels: int = 128
    ) -> None:
        super().__init__()
        if tuple(backbone.strides) != (4, 8, 16, 32):
            raise UsageError(f"backbone: expected feature maps of strides 4, 8, 16 and 32, got {backbone.strides}")
        if image_size < 64 or image_size % 32:
            raise UsageError(f"image_size: expected a multiple of 32, at least 64, got {image_size}")
        self.image_size, self.out_channels = image_size, out_channels
        self.backbone = backbone
        self.pyramid = FeaturePyramid(backbone.channels[1:], pyramid_channels)
        self.downsampling = nn.Conv2d(pyramid_channels, pyramid_channels, 3, stride=2, padding=1)
        self.neck = neck(3 * pyramid_channels, out_channels)
        self.details = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_channels, channels, 1), LayerNorm2d(channels, eps=1e-6))
            for in_channels, channels in (
                (pyramid_channels, out_channels // 4),
                (backbone.channels[0], out_channels // 8),
            )
        )
        for norm in (module for module in self.details.modules() if isinstance(module, LayerNorm2d)):
            nn.init.constant_(norm.weight, _DETAILS_SCALE)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Return the feature maps of a batch of padded images.

        Returns
        -------
        features
            (B, 4 D, h, w): D channels of the feature map, then the details, whose pixels at each location are channels: D
            of stride 8 (D / 4 channels, 2 x 2 pixels) and 2 D of stride 4 (D / 8 channels, 4 x 4 pixels).
        """
        finest, *levels = self.backbone(images)
        fine, middle, coarse, *_ = self.pyramid(levels)
        coarse = F.interpolate(coarse, middle.shape[-2:], mode="bilinear")
        features = self.neck(torch.cat([self.downsampling(fine), middle, coarse], dim=1))
        stride_8, stride_4 = (project(level) for project, level in zip(self.details, (fine, finest), strict=True))
        return torch.cat([features, F.pixel_unshuffle(stride_8, 2), F.pixel_unshuffle(stride_4, 4)], dim=1)
