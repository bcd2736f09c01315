"""Semantic segmentation by a sliding window: the patch around each pixel is classified.

Shape shorthand: B images, K categories, C channels, s the side of a patch.

After "Learning hierarchical features for scene labeling" (Farabet, Couprie, Najman, LeCun, TPAMI 2013) and "Deep neural
networks segment neuronal membranes" (Cireşan et al., NeurIPS 2012): a small network classifies the middle pixel of a patch
of s x s pixels. It is applied to the patch of every pixel, so the work is s * s times that of the image.

Neighbouring patches overlap nearly everywhere, and convolution commutes with cropping: the same layers, run once over the
whole image, give the same result (``shared``), which led to fully convolutional networks. Both are implemented here; their
results differ by rounding only.
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
    """An encoder that applies convolutions without padding to the patch around each pixel, giving one vector per pixel.

    Parameters
    ----------
    widths
        Channels of the 3x3 convolutions. The dilation doubles from one to the next, so that the patch has
        ``2**(len(widths) + 1) - 1`` pixels a side.
    shared
        Run the layers once over the whole image instead of once for each patch.
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
        """1: patches that reach beyond the image are padded with zeros."""
        return 1

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Pooled]:
        """Return one level at the image's resolution: the vector of the patch around each pixel."""
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
    """Build a segmenter that classifies the patch around each pixel.

    Parameters
    ----------
    categories
        Names of the class indices.
    widths
        Channels of the patch classifier's convolutions.
    shared
        Share the computation of overlapping patches; False runs each patch separately, to show the cost.
    """
    return Segmenter(
        categories=categories, encoder=PatchClassifier(widths, shared=shared), decoder=CoarsestMap(widths[-1])
    )
