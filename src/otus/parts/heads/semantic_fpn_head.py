"""The semantic branch of Panoptic FPN: every level of a feature pyramid upsampled to the finest one's size, and summed.

Shape shorthand: B images, C channels, h x w the finest level.

Paper: "Panoptic Feature Pyramid Networks" (Kirillov, Girshick, He, Dollár, CVPR 2019, arXiv:1901.02446), section 3 and
figure 3. On its own over a pyramid it is Semantic FPN (:mod:`otus.semantic.semantic_fpn`); together with the heads of Mask
R-CNN it is Panoptic FPN.

A level of 2**n times the finest stride goes through n steps of a 3x3 convolution, a norm, ReLU and bilinear upsampling by
2; the finest level goes through one step without upsampling. Coarse levels contribute semantics, fine ones boundaries.

Departures: the finest level is that of the pyramid, whatever its stride (the paper: 4).
"""

from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

GROUP_NORM = partial(nn.GroupNorm, 32)
"""The paper's norm, which suits small batches."""


class SemanticFPNHead(nn.Module):
    """Upsample each level of a pyramid to the size of the finest, and sum them.

    Parameters
    ----------
    in_channels
        Channels of every level.
    strides
        Strides of the levels, fine to coarse, each twice the one before.
    out_channels
        Channels of the sum.
    norm_layer
        Normalisation after each convolution (default: group normalisation of 32 groups).
    """

    def __init__(
        self,
        in_channels: int,
        strides: Sequence[int],
        *,
        out_channels: int = 128,
        norm_layer: Callable[[int], nn.Module] = GROUP_NORM,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.levels = nn.ModuleList()
        for stride in strides:
            steps = max(1, (stride // strides[0]).bit_length() - 1)
            inputs = [in_channels, *[out_channels] * (steps - 1)]
            self.levels.append(
                nn.Sequential(*(Conv2dNormActivation(c, out_channels, 3, norm_layer=norm_layer) for c in inputs))
            )

    def forward(self, pyramid: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        """Return the sum, at the size of the finest level."""
        total = self.levels[0](pyramid[0])
        for number in range(1, len(pyramid)):
            x = pyramid[number]
            # Interpolate to the size of the next finer level, which is not exactly twice this one's if a side is odd.
            for convolution, finer in zip(self.levels[number].children(), reversed(pyramid[:number]), strict=True):
                x = F.interpolate(convolution(x), finer.shape[-2:], mode="bilinear")
            total = total + x
        return total
