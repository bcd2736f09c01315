"""LR-ASPP: a light segmentation head for mobile devices, with two feature maps and a gate.

Shape shorthand: B images, C channels.

Paper: "Searching for MobileNetV3" (Howard et al., ICCV 2019, arXiv:1905.02244), section 6.4 and figure 10. Code relied on:
torchvision (BSD-3-Clause), with the same layer names, so that its checkpoints can be loaded.

The coarse feature map is convolved and multiplied, channel by channel, by a gate computed from its global mean
(squeeze-and-excitation); it is upsampled and classified, and the logits of a finer feature map are added.

Departures: those of torchvision: the mean is over the whole feature map, not over windows of 49 pixels.
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
    """Sum of the logits of a fine feature map and of a gated coarse one.

    Parameters
    ----------
    low_channels, high_channels
        Channels of the finer (low-level) and of the coarser (high-level) feature map.
    num_categories
        Number of logits per location.
    inner_channels
        Channels of the coarse feature map after its convolution.
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
        """Return the logits at the resolution of the finer feature map."""
        low, high = levels[0].map, levels[-1].map
        gated = self.cbr(high) * self.scale(high)
        gated = F.interpolate(gated, low.shape[-2:], mode="bilinear", align_corners=False)
        return self.low_classifier(low) + self.high_classifier(gated)


def lraspp(backbone: Backbone, categories: Categories) -> Segmenter:
    """Build LR-ASPP over a backbone with two feature maps, a fine and a coarse one."""
    decoder = LRASPPHead(backbone.channels[0], backbone.channels[-1], len(categories))
    return Segmenter(categories=categories, encoder=BackboneEncoder(backbone), decoder=decoder, head=nn.Identity())


def lraspp_mobilenet_v3_large(categories: Categories) -> Segmenter:
    """Build the paper's LR-ASPP over MobileNetV3-Large with output stride 16, and its feature map of stride 8."""
    return lraspp(dilated_mobilenet_v3_large(), categories)
