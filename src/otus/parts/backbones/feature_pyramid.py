"""Feature pyramid network: each level of a backbone plus the upsampled coarser levels, all with the same channels.

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
    """Computes ``count`` coarser levels from those of the pyramid and of the backbone, each of twice the stride."""

    count: int

    def __call__(self, pyramid: list[Tensor], backbone: list[Tensor]) -> list[Tensor]: ...


class MaxPoolLevel(nn.Module):
    """One extra level, the coarsest one subsampled by 2 (P6 of the paper, for large anchors only)."""

    count: int = 1

    def forward(self, pyramid: list[Tensor], backbone: list[Tensor]) -> list[Tensor]:
        """Compute the extra level from those of the pyramid."""
        return [F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]


class ConvolutionLevels(nn.Module):
    """P6 and P7 of RetinaNet (arXiv:1708.02002, footnote 2): 3x3 convolutions of stride 2, a ReLU before each but the first.

    Parameters
    ----------
    in_channels
        Channels of the feature map that the first extra level is computed from.
    out_channels
        Channels of the pyramid.
    count
        Number of levels: P6, P7 …
    from_backbone
        Whether the first is computed from the backbone's coarsest map, as in the paper, or from the pyramid's, as in most
        implementations since (default).
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
        """Compute the extra levels from those of the pyramid or of the backbone."""
        x = backbone[-1] if self.from_backbone else pyramid[-1]
        levels: list[Tensor] = []
        for conv in self.children():
            levels.append(conv(F.relu(levels[-1]) if levels else x))
        return levels


class FeaturePyramid(nn.Module):
    """A 1x1 convolution at each level, the coarser level upsampled and added, and a 3x3 convolution on each sum.

    Parameters
    ----------
    channels
        Channels of the backbone's feature maps, fine to coarse.
    out_channels
        Channels of every level of the pyramid.
    norm_layer
        Normalisation after each convolution (default: none, as in the paper).
    extra_levels
        Computes extra levels beyond the coarsest (default: one, by :class:`MaxPoolLevel`).

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
        """Return the strides of the pyramid's levels, given those of the backbone."""
        extra = (strides[-1] * 2 ** (i + 1) for i in range(self.extra_levels.count))
        return (*strides, *extra)

    def forward(self, maps: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b c _ _"]]:
        """Return the levels of the pyramid, fine to coarse, the extra ones last."""
        merged = [inner(x) for inner, x in zip(self.inner_blocks, maps, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            coarse = F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:], mode="nearest")
            merged[fine] = merged[fine] + coarse
        pyramid = [layer(x) for layer, x in zip(self.layer_blocks, merged, strict=True)]
        return pyramid + self.extra_levels(pyramid, maps)
