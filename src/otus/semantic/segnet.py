"""SegNet: a decoder that mirrors the encoder, with max unpooling to the positions of the encoder's maxima.

Shape shorthand: B images, L levels, C channels.

Paper: "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation" (Badrinarayanan, Kendall, Cipolla,
TPAMI 2017, arXiv:1511.00561), section 3 and figure 2. Official code: github.com/alexgkendall/caffe-segnet.

Encoder: the 13 convolutions of VGG-16 with batch normalisation, and max pooling after each of the five stages. Decoder: the
stages in reverse, with upsampling before each. The paper's upsampling is max unpooling; ``upsampling`` replaces it by any
other, which is the experiment of the lecture: what does the upsampling change, all else being equal?

Departures: the decoder's convolutions are followed by ReLU, as in the paper's later version; the encoder is initialised
randomly unless weights of VGG-16 with batch normalisation are given.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.upsampling import Downsampling, Pooled, Upsampling, make_upsampling
from otus.semantic.encoders import VGG16_CHANNELS, VGG16_DEPTHS, PoolingEncoder, convolutions
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories


class MirrorDecoder(nn.Module):
    """Stages of convolutions with upsampling by 2 before each, coarse to fine, up to the image's resolution.

    Parameters
    ----------
    channels, depths
        Those of the encoder's stages, fine to coarse; the decoder's stage at level l ends with the channels of level l - 1.
    upsampling
        Name in :data:`~otus.parts.upsampling.UPSAMPLINGS`.
    paired
        Whether the encoder's downsamplings are max poolings.
    """

    def __init__(
        self, channels: Sequence[int], depths: Sequence[int], *, upsampling: Upsampling, paired: bool = True
    ) -> None:
        super().__init__()
        outputs = (channels[0], *channels[:-1])
        self.out_channels = channels[0]
        self.upsamplings = nn.ModuleList(make_upsampling(upsampling, width, paired=paired) for width in channels)
        self.stages = nn.ModuleList(
            nn.Sequential(*convolutions(before, before, depth - 1), *convolutions(before, after, 1))
            for before, after, depth in zip(channels, outputs, depths, strict=True)
        )

    def forward(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]:
        """Return a feature map at the image's resolution."""
        x = levels[-1].map
        for level, upsample, stage in reversed(list(zip(levels, self.upsamplings, self.stages, strict=True))):
            x = stage(upsample(x, level))
        return x


def segnet(
    categories: Categories,
    *,
    widths: Sequence[int] = VGG16_CHANNELS,
    depths: Sequence[int] = VGG16_DEPTHS,
    upsampling: Upsampling = "max-unpooling",
    downsampling: Downsampling = "max-pooling",
) -> Segmenter:
    """Build SegNet.

    Parameters
    ----------
    categories
        Names of the class indices.
    widths, depths
        Channels and convolutions of each stage.
    upsampling
        Name in :data:`~otus.parts.upsampling.UPSAMPLINGS`; ``max-unpooling`` requires ``max-pooling``.
    downsampling
        Name in :data:`~otus.parts.upsampling.DOWNSAMPLINGS`.
    """
    encoder = PoolingEncoder(widths, depths, downsampling=downsampling)
    decoder = MirrorDecoder(widths, depths, upsampling=upsampling, paired=downsampling == "max-pooling")
    return Segmenter(categories=categories, encoder=encoder, decoder=decoder)


def segnet_small(
    categories: Categories, *, upsampling: Upsampling = "max-unpooling", downsampling: Downsampling = "max-pooling"
) -> Segmenter:
    """Build a small SegNet for CPUs: four stages of one or two convolutions, 16 to 64 channels; see :func:`segnet`."""
    widths, depths = (16, 32, 64, 64), (1, 1, 2, 2)
    return segnet(categories, widths=widths, depths=depths, upsampling=upsampling, downsampling=downsampling)
