"""Downsampling and upsampling: from fine feature maps to coarse ones, and six ways up again.

Shape shorthand: N images, C channels, H x W the fine map, h x w the coarse one, f the factor.

A network that labels pixels looks at an image through coarse maps, because these see far and cost little, and must come back
to the image's own size. Each way down leaves a :class:`Pooled`, and each way up takes the one of its level, so a decoder
wires pairs without knowing of which kind they are: the size to come back to is known to the pixel (odd sizes too), and max
unpooling finds the places of the maxima there.

======================  ==================================================  ==========
way up                  a fine pixel is                                     learns
======================  ==================================================  ==========
bed of nails            the coarse pixel at its block's corner, else 0      no
nearest                 the coarse pixel whose block it lies in             no
bilinear                the mean of 4 coarse pixels, by distance            no
bicubic                 the weighted sum of 16, by Keys' cubic              no
max unpooling           the coarse pixel where the maximum was, else 0      no
transposed convolution  the sum of the kernels, weighted by coarse pixels,  yes
                        that overlap there
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
"""The ways up that do not ask how the way down was."""
Upsampling = Literal["bed-of-nails", "nearest", "bilinear", "bicubic", "max-unpooling", "transposed-convolution"]
Downsampling = Literal["max-pooling", "strided-convolution"]
AnyName = TypeVar("AnyName", bound=str)

_KEYS = -0.75


@dataclass(frozen=True)
class Pooled:
    """A coarse map and what the way back up needs.

    Parameters
    ----------
    map
        (N, C, h, w) coarse map.
    fine
        (N, D, H, W) map that it was made from: the size to come back to, and what a skip connection adds there.
    indices
        (N, C, h, w) index of each maximum in the flattened fine map, of max pooling only.
    """

    map: Float[Tensor, "n c h w"]
    fine: Float[Tensor, "n d H W"]
    indices: Int[Tensor, "n c h w"] | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Size of the fine map."""
        return (self.fine.shape[-2], self.fine.shape[-1])


