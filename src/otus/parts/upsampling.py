"""Downsampling of feature maps, and six upsampling methods.

Shape shorthand: N images, C channels, H x W the fine map, h x w the coarse one, f the factor.

A segmentation network computes coarse feature maps, which have large receptive fields and cost little, and must upsample
them to the size of the image. Each downsampling returns a :class:`Pooled`, and each upsampling takes that of its level, so
that a decoder works with every pair of methods: the output size is exact (for odd sizes too), and max unpooling finds the
indices of the maxima.

======================  ==================================================  ==========
upsampling              a fine pixel is                                     learned
======================  ==================================================  ==========
bed of nails            the coarse pixel at its block's corner, else 0      no
nearest                 the coarse pixel whose block it lies in             no
bilinear                the weighted mean of 4 coarse pixels                no
bicubic                 the weighted sum of 16, by Keys' cubic              no
max unpooling           the coarse pixel where the maximum was, else 0      no
transposed convolution  the sum of overlapping kernels, each multiplied     yes
                        by its coarse pixel
======================  ==================================================  ==========

References
----------
- Zeiler, Taylor, Fergus, "Adaptive deconvolutional networks for mid and high level feature learning", ICCV 2011: switches.
- Keys, "Cubic convolution interpolation for digital image processing", 1981; here a = -0.75, as PyTorch and OpenCV.
- Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (arXiv 1603.07285), section 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from otus.errors import ShapeError, UsageError, did_you_mean

Interpolation = Literal["nearest", "bilinear", "bicubic"]
UnpairedUpsampling = Literal["bed-of-nails", "nearest", "bilinear", "bicubic", "transposed-convolution"]
"""The upsampling methods that do not depend on the downsampling method."""
Upsampling = Literal["bed-of-nails", "nearest", "bilinear", "bicubic", "max-unpooling", "transposed-convolution"]
Downsampling = Literal["max-pooling", "strided-convolution"]
AnyName = TypeVar("AnyName", bound=str)

_KEYS_A = -0.75


@dataclass(frozen=True)
class Pooled:
    """A downsampled feature map, and what upsampling needs.

    Parameters
    ----------
    map
        (N, C, h, w) coarse map.
    fine
        (N, D, H, W) map that it was computed from: it gives the output size of upsampling, and the skip connection.
    indices
        (N, C, h, w) index of each maximum in the flattened fine map; None unless downsampled by max pooling.
    """

    map: Float[Tensor, "n c h w"]
    fine: Float[Tensor, "n d H W"]
    indices: Int[Tensor, "n c h w"] | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size of the fine map."""
        return (self.fine.shape[-2], self.fine.shape[-1])


torch.export.register_dataclass(
    Pooled, serialized_type_name="otus.Pooled"
)  # parts that take or return it can be exported


