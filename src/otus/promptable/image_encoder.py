"""SAM's image encoder: a plain vision transformer with windowed attention in most blocks.

Shape shorthand: B images, S x S pixels, h x w tokens (one per patch), D the embedding dimension, C channels of the feature
map.

Papers: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), appendix A; the encoder is that of "Exploring
Plain Vision Transformer Backbones for Object Detection" (Li et al., ECCV 2022, arXiv:2203.16527), section 3; its decomposed
relative position embeddings are those of "MViTv2" (Li et al., CVPR 2022, arXiv:2112.01526), section 4.1. Official code:
github.com/facebookresearch/segment-anything (Apache-2.0), with the same parameter names except for the MLPs. Departures,
none of which changes the output: windows are padded after the projection to queries, keys and values, where zero padding
equals the bias; attention is computed in chunks of queries, so that the full N x N matrix is never in memory.
"""

from collections.abc import Collection
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d

_CHUNK_WEIGHTS = 8_000_000
"""Number of attention weights per chunk of queries: 32 MB in float32."""
_EPS = 1e-6


class ImageEncoder(Protocol):
    """Interface of the image encoder of :class:`~otus.promptable.sam.Sam`: a module with one feature map as output.

    Attributes
    ----------
    image_size
        Side S of the square that images are padded to, in pixels.
    out_channels
        Channels C of the feature map.
    """

    image_size: int
    out_channels: int

    def __call__(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Return the feature map of a batch of padded images."""
        ...


class ViTEncoder(nn.Module):
    """A vision transformer with windowed attention, and a neck that projects its output to C channels.

    Parameters
    ----------
    embed_dim, depth, num_heads
        Embedding dimension D, number of blocks, and attention heads per block.
    global_blocks
        Indices of the blocks with global attention; the others have windowed attention.
    image_size, patch_size
        Side S of the padded images and side of a patch, in pixels.
    window_size
        Side of a window, in tokens.
    out_channels
        Channels C of the feature map.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        *,
        global_blocks: Collection[int],
        image_size: int = 1024,
        patch_size: int = 16,
        window_size: int = 14,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.out_channels = out_channels
        side = image_size // patch_size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)})
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, embed_dim))
        self.blocks = nn.ModuleList(
            WindowBlock(embed_dim, num_heads, map_size=side, window_size=0 if index in global_blocks else window_size)
            for index in range(depth)
        )
        self.neck = neck(embed_dim, out_channels)

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Return the feature map of a batch of padded images."""
        x = self.patch_embed["proj"](images).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class WindowBlock(nn.Module):
    """Attention and MLP with residual connections; ``window_size`` 0 for attention over the whole map."""

    def __init__(self, embed_dim: int, num_heads: int, *, map_size: int, window_size: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=_EPS)
        self.attn = RelativeAttention(embed_dim, num_heads, size=window_size or map_size)
        self.norm2 = nn.LayerNorm(embed_dim, eps=_EPS)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, 4 * embed_dim), nn.GELU(), nn.Linear(4 * embed_dim, embed_dim))
        self.window_size = window_size

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        """Return the tokens after the block."""
        x = x + self.attn(self.norm1(x), window_size=self.window_size)
        return x + self.mlp(self.norm2(x))


class RelativeAttention(nn.Module):
    """Self-attention on a grid: softmax(Q K^T / sqrt(d) + R), R = q·r_y + q·r_x for the offsets of query and key.

    Parameters
    ----------
    embed_dim, num_heads
        Embedding dimension D and number of heads.
    size
        Side of the grid, in tokens.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.rel_pos_h, self.rel_pos_w = (
            nn.Parameter(torch.zeros(2 * size - 1, embed_dim // num_heads)) for _ in range(2)
        )

    def forward(self, x: Float[Tensor, "b h w d"], *, window_size: int = 0) -> Float[Tensor, "b h w d"]:
        """Attend within windows of ``window_size`` tokens a side, or over the whole map if it is 0."""
        height, width = x.shape[1:3]
        qkv = self.qkv(x)
        if window_size:
            padded_hw = [-(-side // window_size) * window_size for side in (height, width)]
            if padded_hw != [height, width]:
                padded = self.qkv.bias.to(qkv.dtype).expand(len(x), *padded_hw, -1).clone()
                padded[:, :height, :width] = qkv
                qkv = padded
            qkv = window_partition(qkv, window_size)
        # (3, windows, heads, y, x, channels)
        q, k, v = torch.unflatten(qkv, 3, (3, self.num_heads, -1)).permute(3, 0, 4, 1, 2, 5).unbind(0)
        attended = self._attend(q, k, v).permute(0, 2, 3, 1, 4).flatten(start_dim=3)
        if window_size:
            attended = window_unpartition(attended, (padded_hw[0], padded_hw[1]))[:, :height, :width]
        return self.proj(attended)

    def _attend(
        self, q: Float[Tensor, "b n h w c"], k: Float[Tensor, "b n h w c"], v: Float[Tensor, "b n h w c"]
    ) -> Float[Tensor, "b n h w c"]:
        height, width = q.shape[2:4]
        by_row = torch.einsum("bnyxc,ykc->bnyxk", q, relative_positions(self.rel_pos_h, height))
        by_column = torch.einsum("bnyxc,xkc->bnyxk", q, relative_positions(self.rel_pos_w, width))
        q, keys, values = q * q.shape[-1] ** -0.5, k.flatten(2, 3), v.flatten(2, 3)
        rows = max(1, _CHUNK_WEIGHTS // (q.shape[0] * q.shape[1] * width * height * width))
        outputs = []
        for top in range(0, height, rows):
            chunk = slice(top, top + rows)
            bias = (
                by_row[:, :, chunk, :, :, None] + by_column[:, :, chunk, :, None, :]
            )  # (B, heads, y, x, key y, key x)
            logits = torch.baddbmm(
                bias.flatten(4).flatten(2, 3).flatten(0, 1),
                q[:, :, chunk].flatten(2, 3).flatten(0, 1),
                keys.flatten(0, 1).transpose(1, 2),
            )
            attended = logits.softmax(dim=-1) @ values.flatten(0, 1)
            outputs.append(attended.view_as(q[:, :, chunk]))
        return torch.cat(outputs, dim=2)


def neck(channels: int, out_channels: int) -> nn.Sequential:
    """Build the convolutions from an encoder's channels to those of the decoder."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels, eps=_EPS),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels, eps=_EPS),
    )


def relative_positions(table: Float[Tensor, "l c"], size: int) -> Float[Tensor, "size size c"]:
    """Return the relative position embedding of each query and key along an axis; the table is resized to fit."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], 2 * size - 1, mode="linear")[0].T
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions + size - 1]


def window_partition(x: Float[Tensor, "b h w d"], size: int) -> Float[Tensor, "m s s d"]:
    """Partition maps, whose sides are multiples of ``size``, into windows; those of an image are consecutive."""
    batch, height, width, channels = x.shape
    windows = x.view(batch, height // size, size, width // size, size, channels)
    return windows.transpose(2, 3).reshape(-1, size, size, channels)


def window_unpartition(windows: Float[Tensor, "m s s d"], size_hw: tuple[int, int]) -> Float[Tensor, "b h w d"]:
    """Merge windows to maps: the inverse of :func:`window_partition`."""
    size, channels = windows.shape[1], windows.shape[3]
    rows, columns = size_hw[0] // size, size_hw[1] // size
    return windows.view(-1, rows, columns, size, size, channels).transpose(2, 3).reshape(-1, *size_hw, channels)
