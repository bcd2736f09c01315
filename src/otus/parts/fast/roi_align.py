"""RoI align on a CPU with a gradient four to seven times as fast as torchvision's.

torchvision's runs on one core, and its innermost loop over the channels is not contiguous in memory.

Shape shorthand: B images, C channels, R regions, s the output size.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchvision import ops

from otus.parts.fast import _roi_align_kernels as kernels


def roi_align(
    x: Float[Tensor, "b c h w"],
    rois: Float[Tensor, "r 5"],
    output_size: int,
    spatial_scale: float,
    *,
    sampling_ratio: int,
) -> Float[Tensor, "r c s s"]:
    """Compute :func:`torchvision.ops.roi_align`, with the fast gradient where one is needed on a CPU."""
    if x.requires_grad and x.device.type == "cpu" and not torch.compiler.is_compiling():
        pooled: Tensor = RoIAlignOnCPU.apply(x, rois, output_size, spatial_scale, sampling_ratio)
        return pooled
    return ops.roi_align(x, rois, output_size, spatial_scale, sampling_ratio=sampling_ratio)


class RoIAlignOnCPU(torch.autograd.Function):
    """torchvision's ``roi_align`` with a gradient that runs on all cores, over feature maps with channels last."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rois: Tensor, output_size: int, spatial_scale: float, sampling_ratio: int
    ) -> Tensor:
        """Pool features from float32 feature maps (B, C, H, W)."""
        ctx.save_for_backward(rois)
        ctx.geometry = (x.shape, spatial_scale, sampling_ratio)
        return ops.roi_align(x, rois, output_size, spatial_scale, sampling_ratio=sampling_ratio)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradient of the feature maps; each thread computes some of the images."""
        (batch, channels, height, width), scale, sampling_ratio = ctx.geometry
        map_grads = np.zeros((batch, height, width, channels), dtype=np.float32)
        roi_grads = gradient.permute(0, 2, 3, 1).contiguous().numpy()
        rois = ctx.saved_tensors[0].numpy()
        threads = torch.get_num_threads()
        bounds = np.linspace(0, batch, threads + 1).astype(int)
        with ThreadPoolExecutor(threads) as pool:
            futures = [
                pool.submit(kernels.roi_align_gradient, first, last, rois, roi_grads, scale, sampling_ratio, map_grads)
                for first, last in pairwise(bounds.tolist())
            ]
            for future in futures:
                future.result()
        return torch.from_numpy(map_grads).permute(0, 3, 1, 2), None, None, None, None