class MaxPooling(nn.Module):
    """Max pooling over blocks of ``factor`` x ``factor`` pixels that records the indices of the maxima.

    If ``factor`` does not divide a side, the last blocks are smaller; no pixel is dropped.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Pooled:
        """Downsample a feature map."""
        coarse, indices = F.max_pool2d(x, self.factor, ceil_mode=True, return_indices=True)
        return Pooled(coarse, x, indices)


class StridedConvolution(nn.Module):
    """Downsample by a convolution of stride ``factor``; the coarse map is ceil(H / f) x ceil(W / f)."""

    def __init__(self, in_channels: int, out_channels: int, *, factor: int = 2) -> None:
        super().__init__()
        size = factor + 1 + factor % 2  # odd, so that it has a centre, and wide enough to cover every pixel
        self.convolution = nn.Conv2d(in_channels, out_channels, size, stride=factor, padding=size // 2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Pooled:
        """Downsample a feature map."""
        return Pooled(self.convolution(x), x)


def bed_of_nails(x: Float[Tensor, "n c h w"], size_hw: tuple[int, int]) -> Float[Tensor, "n c H W"]:
    """Put each coarse pixel at the corner of its block, zeros elsewhere.

    Parameters
    ----------
    x
        (N, C, h, w) coarse map.
    size_hw
        Size of the fine map. Blocks are ceil(H / h) x ceil(W / w), the last ones cropped.
    """
    (height, width), (rows, columns) = size_hw, x.shape[-2:]
    dy, dx = -(-height // rows), -(-width // columns)
    fine = x.new_zeros((*x.shape[:-2], rows * dy, columns * dx))
    fine[..., ::dy, ::dx] = x
    return fine[..., :height, :width]


def interpolate(
    x: Float[Tensor, "n c h w"], size_hw: tuple[int, int], *, mode: Interpolation, align_corners: bool = False
) -> Float[Tensor, "n c H W"]:
    """Resize a feature map by interpolation.

    Parameters
    ----------
    x
        (N, C, h, w) coarse map.
    size_hw
        Size of the fine map.
    mode
        ``nearest``, ``bilinear`` or ``bicubic``.
    align_corners
        Whether the centres of the corner pixels are aligned, instead of the outer edges of the maps, as in PyTorch. Ignored
        by ``nearest``.

    Notes
    -----
    The result is W_y x W_x^T per channel, with the matrices of :func:`interpolation_weights`, computed by PyTorch's kernels.
    """
    if mode == "nearest":
        return F.interpolate(x, size_hw, mode="nearest-exact")
    return F.interpolate(x, size_hw, mode=mode, align_corners=align_corners)


def interpolation_weights(
    length: int, fine_length: int, *, mode: Interpolation, align_corners: bool = False
) -> Float[Tensor, "F f"]:
    """Return the weight of each coarse pixel in each fine one along one axis: the readable form of :func:`interpolate`.

    Fine pixel i is at position s = (i + 0.5) length / fine_length - 0.5 of the coarse axis; with ``align_corners``, at
    s = i (length - 1) / (fine_length - 1). Positions outside take the pixel at the border. Rows sum to 1.

    Parameters
    ----------
    length, fine_length
        Number of coarse and of fine pixels.
    mode, align_corners
        See :func:`interpolate`.
    """
    index = torch.arange(fine_length, dtype=torch.float64)
    if align_corners and mode != "nearest":
        position = index * ((length - 1) / max(fine_length - 1, 1))
    else:
        position = (index + 0.5) * (length / fine_length) - 0.5
    if mode == "nearest":
        position, reach, kernel = (position + 0.5).floor(), 0, _box
    elif mode == "bilinear":
        position, reach, kernel = position.clamp(min=0), 1, _tent
    else:
        reach, kernel = 2, _cubic
    first = position.floor().long()
    weights = torch.zeros(fine_length, length, dtype=torch.float64)
    for offset in range(1 - reach, reach + 1) if reach else (0,):
        neighbour = first + offset
        weights.scatter_add_(1, neighbour.clamp(0, length - 1)[:, None], kernel(position - neighbour)[:, None])
    return weights


def _box(distance: Float[Tensor, "f"]) -> Float[Tensor, "f"]:
    return torch.ones_like(distance)


def _tent(distance: Float[Tensor, "f"]) -> Float[Tensor, "f"]:
    return 1 - distance.abs()


def _cubic(distance: Float[Tensor, "f"]) -> Float[Tensor, "f"]:
    """Keys' equation 15: a piecewise cubic, 1 at 0, 0 at all other integers, continuously differentiable."""
    d, a = distance.abs(), _KEYS_A
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))


def max_unpool(
    x: Float[Tensor, "n c h w"], indices: Int[Tensor, "n c h w"], size_hw: tuple[int, int]
) -> Float[Tensor, "n c H W"]:
    """Put each coarse pixel where the maximum of its block was, zeros elsewhere.

    Parameters
    ----------
    x
        (N, C, h, w) coarse map.
    indices
        (N, C, h, w) indices of the maxima in the flattened fine map.
    size_hw
        Size of the fine map.
    """
    fine = x.new_zeros((*x.shape[:-2], size_hw[0] * size_hw[1]))
    return fine.scatter(-1, indices.flatten(-2), x.flatten(-2)).reshape(*x.shape[:-2], *size_hw)


def transposed_convolution_by_patches(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "c d k k"],
    *,
    stride: int,
    padding: int,
    size_hw: tuple[int, int],
) -> Float[Tensor, "n d H W"]:
    """Compute a transposed convolution by its definition: each coarse pixel adds a patch, the kernel times its value.

    The patch of pixel (i, j) begins at row ``stride * i - padding`` and column ``stride * j - padding`` of the fine map, and
    is cropped to the map. The natural height of the fine map is ``(h - 1) * stride + k - 2 * padding``.

    Parameters
    ----------
    x
        (N, C, h, w) coarse map.
    weight
        (C, D, k, k) kernels.
    stride, padding
        In fine pixels.
    size_hw
        Size of the fine map; zeros beyond the patches.
    """
    size, (rows, columns) = weight.shape[-1], x.shape[-2:]
    patches = torch.einsum("nchw,cdyx->ndyxhw", x, weight)
    height = max((rows - 1) * stride + size, padding + size_hw[0])
    width = max((columns - 1) * stride + size, padding + size_hw[1])
    padded = x.new_zeros((len(x), weight.shape[1], height, width))
    for i in range(rows):
        for j in range(columns):
            padded[..., i * stride : i * stride + size, j * stride : j * stride + size] += patches[..., i, j]
    return padded[..., padding : padding + size_hw[0], padding : padding + size_hw[1]]


