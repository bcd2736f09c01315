"""The gradient of depthwise convolutions on a CPU, where oneDNN's is slow: for small feature maps, and with dilation.

Shape shorthand: B images, C channels, H x W the input, h x w the output, K x K the kernel.

oneDNN is slower for feature maps of 3x3, which crops of regions leave, and with dilation (1.2 to 1.7 times on two cores,
``benchmarks/depthwise.py``); in other cases it is faster.

Memory is channels last, so that the innermost loop is contiguous, and each thread computes some of the channels. Both
gradients equal those of :func:`torch.nn.functional.conv2d` up to the order of additions.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from otus.parts.fast import _depthwise_kernels as kernels

_SMALL_MAP_PIXELS, _LARGE_KERNEL_SIZE = 16, 5
"""Without dilation, oneDNN is slower if the map is at most and the kernel at least as large."""


def depthwise_pays(conv: nn.Conv2d, x: Float[Tensor, "b c h w"]) -> bool:
    """Return whether :class:`DepthwiseOnCPU` supports a convolution and computes its gradient faster than oneDNN."""
    square = all(values[0] == values[1] for values in (conv.kernel_size, conv.stride, conv.dilation))
    depthwise = conv.groups == conv.in_channels == conv.out_channels > 1
    zeros = conv.padding_mode == "zeros" and isinstance(conv.padding, tuple) and conv.padding[0] == conv.padding[1]
    small = x.shape[2] * x.shape[3] <= _SMALL_MAP_PIXELS and conv.kernel_size[0] >= _LARGE_KERNEL_SIZE
    faster = conv.dilation[0] > 1 or small
    return square and depthwise and zeros and faster and x.device.type == "cpu" and not torch.compiler.is_compiling()


class DepthwiseOnCPU(torch.autograd.Function):
    """Depthwise convolution of float32 feature maps whose gradient is computed by a compiled kernel."""

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
        """Compute :func:`torch.nn.functional.conv2d` with as many groups as channels."""
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation)
        return nn.functional.conv2d(x, weight, bias, stride, padding, dilation, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "b c i j"]) -> tuple[Tensor | None, ...]:
        """Compute the gradients of input, weight and bias; each thread computes some of the channels."""
        x, weight = ctx.saved_tensors
        maps, output_grad = _channels_last(x), _channels_last(gradient)
        kernel = weight.detach()[:, 0].permute(1, 2, 0).contiguous()
        maps_grad, kernel_grad = torch.zeros_like(maps), torch.zeros_like(kernel)
        inputs = maps.numpy(), output_grad.numpy(), kernel.numpy()
        stride, padding, dilation = ctx.geometry
        outputs = maps_grad.numpy(), kernel_grad.numpy()
        threads = torch.get_num_threads()
        blocks = -(-len(weight) // kernels.BLOCK)
        bounds = np.minimum(np.linspace(0, blocks, threads + 1).astype(int) * kernels.BLOCK, len(weight)).tolist()

        def compute_channels(first: int, last: int) -> None:
            kernels.depthwise_gradient(first, last, *inputs, stride, padding, dilation, *outputs)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(compute_channels, bounds[:-1], bounds[1:]))
        weight_grad = kernel_grad.permute(2, 0, 1)[:, None]
        return maps_grad.permute(0, 3, 1, 2), weight_grad, gradient.sum((0, 2, 3)), None, None, None


def _channels_last(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w c"]:
    return x.detach().permute(0, 2, 3, 1).contiguous()
