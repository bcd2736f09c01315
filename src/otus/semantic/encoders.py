"""Encoders: from an image to feature maps of decreasing resolution, with what a decoder needs to upsample them.

Shape shorthand: B images, H x W the image.

An encoder returns one :class:`~otus.parts.upsampling.Pooled` per level, fine to coarse: ``fine`` is the input of the level,
``map`` its output. :class:`BackboneEncoder` makes an encoder of any backbone; :class:`PoolingEncoder` is the encoder of
SegNet, the deconvolution network and U-Net: stages of 3x3 convolutions, each followed by pooling.
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
    """Interface of a segmenter's encoder.

    ``channels`` are those of each level's output, ``fine_channels`` those of its input, ``min_size`` the minimum height and
    width of an image.
    """

    channels: tuple[int, ...]
    fine_channels: tuple[int, ...]

    @property
    def min_size(self) -> int: ...

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> list[Pooled]: ...


class BackboneEncoder(nn.Module):
    """A backbone as an encoder: the input of each level is the next finer feature map, that of the finest the image."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = backbone.channels
        self.fine_channels = (3, *backbone.channels[:-1])

    @property
    def min_size(self) -> int:
        """Minimum height and width of an image, that of the backbone."""
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
        Channels of each stage.
    depths
        Number of convolutions of each stage.
    bottom, bottom_channels
        Further layers after the last downsampling, and their output channels (default: none).
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
        """1, since odd sides can be pooled; in training so much that batch normalisation gets two values per channel."""
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
    """Build ``depth`` 3x3 convolutions, each with batch normalisation and ReLU; the first changes the channels."""
    layers: list[nn.Module] = []
    for number in range(depth):
        convolution = nn.Conv2d(out_channels if number else in_channels, out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
