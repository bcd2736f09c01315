"""SegNet: a mirror of the encoder, which puts each value back to where the encoder's maximum was.

Shape shorthand: B images, L levels, C channels.

Paper: "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation" (Badrinarayanan, Kendall, Cipolla,
TPAMI 2017, arXiv:1511.00561), section 3 and figure 2. Official code: github.com/alexgkendall/caffe-segnet.

Encoder: the 13 convolutions of VGG-16 with batch normalisation, a max pooling after each of the five stages. Decoder: the
stages in reverse, an upsampling before each. The paper's upsampling is max unpooling; any other stands in its place here
(``upsampling``), which is the experiment of the lecture: everything else equal, what does the way up change?

Departures: the decoder's convolutions are followed by ReLU, as in the paper's later version; the encoder starts from random
weights unless those of VGG-16 with batch normalisation are given.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.upsampling import Downsampling, Pooled, Upsampling, make_upsampling
from otus.semantic.encoders import VGG16_CHANNELS, VGG16_DEPTHS, PoolingEncoder, convolutions
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories


class MirrorDecoder(nn.Module):
    """Upsample by 2 before each stage of convolutions, coarse to fine, until the image's size is reached.

    Parameters
    ----------
    channels, depths
        Of the encoder's stages, fine to coarse; the stage that comes back to level l ends with the channels of level l - 1.
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
        """Return a map of the image's size."""
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
    """The paper's network.

    Parameters
    ----------
    categories
        What the labels mean.
    widths, depths
        Channels and convolutions of each stage.
    upsampling
        Name in :data:`~otus.parts.upsampling.UPSAMPLINGS`; ``max-unpooling`` only after ``max-pooling``.
    downsampling
        Name in :data:`~otus.parts.upsampling.DOWNSAMPLINGS`.
    """
    encoder = PoolingEncoder(widths, depths, downsampling=downsampling)
    decoder = MirrorDecoder(widths, depths, upsampling=upsampling, paired=downsampling == "max-pooling")
    return Segmenter(categories=categories, encoder=encoder, decoder=decoder)


def segnet_small(
    categories: Categories, *, upsampling: Upsampling = "max-unpooling", downsampling: Downsampling = "max-pooling"
) -> Segmenter:
    """A small one for a CPU: four stages of one or two convolutions, 16 to 64 channels; arguments as of :func:`segnet`."""
    widths, depths = (16, 32, 64, 64), (1, 1, 2, 2)
    return segnet(categories, widths=widths, depths=depths, upsampling=upsampling, downsampling=downsampling)
