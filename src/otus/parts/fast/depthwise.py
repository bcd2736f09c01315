"""The gradient of depthwise convolutions on a CPU, where oneDNN's is slow: on small maps, and with dilation.

Shape shorthand: B maps of C channels, H x W in, h x w out, K x K the kernel.

oneDNN takes longer over maps of 3x3 steps, which crops of regions leave, and with dilation (1.2 to 1.7 times on two cores,
``benchmarks/depthwise.py``; over others it is faster).

Here channels lie last, so that the innermost loop runs over neighbours in memory, and each thread has
channels of its own. Both gradients are those of :func:`torch.nn.functional.conv2d` but for the order of additions.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from otus.parts.fast import _depthwise_kernels as kernels

_SMALL, _LARGE_KERNEL = 16, 5
"""Up to so many steps of a map, and from this side of a kernel on, oneDNN is slower."""


def depthwise_pays(conv: nn.Conv2d, x: Float[Tensor, "b c h w"]) -> bool:
    """Whether the gradient of a convolution is faster here."""
    alike = all(values[0] == values[1] for values in (conv.kernel_size, conv.stride, conv.dilation))
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    zeros = conv.padding_mode == "zeros" and isinstance(conv.padding, tuple) and conv.padding[0] == conv.padding[1]
    small = x.shape[2] * x.shape[3] <= _SMALL and conv.kernel_size[0] >= _LARGE_KERNEL
    pays = conv.dilation[0] > 1 or small
    return alike and depthwise and zeros and pays and x.device.type == "cpu" and not torch.compiler.is_compiling()


class DepthwiseOnCPU(torch.autograd.Function):
    """A depthwise convolution of float32 maps with a gradient of our own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "b c h w"],
        weight: Float[Tensor, "c 1 k k"],
        bias: Float[Tensor, "c"],
        stride: int,
        padding: int,
        dilation: int,
    ) -> Float[Tensor, "b c i j"]:
        """As :func:`torch.nn.functional.conv2d` with as many groups as channels."""
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation)
        return nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "b c i j"]) -> tuple[Tensor | None, ...]:
        """Of the maps, the weights and the biases; each thread takes channels of its own."""
        x, weight = ctx.saved_tensors
        maps, of_output = _channels_last(x), _channels_last(gradient)
        kernel = weight.detach()[:, 0].permute(1, 2, 0).contiguous()
        of_maps, of_kernel = torch.zeros_like(maps), torch.zeros_like(kernel)
        given = maps.numpy(), of_output.numpy(), kernel.numpy()
        stride, padding, dilation = ctx.geometry
        sums = of_maps.numpy(), of_kernel.numpy()
        threads = torch.get_num_threads()
        blocks = -(-len(weight) // kernels.BLOCK)
        cuts = np.minimum(np.linspace(0, blocks, threads + 1).astype(int) * kernels.BLOCK, len(weight)).tolist()

        def of_channels(first: int, last: int) -> None:
            kernels.depthwise_gradient(first, last, *given, stride, padding, dilation, *sums)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(of_channels, cuts[:-1], cuts[1:]))
        of_weight = of_kernel.permute(2, 0, 1)[:, None]
        return of_maps.permute(0, 3, 1, 2), of_weight, gradient.sum((0, 2, 3)), None, None, None


def _channels_last(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w c"]:
    return x.detach().permute(0, 2, 3, 1).contiguous()
