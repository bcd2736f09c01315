"""The deconvolution network: VGG-16 down to a single vector, mirrored by max unpooling and transposed convolutions.

Shape shorthand: B images, C channels.

Paper: "Learning Deconvolution Network for Semantic Segmentation" (Noh, Hong, Han, ICCV 2015, arXiv:1505.04366), section
3 and figure 2. Official code: github.com/HyeonwooNoh/DeconvNet.

The encoder is VGG-16 with its two fully connected layers as convolutions, the first of 7x7, which reduce an image of 224
pixels to one vector. The decoder mirrors it, with a transposed convolution of stride 1 for each convolution, and max
unpooling, which places values at the positions of the maxima. Unpooling gives a large, sparse map; the transposed
convolutions after it make it dense.

Departures: images of any size (the 7x7 convolution is padded, so larger images give a map of vectors); trained in one stage,
without the paper's object proposals.
"""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.upsampling import Pooled, Upsampling, make_upsampling
from otus.semantic.encoders import VGG16_CHANNELS, VGG16_DEPTHS, PoolingEncoder
from otus.semantic.segmenter import Segmenter
from otus.structures import Categories


class DeconvolutionDecoder(nn.Module):
    """A transposed 7x7 convolution of the map of vectors, then for each stage upsampling and transposed convolutions.

    Parameters
    ----------
    channels, depths
        Channels and number of convolutions of the encoder's stages, fine to coarse.
    vector
        Channels of the map of vectors.
    upsampling
        Name in :data:`~otus.parts.upsampling.UPSAMPLINGS`.
    """

    def __init__(self, channels: Sequence[int], depths: Sequence[int], vector: int, *, upsampling: Upsampling) -> None:
        super().__init__()
        self.out_channels = channels[0]
        self.expand = nn.Sequential(*_normalised(nn.ConvTranspose2d(vector, channels[-1], 7, padding=3, bias=False)))
        self.upsamplings = nn.ModuleList(make_upsampling(upsampling, width, paired=True) for width in channels)
        self.stages = nn.ModuleList()
        for before, after, depth in zip(channels, (channels[0], *channels[:-1]), depths, strict=True):
            widths = [before] * depth + [after]
            self.stages.append(
                nn.Sequential(
                    *(
                        layer
                        for inputs, outputs in pairwise(widths)
                        for layer in _normalised(nn.ConvTranspose2d(inputs, outputs, 3, padding=1, bias=False))
                    )
                )
            )

    def forward(self, levels: list[Pooled]) -> Float[Tensor, "b c h w"]:
        """Return a feature map at the image's resolution."""
        x = self.expand(levels[-1].map)
        for level, upsample, stage in reversed(list(zip(levels, self.upsamplings, self.stages, strict=True))):
            x = stage(upsample(x, level))
        return x


def deconvolution_network(
    categories: Categories,
    *,
    widths: Sequence[int] = VGG16_CHANNELS,
    depths: Sequence[int] = VGG16_DEPTHS,
    vector: int = 4096,
    upsampling: Upsampling = "max-unpooling",
) -> Segmenter:
    """Build the deconvolution network.

    Parameters
    ----------
    categories
        Names of the class indices.
    widths, depths
        Channels and convolutions of each stage (default: VGG-16's).
    vector
        Channels of the two layers at the bottom.
    upsampling
        Name in :data:`~otus.parts.upsampling.UPSAMPLINGS`.
    """
    bottom = nn.Sequential(
        *_normalised(nn.Conv2d(widths[-1], vector, 7, padding=3, bias=False)),
        *_normalised(nn.Conv2d(vector, vector, 1, bias=False)),
    )
    encoder = PoolingEncoder(widths, depths, bottom=bottom, bottom_channels=vector)
    decoder = DeconvolutionDecoder(widths, depths, vector, upsampling=upsampling)
    return Segmenter(categories=categories, encoder=encoder, decoder=decoder)


def _normalised(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]
