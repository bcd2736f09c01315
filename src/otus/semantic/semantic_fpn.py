"""Semantic FPN: semantic segmentation with the feature pyramid of detectors.

Shape shorthand: B images, C channels.

Paper: "Panoptic Feature Pyramid Networks" (Kirillov, Girshick, He, Dollár, CVPR 2019, arXiv:1901.02446), section 3: the
semantic branch alone, :class:`~otus.parts.heads.semantic_fpn_head.SemanticFPNHead`.

Backbone and pyramid are those of the detectors, so that each can be initialised from the other's weights.

Departures: EfficientNet-Lite0 instead of ResNet, a pyramid of strides 8 to 64 (paper: 4 to 32), and batch normalisation,
which is fused into the convolutions for inference.
"""

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.backbones import Freezing, efficientnet_lite0_backbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.heads.semantic_fpn_head import SemanticFPNHead
from otus.parts.upsampling import Pooled
from otus.semantic.encoders import BackboneEncoder
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories


class SemanticFPNDecoder(nn.Module):
    """A feature pyramid over the encoder's maps, and the semantic branch over the pyramid."""

    def __init__(self, pyramid: FeaturePyramid, head: SemanticFPNHead, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.pyramid, self.head, self.dropout = pyramid, head, nn.Dropout2d(dropout)
        self.out_channels = head.out_channels

    def forward(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]:
        """Return a feature map at the resolution of the finest level."""
        return self.dropout(self.head(self.pyramid([level.map for level in levels])))


def semantic_fpn_efficientnet_lite0(categories: Categories, *, freezing: Freezing = Freezing()) -> Segmenter:
    """Build a small Semantic FPN over EfficientNet-Lite0, with the pyramid of the packaged Mask R-CNN.

    Parameters
    ----------
    categories
        Names of the class indices.
    freezing
        Which weights of the backbone are frozen.
    """
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing)
    pyramid = FeaturePyramid(backbone.channels, 96)
    head = SemanticFPNHead(96, pyramid.strides_of(backbone.strides), norm_layer=nn.BatchNorm2d)
    decoder = SemanticFPNDecoder(pyramid, head)
    return Segmenter(categories=categories, encoder=BackboneEncoder(backbone), decoder=decoder)
