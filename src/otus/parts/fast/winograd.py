"""3x3 convolutions of stride 1 with a quarter of the multiplications, by Winograd's minimal filtering.

Shape shorthand: N images, C channels in, D out, H x W the map, r the dilation.

Paper: "Fast Algorithms for Convolutional Neural Networks" (Lavin, Gray, CVPR 2016, arXiv:1509.09308), F(4x4, 3x3).
A tile of 6x6 pixels and the kernel are evaluated as polynomials at the same points, multiplied point by point (a matrix
product over channels), and interpolated to 4x4 results: 36 multiplications in the place of 144.

A dilated convolution is one on each of r x r grids of pixels that lie r apart, so its tiles are taken with that step.

Departures: the points are 0, 3/4, -3/4, 3/2, -3/2 and infinity, not 0, 1, -1, 2, -2 and infinity, which keeps rounding near
that of the direct sum. Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution for deep neural
networks", 2020 (arXiv:1803.10986), say why points matter.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_OUT, _IN = 4, 6  # sides of a tile of results, and of the pixels that they need
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity
_VALUES_AT_ONCE = 2**22  # of transformed pixels, so that memory does not grow with the map
_LEAST_TILES = 32  # below, the transformed kernels take longer to read than they save
_LEAST_CHANNELS = 512  # below, so do the transforms of pixels


def _transforms() -> tuple[Float[Tensor, "16 36"], Float[Tensor, "6 3"], Float[Tensor, "36 36"]]:
    """Return the transforms of results and of pixels, of flattened tiles, and that of one side of the kernel (float64)."""
    points = torch.tensor(_POINTS, dtype=torch.float64)[:, None]
    results = torch.zeros(_OUT, _IN, dtype=torch.float64)
    results[:, :-1] = (points ** torch.arange(_OUT)).T
    kernel = torch.zeros(_IN, 3, dtype=torch.float64)
    kernel[:-1] = points ** torch.arange(3)
    results[-1, -1] = kernel[-1, -1] = 1.0
    # What is left follows: result i must be the sum over k of kernel[k] times pixel[i + k].
    known = torch.einsum("ij,jk->ikj", results, kernel).reshape(-1, _IN)
    wanted = torch.zeros(_OUT, 3, _IN, dtype=torch.float64)
    for i in range(_OUT):
        for k in range(3):
            wanted[i, k, i + k] = 1.0
    pixels = torch.linalg.lstsq(known, wanted.reshape(-1, _IN)).solution
    return torch.kron(results, results), kernel, torch.kron(pixels, pixels)


class WinogradConvolution(nn.Module):
    """A 3x3 convolution of stride 1 whose padding is its dilation, for maps of many channels.

    The transformed kernels take four times the memory of the kernels. They are no parameters: this is for predicting.

    Parameters
    ----------
    conv
        See :func:`suits_winograd`.
    direct
        The same convolution with its activation, for small maps.
    relu
        Whether the activation is ReLU, else there is none.
    """

    kernels: Float[Tensor, "36 c d"]
    results: Float[Tensor, "16 36"]
    pixels: Float[Tensor, "36 36"]
    bias: Float[Tensor, "d"] | None

    def __init__(self, conv: nn.Conv2d, direct: nn.Module, *, relu: bool) -> None:
        super().__init__()
        self.direct = direct
        results, kernel, pixels = _transforms()
        weight = torch.einsum("ia,dcab,jb->ijcd", kernel, conv.weight.detach().double(), kernel)
        self.register_buffer("kernels", weight.float().flatten(0, 1).contiguous())
        self.register_buffer("results", results.float())
        self.register_buffer("pixels", pixels.float())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        self.dilation, self.relu = conv.dilation[0], relu

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        """Return the convolution of ``x``, activated if there is a ReLU; channels last."""
        (images, channels, height, width), step = x.shape, self.dilation
        rows, columns = -(-height // (_OUT * step)), -(-width // (_OUT * step))
        if images * rows * columns * step * step < _LEAST_TILES:
            small: Tensor = self.direct(x)
            return small
        below, right = rows * _OUT * step + step - height, columns * _OUT * step + step - width
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, step, right, step, below))
        output = x.new_empty(images, rows * _OUT * step, columns * _OUT * step, self.kernels.shape[2])
        at_once = max(1, _VALUES_AT_ONCE // (_IN * _IN * channels * columns * step * step))
        for image in range(images):
            for first in range(0, rows, at_once):
                count = min(at_once, rows - first)
                start, stop = first * _OUT * step, (first + count) * _OUT * step
                self._tiles(padded[image, start : stop + 2 * step], output[image, start:stop], count, columns)
        if self.bias is not None:
            output += self.bias
        if self.relu:
            output.relu_()
        return output[:, :height, :width].permute(0, 3, 1, 2)

    def _tiles(
        self, pixels: Float[Tensor, "h w c"], results: Float[Tensor, "h2 w2 d"], rows: int, columns: int
    ) -> None:
        """Compute some rows of tiles; ``results`` is written."""
        step, (down, across, _) = self.dilation, pixels.stride()
        channels = pixels.shape[2]
        tiles = pixels.as_strided(
            (_IN, _IN, step, step, rows, columns, channels),
            (step * down, step * across, down, across, _OUT * step * down, _OUT * step * across, 1),
            pixels.storage_offset(),
        )
        evaluated = (self.pixels @ tiles.reshape(_IN * _IN, -1)).view(_IN * _IN, -1, channels)
        products = torch.bmm(evaluated, self.kernels)
        found = (self.results @ products.flatten(1)).view(_OUT, _OUT, step, step, rows, columns, -1)
        results.view(rows, _OUT, step, columns, _OUT, step, -1).copy_(found.permute(4, 0, 2, 5, 1, 3, 6))


def suits_winograd(conv: nn.Module) -> bool:
    """Whether a convolution can be computed so, and has so many channels that the transforms cost less than they save."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.groups == 1
        and conv.dilation[0] == conv.dilation[1]
        and conv.padding == conv.dilation
        and conv.padding_mode == "zeros"
        and conv.weight.dtype == torch.float32
        and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS
    )
