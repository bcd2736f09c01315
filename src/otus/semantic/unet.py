"""U-Net: each feature map of the decoder is concatenated with the encoder's of the same resolution.

Shape shorthand: B images, C channels.

Paper: "U-Net: Convolutional Networks for Biomedical Image Segmentation" (Ronneberger, Fischer, Brox, MICCAI 2015,
arXiv:1505.04597), section 2 and figure 1.

Each decoder step doubles the resolution and halves the channels by a transposed convolution, concatenates the encoder's
feature map of that resolution, which has the details that pooling lost, and convolves twice.

Departures: convolutions are padded, so that the output has the size of the image and no mirrored tiles are needed; batch
normalisation after each convolution; any backbone as encoder. Over a backbone whose finest feature map is coarser than the
image there is nothing to concatenate in the last steps: the logits are interpolated, as FCN's are.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.backbones import Freezing, efficientnet_lite0_backbone
from otus.parts.upsampling import Downsampling, Pooled, UnpairedUpsampling, make_upsampling
from otus.semantic.encoders import BackboneEncoder, Encoder, PoolingEncoder, convolutions
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories


class UNetDecoder(nn.Module):
    """For each level: upsample, concatenate the encoder's feature map of that resolution, convolve twice.

    Parameters
    ----------
    encoder
        Encoder whose levels are concatenated, from the coarsest on.
    widths
        Channels of each decoder step, coarse to fine; one for each level that is concatenated.
    upsampling
        Name in :data:`~otus.parts.upsampling.UPSAMPLINGS` except ``max-unpooling``.
    """

    def __init__(
        self, encoder: Encoder, widths: Sequence[int], *, upsampling: UnpairedUpsampling = "transposed-convolution"
    ) -> None:
        super().__init__()
        self.skip_levels = range(len(encoder.channels) - 1, len(encoder.channels) - 1 - len(widths), -1)
        before, self.upsamplings, self.stages = encoder.channels[-1], nn.ModuleList(), nn.ModuleList()
        for level, width in zip(self.skip_levels, widths, strict=True):
            self.upsamplings.append(make_upsampling(upsampling, before))
            self.stages.append(convolutions(before + encoder.fine_channels[level], width, 2))
            before = width
        self.out_channels = before

    def forward(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]:
        """Return a feature map at the resolution of the finest level that is concatenated."""
        x = levels[-1].map
        for level, upsample, stage in zip(self.skip_levels, self.upsamplings, self.stages, strict=True):
            x = stage(torch.cat([upsample(x, levels[level]), levels[level].fine], dim=1))
        return x


def unet(
    categories: Categories,
    *,
    widths: Sequence[int] = (64, 128, 256, 512, 1024),
    upsampling: UnpairedUpsampling = "transposed-convolution",
    downsampling: Downsampling = "max-pooling",
) -> Segmenter:
    """Build the paper's U-Net: five stages of two convolutions, four poolings and four decoder steps.

    Parameters
    ----------
    categories
        Names of the class indices.
    widths
        Channels of each stage of the encoder, fine to coarse.
    upsampling
        Name in :data:`~otus.parts.upsampling.UPSAMPLINGS` except ``max-unpooling``.
    downsampling
        Name in :data:`~otus.parts.upsampling.DOWNSAMPLINGS`.
    """
    *pooled, bottom = widths
    encoder = PoolingEncoder(
        pooled,
        [2] * len(pooled),
        bottom=convolutions(pooled[-1], bottom, 2),
        bottom_channels=bottom,
        downsampling=downsampling,
    )
    decoder = UNetDecoder(encoder, pooled[::-1], upsampling=upsampling)
    return Segmenter(categories=categories, encoder=encoder, decoder=decoder)


def unet_efficientnet_lite0(
    categories: Categories, *, upsampling: UnpairedUpsampling = "bilinear", freezing: Freezing = Freezing(level=0)
) -> Segmenter:
    """Build a small U-Net over EfficientNet-Lite0, strides 2 to 32; ``freezing`` says which backbone weights are frozen."""
    encoder = BackboneEncoder(efficientnet_lite0_backbone(levels=(1, 2, 3, 4, 5), freezing=freezing))
    decoder = UNetDecoder(encoder, (128, 96, 64, 48), upsampling=upsampling)
    return Segmenter(categories=categories, encoder=encoder, decoder=decoder)
