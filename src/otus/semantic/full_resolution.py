"""A fully convolutional network at full resolution, without downsampling.

Shape shorthand: B images, K categories, C channels.

The lecture's second approach: a stack of convolutions of stride 1 and a classifier of each pixel. All pixels are labelled in
one pass, but every layer has the cost of the full image, and without downsampling or dilation the receptive field grows by
only two pixels per layer: 20 layers for 41 pixels. Encoder and decoder solve both problems.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.upsampling import Pooled
from otus.semantic.encoders import convolutions
from otus.semantic.segmenter import CoarsestMap, Segmenter
from otus.structures import Categories


class FullResolutionEncoder(nn.Module):
    """3x3 convolutions of stride 1, each with batch normalisation and ReLU: one level at the image's resolution."""

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
        """1; in training 2, because batch normalisation needs more than one value per channel."""
        return 2 if self.training else 1

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Pooled]:
        """Return the single level."""
        return [Pooled(self.layers(images), images)]


def full_resolution(categories: Categories, *, widths: Sequence[int] = (16,) * 8) -> Segmenter:
    """Build a segmenter of stride 1 with a receptive field of ``2 * len(widths) + 1`` pixels.

    Parameters
    ----------
    categories
        Names of the class indices.
    widths
        Channels of each convolution.
    """
    return Segmenter(categories=categories, encoder=FullResolutionEncoder(widths), decoder=CoarsestMap(widths[-1]))