class MaxPooling(nn.Module):
    """Keep the maximum of each block of ``factor`` x ``factor`` pixels, and remember where it was.

    The last blocks of a side that ``factor`` does not divide are smaller; nothing is dropped.
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Float[Tensor, "n c h w"]) -> Pooled:
        """Pool."""
        coarse, indices = F.max_pool2d(x, self.factor, ceil_mode=True, return_indices=True)
        return Pooled(coarse, x, indices)


class StridedConvolution(nn.Module):
    """Downsample by a convolution of stride ``factor``, which learns what to keep; the coarse map is ceil(H / f) x
    ceil(W / f)."""

    def __init__(self, in_channels: int, out_channels: int, *, factor: int = 2) -> None:
        super().__init__()
        size = factor + 1 + factor % 2  # odd, so that it has a centre, and wide enough that every pixel is seen
        self.convolution = nn.Conv2d(in_channels, out_channels, size, stride=factor, padding=size // 2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Pooled:
        """Convolve."""
        return Pooled(self.convolution(x), x)


def bed_of_nails(x: Float[Tensor, "n c h w"], size_hw: tuple[int, int]) -> Float[Tensor, "n c H W"]:
    """Put each coarse pixel at the corner of its block, zeros elsewhere.

    Parameters
    ----------
    x
        (N, C, h, w) coarse map.
    size_hw
        Size of the fine map. Blocks are ceil(H / h) x ceil(W / w), the last ones cut off.
    """
    (height, width), (rows, columns) = size_hw, x.shape[-2:]
    dy, dx = -(-height // rows), -(-width // columns)
    fine = x.new_zeros((*x.shape[:-2], rows * dy, columns * dx))
    fine[..., ::dy, ::dx] = x
    return fine[..., :height, :width]


def interpolate(
    x: Float[Tensor, "n c h w"], size_hw: tuple[int, int], *, mode: Interpolation, align_corners: bool = False
) -> Float[Tensor, "n c H W"]:
    """Interpolate a map at the pixels of a finer one.

    Parameters
    ----------
    x
        (N, C, h, w) coarse map.
    size_hw
        Size of the fine map.
    mode
        ``nearest``, ``bilinear`` or ``bicubic``.
    align_corners
        Whether the centres of the corner pixels, and not the outer edges of the maps, lie on one another. Of ``nearest``
        there is only the second.

    Notes
    -----
    This is the product of :func:`interpolation_weights` with the map's columns and rows, computed by PyTorch's kernels.
    """
    if mode == "nearest":
        return F.interpolate(x, size_hw, mode="nearest-exact")
    return F.interpolate(x, size_hw, mode=mode, align_corners=align_corners)


def interpolation_weights(
    length: int, fine_length: int, *, mode: Interpolation, align_corners: bool = False
) -> Float[Tensor, "F f"]:
    """Return the weight of each coarse pixel in each fine one along one axis: what :func:`interpolate` computes, to be read.

    A fine pixel i lies at s = (i + 0.5) f - 0.5 on the coarse axis, f = length / fine_length; with ``align_corners`` at
    s = i (length - 1) / (fine_length - 1). Coarse pixels beyond the border count for the last one. Rows sum to 1.

    Parameters
    ----------
    length, fine_length
        Number of coarse and of fine pixels.
    mode, align_corners
        See :func:`interpolate`.
    """
    fine = torch.arange(fine_length, dtype=torch.float64)
    if align_corners and mode != "nearest":
        at = fine * ((length - 1) / max(fine_length - 1, 1))
    else:
        at = (fine + 0.5) * (length / fine_length) - 0.5
    if mode == "nearest":
        at, reach, kernel = (at + 0.5).floor(), 0, _box
    elif mode == "bilinear":
        at, reach, kernel = at.clamp(min=0), 1, _tent
    else:
        reach, kernel = 2, _cubic
    first = at.floor().long()
    weights = torch.zeros(fine_length, length, dtype=torch.float64)
    for offset in range(1 - reach, reach + 1) if reach else (0,):
        neighbour = first + offset
        weights.scatter_add_(1, neighbour.clamp(0, length - 1)[:, None], kernel(at - neighbour)[:, None])
    return weights


def _box(distance: Float[Tensor, "f"]) -> Float[Tensor, "f"]:
    return torch.ones_like(distance)


def _tent(distance: Float[Tensor, "f"]) -> Float[Tensor, "f"]:
    return 1 - distance.abs()


def _cubic(distance: Float[Tensor, "f"]) -> Float[Tensor, "f"]:
    """Keys' equation 15: a piecewise cubic, 1 at 0, 0 at all other whole numbers, smooth everywhere."""
    d, a = distance.abs(), _KEYS
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
        (N, C, h, w) places of the maxima in the flattened fine map.
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
    """Convolve, transposed, as it is explained: each coarse pixel stamps the kernel, times its value; overlaps are summed.

    The stamp of pixel (i, j) begins at row ``stride * i - padding`` and column ``stride * j - padding`` of the fine map, and
    what falls beyond the map is cut off: without that, h coarse rows make ``(h - 1) * stride + k - 2 * padding`` fine ones.

    Parameters
    ----------
    x
        (N, C, h, w) coarse map.
    weight
        (C, D, k, k) kernels.
    stride, padding
        In fine pixels.
    size_hw
        Size of the fine map. Where it is larger than what the stamps reach, zeros.
    """
    size, (rows, columns) = weight.shape[-1], x.shape[-2:]
    stamps = torch.einsum("nchw,cdyx->ndyxhw", x, weight)
    reach = ((rows - 1) * stride + size, (columns - 1) * stride + size)
    canvas = x.new_zeros(
        (len(x), weight.shape[1], max(reach[0], padding + size_hw[0]), max(reach[1], padding + size_hw[1]))
    )
    for i in range(rows):
        for j in range(columns):
            canvas[..., i * stride : i * stride + size, j * stride : j * stride + size] += stamps[..., i, j]
    return canvas[..., padding : padding + size_hw[0], padding : padding + size_hw[1]]


