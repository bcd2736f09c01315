"""3x3 convolutions of stride 1 with a quarter of the multiplications, by Winograd's minimal filtering.

Shape shorthand: N images, C input and D output channels, H x W the feature map, r the dilation.

Paper: "Fast Algorithms for Convolutional Neural Networks" (Lavin, Gray, CVPR 2016, arXiv:1509.09308), F(4x4, 3x3).
A tile of 6x6 pixels and the kernel are evaluated as polynomials at the same points, multiplied point by point (a matrix
product over channels), and interpolated to 4x4 outputs: 36 multiplications instead of 144.

A convolution of dilation r is an undilated one on each of the r x r grids of pixels at distance r, so the pixels of its
tiles are r apart.

Departures: the points are 0, 3/4, -3/4, 3/2, -3/2 and infinity instead of 0, 1, -1, 2, -2 and infinity, which keeps
rounding errors near those of the direct sum. Barabasz et al., "Error analysis and improving the accuracy of Winograd
convolution for deep neural networks", 2020 (arXiv:1803.10986), explain why the points matter.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_OUT, _IN = 4, 6  # sides of an output tile, and of the input pixels that it needs
_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity
_MAX_TRANSFORMED_VALUES = 2**22  # input values transformed at once, so that memory does not grow with the feature map
_MIN_TILES = 32  # with fewer, reading the transformed kernels takes longer than the multiplications saved
_MIN_CHANNELS = 512  # with fewer, transforming the pixels does


def _transforms() -> tuple[Float[Tensor, "16 36"], Float[Tensor, "6 3"], Float[Tensor, "36 36"]]:
    """Return the transforms of output, kernel and input in float64: A^T, G and B^T of the paper.

    Those of output and input apply to flattened tiles, that of the kernel to one of its axes.
    """
    points = torch.tensor(_POINTS, dtype=torch.float64)[:, None]
    output = torch.zeros(_OUT, _IN, dtype=torch.float64)
    output[:, :-1] = (points ** torch.arange(_OUT)).T
    kernel = torch.zeros(_IN, 3, dtype=torch.float64)
    kernel[:-1] = points ** torch.arange(3)
    output[-1, -1] = kernel[-1, -1] = 1.0
    # The input transform solves: output i is the sum over k of kernel[k] * input[i + k].
    coefficients = torch.einsum("ij,jk->ikj", output, kernel).reshape(-1, _IN)
    target = torch.zeros(_OUT, 3, _IN, dtype=torch.float64)
    for i in range(_OUT):
        for k in range(3):
            target[i, k, i + k] = 1.0
    pixels = torch.linalg.lstsq(coefficients, target.reshape(-1, _IN)).solution
    return torch.kron(output, output), kernel, torch.kron(pixels, pixels)


class WinogradConvolution(nn.Module):
    """A 3x3 convolution of stride 1 whose padding equals its dilation, for feature maps of many channels.

    It is for inference: the transformed kernels, which take four times the memory of the kernels, are not parameters.

    Parameters
    ----------
    conv
        A convolution for which :func:`suits_winograd` is true.
    direct
        The same convolution with its activation, used for small feature maps.
    relu
        Whether a ReLU follows; otherwise there is no activation.
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
        """Compute the convolution, and the ReLU if there is one; the result has memory format channels last."""
        (images, channels, height, width), step = x.shape, self.dilation
        rows, columns = -(-height // (_OUT * step)), -(-width // (_OUT * step))
        if images * rows * columns * step * step < _MIN_TILES:
            result: Tensor = self.direct(x)
            return result
        below, right = rows * _OUT * step + step - height, columns * _OUT * step + step - width
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, step, right, step, below))
        output = x.new_empty(images, rows * _OUT * step, columns * _OUT * step, self.kernels.shape[2])
        at_once = max(1, _MAX_TRANSFORMED_VALUES // (_IN * _IN * channels * columns * step * step))
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
        """Compute some rows of tiles, written to ``results``."""
        step, (down, across, _) = self.dilation, pixels.stride()
        channels = pixels.shape[2]
        tiles = pixels.as_strided(
            (_IN, _IN, step, step, rows, columns, channels),
            (step * down, step * across, down, across, _OUT * step * down, _OUT * step * across, 1),
            pixels.storage_offset(),
        )
        transformed = (self.pixels @ tiles.reshape(_IN * _IN, -1)).view(_IN * _IN, -1, channels)
        products = torch.bmm(transformed, self.kernels)
        output = (self.results @ products.flatten(1)).view(_OUT, _OUT, step, step, rows, columns, -1)
        results.view(rows, _OUT, step, columns, _OUT, step, -1).copy_(output.permute(4, 0, 2, 5, 1, 3, 6))


def suits_winograd(conv: nn.Module) -> bool:
    """Return whether a convolution is 3x3 of stride 1 with so many channels that the transforms pay off."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.groups == 1
        and conv.dilation[0] == conv.dilation[1]
        and conv.padding == conv.dilation
        and conv.padding_mode == "zeros"
        and conv.weight.dtype == torch.float32
        and min(conv.in_channels, conv.out_channels) >= _MIN_CHANNELS
    )
