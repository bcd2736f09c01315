"""LR-ASPP: a segmentation head for telephones, two maps and one gate.

Shape shorthand: B images, C channels.

Paper: "Searching for MobileNetV3" (Howard et al., ICCV 2019, arXiv:1905.02244), section 6.4 and figure 10. Code relied on:
torchvision (BSD-3-Clause), whose layers' names these are, so that its checkpoints load.

The coarse map is convolved, and weighted channel by channel by a gate that sees the mean of the whole image (an attention of
one location); upsampled, it is classified, and the scores of a finer map are added. That is all: no dilated pyramid.

Departures: as torchvision's: the mean is of the whole map, not of windows of 49 pixels.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.parts.backbones import Backbone
from otus.parts.backbones.norms import LenientBatchNorm
from otus.parts.upsampling import Pooled
from otus.semantic.dilated import dilated_mobilenet_v3_large
from otus.semantic.encoders import BackboneEncoder
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories


class LRASPPHead(nn.Module):
    """Scores of a fine map plus those of a coarse one that was gated.

    Parameters
    ----------
    low_channels, high_channels
        Of the finer and of the coarser map.
    num_categories
        Number of scores of each location.
    inner_channels
        Of the coarse map after its convolution.
    """

    def __init__(
        self, low_channels: int, high_channels: int, num_categories: int, *, inner_channels: int = 128
    ) -> None:
        super().__init__()
        self.out_channels = num_categories
        self.cbr = nn.Sequential(
            nn.Conv2d(high_channels, inner_channels, 1, bias=False), LenientBatchNorm(inner_channels), nn.ReLU()
        )
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high_channels, inner_channels, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = nn.Conv2d(low_channels, num_categories, 1)
        self.high_classifier = nn.Conv2d(inner_channels, num_categories, 1)

    def forward(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]:
        """Return the scores at the size of the finer map."""
        low, high = levels[0].map, levels[-1].map
        gated = self.cbr(high) * self.scale(high)
        gated = F.interpolate(gated, low.shape[-2:], mode="bilinear", align_corners=False)
        return self.low_classifier(low) + self.high_classifier(gated)


def lraspp(backbone: Backbone, categories: Categories) -> Segmenter:
    """Build LR-ASPP over a backbone of two maps, a fine and a coarse one."""
    decoder = LRASPPHead(backbone.channels[0], backbone.channels[-1], len(categories))
    return Segmenter(categories=categories, encoder=BackboneEncoder(backbone), decoder=decoder, head=nn.Identity())


def lraspp_mobilenet_v3_large(categories: Categories) -> Segmenter:
    """Build the paper's: over MobileNetV3-Large at stride 16, with its map of stride 8."""
    return lraspp(dilated_mobilenet_v3_large(), categories)
