"""Sinusoidal positional encodings of feature-map locations and of boxes.

Shape shorthand: B images, h x w the feature map, D channels.

Papers: "Attention Is All You Need" (Vaswani et al., NeurIPS 2017, arXiv:1706.03762), section 3.5; for two coordinates and
padded images DETR (Carion et al., ECCV 2020, arXiv:2005.12872), appendix A.4; for boxes DAB-DETR (Liu et al., ICLR 2022,
arXiv:2201.12329), section 4.1. Half of the channels encode y, half x; sine and cosine alternate.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TEMPERATURE = 10000.0


def sine_positional_encoding(valid: Bool[Tensor, "b h w"], channels: int) -> Float[Tensor, "b d h w"]:
    """Encode the location (y, x) of a feature map, counted from 1 and normalised by the image's extent without padding.

    Parameters
    ----------
    valid
        True inside the image, False in the padding.
    channels
        D, a multiple of 4.
    """
    count_y, count_x = valid.cumsum(1, dtype=torch.float32), valid.cumsum(2, dtype=torch.float32)
    y = count_y / (count_y[:, -1:, :] + 1e-6)
    x = count_x / (count_x[:, :, -1:] + 1e-6)
    return sine_embedding(torch.stack([y, x], dim=-1), channels // 2).permute(0, 3, 1, 2)


def sine_embedding(values: Float[Tensor, "*n v"], channels: int) -> Float[Tensor, "*n vd"]:
    """Encode numbers of about [0, 1] as ``channels`` sines and cosines each, concatenated.

    Examples
    --------
    >>> sine_embedding(torch.tensor([0.0, 0.25]), 2).round(decimals=3).tolist()
    [0.0, 1.0, 1.0, -0.0]
    """
    pairs = torch.arange(channels // 2, device=values.device, dtype=torch.float32)
    periods = TEMPERATURE ** (2 * pairs / channels)
    angles = values[..., None].float() * (2 * math.pi) / periods
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(start_dim=-3)
