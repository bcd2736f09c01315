"""Gradients of depthwise convolutions, Otus and torch (oneDNN): ``python benchmarks/depthwise.py``."""

import torch
from _side_by_side import median_seconds, print_header, print_table
from torch.nn import functional

from otus.parts.fast.depthwise import DepthwiseOnCPU

# Batch size, channels, side of the feature map, kernel size, dilation, from EfficientNet-Lite0 on crops, then on images.
SHAPES = (
    (32, 1152, 3, 5, 1), (32, 672, 6, 5, 1), (32, 480, 6, 3, 1), (8, 1152, 20, 5, 2), (8, 1152, 20, 3, 2), (8, 672, 20, 5, 1)
)  # fmt: skip


def main() -> None:
    """Time all shapes."""
    print_header("Gradient of depthwise convolutions, float32, channels last", ("torch", "numba"))
    for count, channels, side, size, dilation in SHAPES:
        x = torch.randn(count, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
        weight, bias = (
            torch.randn(channels, 1, size, size, requires_grad=True),
            torch.zeros(channels, requires_grad=True),
        )
        padding = dilation * (size - 1) // 2
        ours = DepthwiseOnCPU.apply(x, weight, bias, 1, padding, dilation)
        theirs = functional.conv2d(x, weight, bias, 1, padding, dilation, groups=channels)
        gradient = torch.randn_like(theirs)
        seconds = {
            name: median_seconds(lambda y=y, g=gradient: y.backward(g, retain_graph=True), repeats=5)
            for name, y in (("torch", theirs), ("otus", ours))
        }
        print_table(f"{count} x {channels} x {side} x {side}, kernel {size}, dilation {dilation}", seconds)


if __name__ == "__main__":
    main()
