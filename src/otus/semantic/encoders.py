"""Encoders: from an image down to coarse maps, each step with what the way back up needs.

Shape shorthand: B images, H x W the image.

An encoder returns one :class:`~otus.parts.upsampling.Pooled` per level, fine to coarse: ``fine`` is what the step saw,
``map`` what it made of it. Any backbone is one (:class:`BackboneEncoder`); :class:`PoolingEncoder` is the kind that
SegNet, the deconvolution network and U-Net were drawn with, stages of 3x3 convolutions with a pooling after each.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn

from otus.parts.backbones import Backbone
from otus.parts.upsampling import Downsampling, Pooled, make_downsampling

VGG16_CHANNELS, VGG16_DEPTHS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)
"""Channels and convolutions of the stages of VGG-16."""


class Encoder(Protocol):
    """What a segmenter asks of its encoder.

    ``channels`` are those of each level's map, ``fine_channels`` those of what it was made from, ``min_size`` the
    pixels that each side of an image needs.
    """

    channels: tuple[int, ...]
    fine_channels: tuple[int, ...]

    @property
    def min_size(self) -> int: ...

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> list[Pooled]: ...


class BackboneEncoder(nn.Module):
    """A backbone as an encoder: each map was made from the next finer one, the finest from the image."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = backbone.channels
        self.fine_channels = (3, *backbone.channels[:-1])

    @property
    def min_size(self) -> int:
        """As of the backbone."""
        return self.backbone.min_size

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Pooled]:
        """Return the levels, fine to coarse."""
        maps = [images, *self.backbone(images)]
        return [Pooled(coarse, fine) for fine, coarse in pairwise(maps)]


class PoolingEncoder(nn.Module):
    """Stages of 3x3 convolutions, each with batch normalisation and ReLU, and a downsampling by 2 after each stage.

    Parameters
    ----------
    channels
        Of each stage.
    depths
        Number of convolutions of each stage.
    bottom, bottom_channels
        Further layers below the last downsampling, and the channels that they leave (default: none).
    downsampling
        Name in :data:`~otus.parts.upsampling.DOWNSAMPLINGS`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        *,
        bottom: nn.Module | None = None,
        bottom_channels: int = 0,
        downsampling: Downsampling = "max-pooling",
    ) -> None:
        super().__init__()
        self.channels = tuple(channels) if bottom is None else (*channels[:-1], bottom_channels)
        self.fine_channels = tuple(channels)
        inputs = (3, *channels[:-1])
        self.stages = nn.ModuleList(
            convolutions(before, after, depth) for before, after, depth in zip(inputs, channels, depths, strict=True)
        )
        self.downsamplings = nn.ModuleList(make_downsampling(downsampling, width) for width in channels)
        self.bottom = bottom

    @property
    def min_size(self) -> int:
        """1: an odd side is pooled as it is. While training, two values per channel, which batch normalisation needs."""
        return 2 ** len(self.channels) + 1 if self.training else 1

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Pooled]:
        """Return the levels, fine to coarse."""
        levels, x = [], images
        for stage, downsample in zip(self.stages, self.downsamplings, strict=True):
            levels.append(downsample(stage(x)))
            x = levels[-1].map
        if self.bottom is not None:
            levels[-1] = replace(levels[-1], map=self.bottom(x))
        return levels


def convolutions(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """Return ``depth`` 3x3 convolutions, each with batch normalisation and ReLU; the first changes the channels."""
    layers: list[nn.Module] = []
    for number in range(depth):
        convolution = nn.Conv2d(out_channels if number else in_channels, out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