class FixedUpsampling(nn.Module):
    """Upsample by a rule that nothing teaches: ``bed-of-nails``, ``nearest``, ``bilinear`` or ``bicubic``."""

    def __init__(self, kind: Literal["bed-of-nails", "nearest", "bilinear", "bicubic"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Float[Tensor, "n c h w"], pooled: Pooled) -> Float[Tensor, "n c H W"]:
        """Upsample to the size of the fine map that ``pooled`` was made from."""
        if self.kind == "bed-of-nails":
            return bed_of_nails(x, pooled.size_hw)
        return interpolate(x, pooled.size_hw, mode=self.kind)

    def extra_repr(self) -> str:
        """Show the kind in the module's repr."""
        return self.kind


class MaxUnpooling(nn.Module):
    """Undo a :class:`MaxPooling` of as many channels: values go back to where the maxima were."""

    def forward(self, x: Float[Tensor, "n c h w"], pooled: Pooled) -> Float[Tensor, "n c H W"]:
        """Upsample to the size of the fine map that ``pooled`` was made from."""
        if pooled.indices is None:
            raise ShapeError("max-unpooling: needs a map made by max pooling, which remembers where the maxima were")
        return max_unpool(x, pooled.indices, pooled.size_hw)


class TransposedConvolution(nn.Module):
    """Upsample by a transposed convolution, which learns how: see :func:`transposed_convolution_by_patches`.

    Kernels are twice as wide as the stride, so that neighbouring stamps overlap evenly (a width that the stride does
    not divide leaves a checkerboard; Odena et al., distill.pub, 2016), and begin as bilinear interpolation of each
    channel, as FCN's do.

    Parameters
    ----------
    channels
        Of the coarse and of the fine map.
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
        """Upsample to the size of the fine map that ``pooled`` was made from: what is too much is cut off."""
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
"""The six ways up, by name: functions of the channels and the factor."""


DOWNSAMPLINGS: dict[Downsampling, Callable[[int, int], nn.Module]] = {
    "max-pooling": lambda channels, factor: MaxPooling(factor),
    "strided-convolution": lambda channels, factor: StridedConvolution(channels, channels, factor=factor),
}
"""The ways down, by name: functions of the channels and the factor."""


def make_upsampling(name: Upsampling, channels: int, factor: int = 2, *, paired: bool = False) -> nn.Module:
    """Build an upsampling by its name in :data:`UPSAMPLINGS`.

    Parameters
    ----------
    paired
        Whether the way down is a max pooling of as many channels, which max unpooling needs.

    Raises
    ------
    UsageError
        If there is none of that name, or it is ``max-unpooling`` and there is no such pooling.
    """
    known = [one for one in UPSAMPLINGS if paired or one != "max-unpooling"]
    if name == "max-unpooling" and not paired:
        raise UsageError(
            "upsampling: max-unpooling needs a max pooling of as many channels on the way down, which this model does not "
            f"have; expected one of {', '.join(known)}"
        )
    return _named("upsampling", name, {one: UPSAMPLINGS[one] for one in known})(channels, factor)


def make_downsampling(name: Downsampling, channels: int, factor: int = 2) -> nn.Module:
    """Build a downsampling by its name in :data:`DOWNSAMPLINGS`.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    return _named("downsampling", name, DOWNSAMPLINGS)(channels, factor)


def _named(
    what: str, name: AnyName, known: Mapping[AnyName, Callable[[int, int], nn.Module]]
) -> Callable[[int, int], nn.Module]:
    if name not in known:
        raise UsageError(f"{what}: expected one of {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")
    return known[name]
