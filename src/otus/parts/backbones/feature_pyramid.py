"""Feature pyramid: every level of a backbone enriched by the coarser ones, all with as many channels.

Paper: "Feature Pyramid Networks for Object Detection" (Lin et al., CVPR 2017, arXiv:1612.03144), section 3.
Reference: torchvision ``FeaturePyramidNetwork`` (BSD-3-Clause), whose names are kept so that its weights load.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation


class ExtraLevels(Protocol):
    """Makes ``count`` coarser levels of the pyramid's and the backbone's, each of twice the stride."""

    count: int

    def __call__(self, pyramid: list[Tensor], backbone: list[Tensor]) -> list[Tensor]: ...


class MaxPoolLevel(nn.Module):
    """One more level on top, every second step of the coarsest (P6 of the paper, for large anchors only)."""

    count: int = 1

    def forward(self, pyramid: list[Tensor], backbone: list[Tensor]) -> list[Tensor]:
        """The extra levels, given those of the pyramid and of the backbone."""
        return [F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]


class ConvolutionLevels(nn.Module):
    """P6 and P7 of RetinaNet (arXiv:1708.02002, footnote 2): 3x3 convolutions of stride 2, a ReLU before each but the first.

    Parameters
    ----------
    in_channels
        Of the map that the first is made of.
    out_channels
        Of the pyramid.
    count
        How many levels: P6, P7 …
    from_backbone
        Start from the backbone's coarsest map, as the paper, and not from the pyramid's, as most since.
    """

    def __init__(self, in_channels: int, out_channels: int, *, count: int = 2, from_backbone: bool = False) -> None:
        super().__init__()
        self.count = count
        self.from_backbone = from_backbone
        for i in range(count):
            conv = nn.Conv2d(out_channels if i else in_channels, out_channels, 3, stride=2, padding=1)
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.add_module(f"p{6 + i}", conv)

    def forward(self, pyramid: list[Tensor], backbone: list[Tensor]) -> list[Tensor]:
        """The extra levels, given those of the pyramid and of the backbone."""
        x = backbone[-1] if self.from_backbone else pyramid[-1]
        levels: list[Tensor] = []
        for conv in self.children():
            levels.append(conv(F.relu(levels[-1]) if levels else x))
        return levels


class FeaturePyramid(nn.Module):
    """A 1x1 convolution at each level, the coarser level enlarged and added, a 3x3 convolution on each sum.

    Parameters
    ----------
    channels
        Channels of the backbone's maps, fine to coarse.
    out_channels
        Channels of every level of the pyramid.
    norm_layer
        Normalisation after each convolution; None as in the paper.
    extra_levels
        What makes further levels on top; one by max pooling without it.

    Examples
    --------
    >>> FeaturePyramid((64, 128), 32).strides_of((8, 16))
    (8, 16, 32)
    """

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int = 256,
        *,
        norm_layer: Callable[..., nn.Module] | None = None,
        extra_levels: ExtraLevels | None = None,
    ) -> None:
        super().__init__()

        def convolution(inputs: int, size: int) -> nn.Module:
            return Conv2dNormActivation(inputs, out_channels, size, norm_layer=norm_layer, activation_layer=None)

        self.inner_blocks = nn.ModuleList(convolution(inputs, 1) for inputs in channels)
        self.layer_blocks = nn.ModuleList(convolution(out_channels, 3) for _ in channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.extra_levels: ExtraLevels = MaxPoolLevel() if extra_levels is None else extra_levels
        self.out_channels = out_channels

    def strides_of(self, strides: Sequence[int]) -> tuple[int, ...]:
        """Strides of the pyramid's levels over a backbone with these strides."""
        extra = (strides[-1] * 2 ** (i + 1) for i in range(self.extra_levels.count))
        return (*strides, *extra)

    def forward(self, maps: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """The levels of the pyramid, fine to coarse, the extra ones last."""
        merged = [inner(x) for inner, x in zip(self.inner_blocks, maps, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            coarse = F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:], mode="nearest")
            merged[fine] = merged[fine] + coarse
        pyramid = [layer(x) for layer, x in zip(self.layer_blocks, merged, strict=True)]
        return pyramid + self.extra_levels(pyramid, maps)
