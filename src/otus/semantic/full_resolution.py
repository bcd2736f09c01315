"""A fully convolutional network that never leaves the image's resolution: the plainest way to label every pixel at once.

Shape shorthand: B images, K categories, C channels.

The lecture's second way: a stack of convolutions, each with as many outputs as there are pixels, and a classifier of
each. All pixels are labelled in one pass, but every layer costs what the image's size costs, and without downsampling
(or dilation) a pixel sees two more pixels with each layer: twenty layers for 41. Encoders and decoders are the answer
to both.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.upsampling import Pooled
from otus.semantic.encoders import convolutions
from otus.semantic.segmenter import CoarsestMap, Segmenter
from otus.structures import Categories


class FullResolutionEncoder(nn.Module):
    """3x3 convolutions of stride 1, each with batch normalisation and ReLU: one level, as large as the image."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.layers = nn.Sequential(
            *(convolutions(before, after, 1) for before, after in zip(inputs, widths, strict=True))
        )
        self.channels: tuple[int, ...] = (widths[-1],)
        self.fine_channels: tuple[int, ...] = (3,)

    @property
    def min_size(self) -> int:
        """1; while training 2, because batch normalisation refuses a single value."""
        return 2 if self.training else 1

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Pooled]:
        """Return the one level."""
        return [Pooled(self.layers(images), images)]


def full_resolution(categories: Categories, *, widths: Sequence[int] = (16,) * 8) -> Segmenter:
    """Label each pixel from ``2 * len(widths) + 1`` pixels around it, all at once.

    Parameters
    ----------
    categories
        What the labels mean.
    widths
        Channels of each convolution.
    """
    return Segmenter(categories=categories, encoder=FullResolutionEncoder(widths), decoder=CoarsestMap(widths[-1]))
