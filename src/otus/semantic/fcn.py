"""FCN: coarse feature maps are classified, and their logits are upsampled and refined by those of finer feature maps.

Shape shorthand: B images, K categories, C channels.

Paper: "Fully Convolutional Networks for Semantic Segmentation" (Long, Shelhamer, Darrell, CVPR 2015, arXiv:1411.4038),
section 4.2 and figure 3. Official code: github.com/shelhamer/fcn.berkeleyvision.org (BSD). :func:`fcn_head` and the networks
over dilated ResNets are torchvision's (BSD-3-Clause), whose checkpoints can be loaded.

FCN-32s classifies the coarsest feature map (stride 32) and upsamples the logits. FCN-16s upsamples them by 2 and adds the
logits of stride 16, FCN-8s those of stride 8 in the same way: coarse maps contribute semantics, fine maps location.

Departures: any backbone instead of VGG-16 with its fully connected layers as convolutions; all layers are trained together,
not stage by stage; the last upsampling to the image is bilinear, like the paper's fixed one, and so are the earlier ones
unless ``upsampling`` names another; the loss is the mean over the labelled pixels, not their sum.
"""

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.backbones import Backbone, Freezing, efficientnet_lite0_backbone
from otus.parts.upsampling import Pooled, UnpairedUpsampling, make_upsampling
from otus.semantic.dilated import dilated_resnet, dilated_segmenter, fcn_head
from otus.semantic.encoders import BackboneEncoder
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories


class SkipScores(nn.Module):
    """A decoder that sums the logits of each level from coarse to fine.

    Parameters
    ----------
    channels
        Channels of each level's feature map, fine to coarse.
    num_categories
        Number of logits per location.
    upsampling
        Name in :data:`~otus.parts.upsampling.UPSAMPLINGS`.
    """

    def __init__(self, channels: tuple[int, ...], num_categories: int, *, upsampling: UnpairedUpsampling) -> None:
        super().__init__()
        self.out_channels = num_categories
        self.classifiers = nn.ModuleList(nn.Conv2d(width, num_categories, 1) for width in channels)
        self.upsamplings = nn.ModuleList(make_upsampling(upsampling, num_categories) for _ in channels[1:])
        for classifier in self.classifiers:  # as in the paper: the logits of finer maps are zero at first
            nn.init.zeros_(classifier.weight)  # type: ignore[arg-type]
            nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]

    def forward(self, levels: list[Pooled]) -> Float[Tensor, "b k h w"]:
        """Return the logits at the resolution of the finest level."""
        scores = [classifier(level.map) for classifier, level in zip(self.classifiers, levels, strict=True)]
        x = scores[-1]
        for number in range(len(levels) - 2, -1, -1):
            x = scores[number] + self.upsamplings[number](x, levels[number + 1])
        return x


def fcn(backbone: Backbone, categories: Categories, *, upsampling: UnpairedUpsampling = "bilinear") -> Segmenter:
    """Build an FCN that classifies each feature map of a backbone.

    Parameters
    ----------
    backbone
        Its feature maps determine the variant: stride 32 alone is FCN-32s, 16 and 32 FCN-16s, 8, 16 and 32 FCN-8s.
    categories
        Names of the class indices.
    upsampling
        Upsampling between levels: a name in :data:`~otus.parts.upsampling.UPSAMPLINGS` except ``max-unpooling``.
    """
    decoder = SkipScores(backbone.channels, len(categories), upsampling=upsampling)
    return Segmenter(categories=categories, encoder=BackboneEncoder(backbone), decoder=decoder, head=nn.Identity())


def fcn_efficientnet_lite0(
    categories: Categories, *, upsampling: UnpairedUpsampling = "bilinear", freezing: Freezing = Freezing()
) -> Segmenter:
    """Build a small FCN-8s over EfficientNet-Lite0, see :func:`fcn`; ``freezing`` says which backbone weights are frozen."""
    return fcn(efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing), categories, upsampling=upsampling)


def fcn_resnet50(categories: Categories, *, auxiliary: bool = True) -> Segmenter:
    """Build torchvision's FCN over ResNet-50 at stride 8; see :func:`~otus.semantic.dilated.dilated_segmenter`."""
    return dilated_segmenter(dilated_resnet("resnet50"), categories, head=fcn_head, auxiliary=auxiliary)


def fcn_resnet101(categories: Categories, *, auxiliary: bool = True) -> Segmenter:
    """Build torchvision's FCN over ResNet-101 at stride 8; see :func:`~otus.semantic.dilated.dilated_segmenter`."""
    return dilated_segmenter(dilated_resnet("resnet101"), categories, head=fcn_head, auxiliary=auxiliary)
