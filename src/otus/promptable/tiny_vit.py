"""TinyViT, the small image encoder of MobileSAM: a convolutional stage, then stages of windowed attention.

Shape shorthand: B images, S x S pixels, h x w tokens, D channels of a stage, C channels of the feature map.

Papers: "TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (Wu et al., ECCV 2022, arXiv:2207.10666),
section 3.2; "Faster Segment Anything" (Zhang et al., 2023, arXiv:2306.14289), whose changes are made here: the last stage
keeps the resolution of the one before, and SAM's neck replaces the classifier. Official code:
github.com/ChaoningZhang/MobileSAM (Apache-2.0), with the same parameter names except for the MLPs.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from otus.parts.backbones.norms import LenientBatchNorm
from otus.promptable.image_encoder import neck, window_partition, window_unpartition


class TinyViT(nn.Module):
    """A convolutional stem of stride 4, a stage of inverted bottlenecks, and stages of windowed attention.

    Parameters
    ----------
    embed_dims, depths, num_heads, window_sizes
        For each stage: channels D, number of blocks, attention heads, and side of the windows in tokens. The first stage
        has no attention.
    image_size
        Side S of the padded images, in pixels.
    out_channels
        Channels C of the feature map, whose stride is 16.
    """

    def __init__(
        self,
        embed_dims: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (2, 4, 5, 10),
        window_sizes: Sequence[int] = (7, 7, 14, 7),
        *,
        image_size: int = 1024,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.out_channels = out_channels
        stem = conv_norm(3, embed_dims[0] // 2, 3, stride=2), conv_norm(embed_dims[0] // 2, embed_dims[0], 3, stride=2)
        self.patch_embed = nn.ModuleDict({"seq": nn.Sequential(stem[0], nn.GELU(), stem[1])})
        stages = []
        for index, (width, depth, heads, window) in enumerate(
            zip(embed_dims, depths, num_heads, window_sizes, strict=True)
        ):
            blocks = [
                InvertedBottleneck(width) if index == 0 else TinyBlock(width, heads, window) for _ in range(depth)
            ]
            stage = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})
            if index + 1 < len(embed_dims):
                last = index + 2 == len(embed_dims)
                stage["downsample"] = PatchMerging(width, embed_dims[index + 1], stride=1 if last else 2)
            stages.append(stage)
        self.layers = nn.ModuleList(stages)
        self.neck = neck(embed_dims[-1], out_channels)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Return the feature map of a batch of padded images."""
        x = self.patch_embed["seq"](images)
        for stage in self.layers:
            for block in stage["blocks"]:  # type: ignore[index]
                x = block(x)
            if "downsample" in stage:  # type: ignore[operator]
                x = stage["downsample"](x)  # type: ignore[index]
        return self.neck(x)


class InvertedBottleneck(nn.Module):
    """MBConv: expansion by 4, a depthwise convolution, projection, and a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.conv1 = conv_norm(channels, hidden, 1)
        self.conv2 = conv_norm(hidden, hidden, 3, groups=hidden)
        self.conv3 = conv_norm(hidden, channels, 1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Return the map after the block."""
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(inner))


class PatchMerging(nn.Module):
    """Transition between stages: changes the channels, and halves the resolution if ``stride`` is 2."""

    def __init__(self, channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(channels, out_channels, 1)
        self.conv2 = conv_norm(out_channels, out_channels, 3, stride=stride, groups=out_channels)
        self.conv3 = conv_norm(out_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d2 h2 w2"]:
        """Return the next stage's input."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class TinyBlock(nn.Module):
    """Windowed attention, a depthwise convolution and an MLP."""

    def __init__(self, channels: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.window_size = window_size
        self.attn = BiasedAttention(channels, num_heads, size=window_size)
        self.local_conv = conv_norm(channels, channels, 3, groups=channels)
        self.mlp = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(channels),
                "fc1": nn.Linear(channels, 4 * channels),
                "fc2": nn.Linear(4 * channels, channels),
            }
        )

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Return the map after the block."""
        height, width = x.shape[2:]
        tokens = x.permute(0, 2, 3, 1)
        below, right = -height % self.window_size, -width % self.window_size
        windows = window_partition(F.pad(tokens, (0, 0, 0, right, 0, below)).contiguous(), self.window_size)
        attended = window_unpartition(self.attn(windows), (height + below, width + right))[:, :height, :width]
        x = self.local_conv((tokens + attended).permute(0, 3, 1, 2))
        inner = F.gelu(self.mlp["fc1"](self.mlp["norm"](x.permute(0, 2, 3, 1))))
        return x + self.mlp["fc2"](inner).permute(0, 3, 1, 2)


class BiasedAttention(nn.Module):
    """Self-attention within a window, with a learned bias for each absolute offset of two tokens in y and x."""

    attention_bias_idxs: Tensor

    def __init__(self, channels: int, num_heads: int, *, size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, size * size))
        self.register_buffer("attention_bias_idxs", bias_indices(size), persistent=False)

    def forward(self, x: Float[Tensor, "m s s d"]) -> Float[Tensor, "m s s d"]:
        """Return windows after attention."""
        qkv = self.qkv(self.norm(x)).flatten(1, 2)
        q, k, v = torch.unflatten(qkv, 2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
        bias = self.attention_biases[:, self.attention_bias_idxs]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype))
        return self.proj(attended.transpose(1, 2).flatten(start_dim=2)).view_as(x)


def bias_indices(size: int) -> Int[Tensor, "n n"]:
    """Return ``size * |dy| + |dx|`` for each pair of the size x size tokens of a window: the index of their bias."""
    tokens = torch.arange(size * size)
    y, x = tokens // size, tokens % size
    return (y[:, None] - y).abs() * size + (x[:, None] - x).abs()


def conv_norm(channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Build a convolution and a batch norm, named ``c`` and ``bn`` as in the official checkpoints."""
    layers = nn.Sequential()
    layers.add_module(
        "c", nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    )
    layers.add_module("bn", LenientBatchNorm(out_channels))
    return layers