class FixedUpsampling(nn.Module):
    """Upsample without learned weights: ``bed-of-nails``, ``nearest``, ``bilinear`` or ``bicubic``."""

    def __init__(self, kind: Literal["bed-of-nails", "nearest", "bilinear", "bicubic"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Float[Tensor, "n c h w"], pooled: Pooled) -> Float[Tensor, "n c H W"]:
        """Upsample to the size of the fine map of ``pooled``."""
        if self.kind == "bed-of-nails":
            return bed_of_nails(x, pooled.size_hw)
        return interpolate(x, pooled.size_hw, mode=self.kind)

    def extra_repr(self) -> str:
        """Show the kind in the module's repr."""
        return self.kind


class MaxUnpooling(nn.Module):
    """Undo a :class:`MaxPooling` with the same number of channels: values go back to where the maxima were."""

    def forward(self, x: Float[Tensor, "n c h w"], pooled: Pooled) -> Float[Tensor, "n c H W"]:
        """Upsample to the size of the fine map of ``pooled``."""
        if pooled.indices is None:
            raise ShapeError("max-unpooling: expected a map downsampled by max pooling, with indices of the maxima")
        return max_unpool(x, pooled.indices, pooled.size_hw)


class TransposedConvolution(nn.Module):
    """Upsample by a transposed convolution, see :func:`transposed_convolution_by_patches`.

    The kernel size is twice an even stride, so that patches overlap evenly (a kernel size that is no multiple of the
    stride leaves checkerboard artefacts; Odena et al., distill.pub, 2016). Weights are initialised to bilinear
    interpolation of each channel, as in FCN.

    Parameters
    ----------
    channels
        Channels of the coarse and of the fine map.
    factor
        The stride.
    """

    def __init__(self, channels: int, *, factor: int = 2) -> None:
        super().__init__()
        size = 2 * factor if factor % 2 == 0 else 2 * factor - 1
        self.convolution = nn.ConvTranspose2d(channels, channels, size, stride=factor, padding=(size - factor) // 2)
        distance = (torch.arange(size) - (size - 1) / 2).abs() / factor
        tent = (1 - distance).clamp(min=0)
        with torch.no_grad():
            self.convolution.weight.zero_()
            self.convolution.weight[range(channels), range(channels)] = tent[:, None] * tent
            self.convolution.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Float[Tensor, "n c h w"], pooled: Pooled) -> Float[Tensor, "n c H W"]:
        """Upsample to the size of the fine map of ``pooled``; rows and columns beyond it are cropped."""
        height, width = pooled.size_hw
        return self.convolution(x)[..., :height, :width]


UPSAMPLINGS: dict[Upsampling, Callable[[int, int], nn.Module]] = {
    "bed-of-nails": lambda channels, factor: FixedUpsampling("bed-of-nails"),
    "nearest": lambda channels, factor: FixedUpsampling("nearest"),
    "bilinear": lambda channels, factor: FixedUpsampling("bilinear"),
    "bicubic": lambda channels, factor: FixedUpsampling("bicubic"),
    "max-unpooling": lambda channels, factor: MaxUnpooling(),
    "transposed-convolution": lambda channels, factor: TransposedConvolution(channels, factor=factor),
}
"""The six upsampling methods by name: functions of the channels and the factor."""


DOWNSAMPLINGS: dict[Downsampling, Callable[[int, int], nn.Module]] = {
    "max-pooling": lambda channels, factor: MaxPooling(factor),
    "strided-convolution": lambda channels, factor: StridedConvolution(channels, channels, factor=factor),
}
"""The downsampling methods by name: functions of the channels and the factor."""


def make_upsampling(name: Upsampling, channels: int, factor: int = 2, *, paired: bool = False) -> nn.Module:
    """Build an upsampling by its name in :data:`UPSAMPLINGS`.

    Parameters
    ----------
    name
        Name of the method.
    channels
        Channels of the feature map.
    factor
        Upsampling factor.
    paired
        Whether the encoder downsamples by a max pooling with the same number of channels, which max unpooling needs.

    Raises
    ------
    UsageError
        If the name is unknown, or it is ``max-unpooling`` and not ``paired``.
    """
    available = [method for method in UPSAMPLINGS if paired or method != "max-unpooling"]
    if name == "max-unpooling" and not paired:
        raise UsageError(
            "upsampling: max-unpooling needs an encoder with max pooling of the same number of channels, which this model "
            f"does not have; expected one of {', '.join(available)}"
        )
    return _find("upsampling", name, {method: UPSAMPLINGS[method] for method in available})(channels, factor)


def make_downsampling(name: Downsampling, channels: int, factor: int = 2) -> nn.Module:
    """Build a downsampling by its name in :data:`DOWNSAMPLINGS`.

    Raises
    ------
    UsageError
        If the name is unknown.
    """
    return _find("downsampling", name, DOWNSAMPLINGS)(channels, factor)


def _find(
    option: str, name: AnyName, methods: Mapping[AnyName, Callable[[int, int], nn.Module]]
) -> Callable[[int, int], nn.Module]:
    if name not in methods:
        raise UsageError(f"{option}: expected one of {', '.join(methods)}, got {name!r}{did_you_mean(name, methods)}")
    return methods[name]
