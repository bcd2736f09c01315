"""Labelling by a sliding window: what stands in the middle of each patch, pixel by pixel.

Shape shorthand: B images, K categories, C channels, s the side of a patch.

After "Learning hierarchical features for scene labeling" (Farabet, Couprie, Najman, LeCun, TPAMI 2013) and "Deep neural
networks segment neuronal membranes" (Cireşan et al., NeurIPS 2012): a small classifier sees a patch of s x s pixels and
says what its middle pixel shows; sliding over the image, it says so of every pixel, s * s times as much work as there
are pixels.

Neighbouring patches overlap nearly everywhere, and a convolution of a patch is the patch of a convolution: run once over the
whole image, the same layers give the same answers (``shared``), which is what the lecture calls the saving, and what led to
fully convolutional networks. Both are here, and equal to rounding.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.parts.upsampling import Pooled
from otus.semantic.segmenter import CoarsestMap, Segmenter
from otus.structures import Categories


class PatchClassifier(nn.Module):
    """Convolutions without padding that make one vector of a patch, slid over the image as an encoder.

    Parameters
    ----------
    widths
        Channels of the 3x3 convolutions; ``len(widths)`` of them see a patch of ``2 * len(widths) + 1`` pixels, the dilation
        doubled from one to the next sees ``2**(len(widths) + 1) - 1``.
    shared
        Run the layers once over the whole image, not once for each patch.
    """

    def __init__(self, widths: Sequence[int], *, shared: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            layers += [nn.Conv2d(before, after, 3, dilation=2**number), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.shared = shared
        self.side = 2 ** (len(widths) + 1) - 1
        self.channels: tuple[int, ...] = (widths[-1],)
        self.fine_channels: tuple[int, ...] = (3,)

    @property
    def min_size(self) -> int:
        """1: patches reach beyond the image, where there are zeros."""
        return 1

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Pooled]:
        """Return one level of the image's own size: the vector of the patch around each pixel."""
        half = self.side // 2
        padded = F.pad(images, (half, half, half, half))
        if self.shared:
            return [Pooled(self.layers(padded), images)]
        rows = []
        for top in range(images.shape[2]):  # a row of pixels at a time, so that memory does not grow with the image
            strip = padded[:, :, top : top + self.side].unfold(3, self.side, 1)  # (B, 3, s, W, s)
            patches = strip.permute(0, 3, 1, 2, 4).flatten(0, 1)
            rows.append(self.layers(patches).reshape(len(images), -1, self.channels[0]))
        return [Pooled(torch.stack(rows, dim=1).movedim(3, 1), images)]


def sliding_window_segmenter(
    categories: Categories, *, widths: Sequence[int] = (16, 32, 32), shared: bool = True
) -> Segmenter:
    """Label each pixel by the patch around it.

    Parameters
    ----------
    categories
        What the labels mean.
    widths
        Channels of the patch classifier's convolutions.
    shared
        Share the features of patches that overlap; without it each patch is computed alone, to show what that costs.
    """
    return Segmenter(
        categories=categories, encoder=PatchClassifier(widths, shared=shared), decoder=CoarsestMap(widths[-1])
    )
