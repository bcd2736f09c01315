"""SAM's image encoder: a plain vision transformer whose attention is local in most blocks.

Shape shorthand: B images, S x S pixels, h x w tokens (one for each patch), D the embedding dimension, C the map's channels.

Papers: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), appendix A; the encoder is that of "Exploring
Plain Vision Transformer Backbones for Object Detection" (Li et al., ECCV 2022, arXiv:2203.16527), section 3; its decomposed
relative positions are those of "MViTv2" (Li et al., CVPR 2022, arXiv:2112.01526), section 4.1. Official code:
github.com/facebookresearch/segment-anything (Apache-2.0), whose parameter names these are but for the MLPs. Departures,
none of which changes the answer: padding of windows is added after the projection to queries, keys and values, where it is
their bias; global attention goes through the queries part by part, so that the N x N weights are never all there.
"""

from collections.abc import Collection
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.convnext import LayerNorm2d

_CHUNK_WEIGHTS = 8_000_000
"""Attention weights of a part of the queries: 32 MB."""
_EPS = 1e-6


class ImageEncoder(Protocol):
    """What :class:`~otus.promptable.sam.Sam` takes as its image encoder: a module with one output map.

    Attributes
    ----------
    image_size
        S, the side of the square that images are padded to.
    out_channels
        C of the map.
    """

    image_size: int
    out_channels: int

    def __call__(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b c h w"]:
        """Return the map of a batch of padded images."""
        ...


class ViTEncoder(nn.Module):
    """A vision transformer with windowed attention, and a neck that gives the map its channels.

    Parameters
    ----------
    embed_dim, depth, num_heads
        D, the number of blocks, and the heads of each.
    global_blocks
        Indices of the blocks in which each token attends to all; in the others to those of its window.
    image_size, patch_size
        S, and the side of a patch, in pixels.
    window_size
        Side of a window, in tokens.
    out_channels
        C, of the map.
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
        """Return the map of a batch of padded images."""
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
    """Self-attention on a grid: softmax(Q K^T / sqrt(d) + R), where R is q·r_y + q·r_x for the offsets of two tokens.

    Parameters
    ----------
    embed_dim, num_heads
        D and the number of heads.
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
        """Attend within windows of that side, or over the whole map where it is 0."""
        height, width = x.shape[1:3]
        qkv = self.qkv(x)
        if window_size:
            padded_hw = [-(-side // window_size) * window_size for side in (height, width)]
            if padded_hw != [height, width]:
                padded = self.qkv.bias.to(qkv.dtype).expand(len(x), *padded_hw, -1).clone()
                padded[:, :height, :width] = qkv
                qkv = padded
            qkv = into_windows(qkv, window_size)
        # (3, windows, heads, y, x, channels)
        q, k, v = torch.unflatten(qkv, 3, (3, self.num_heads, -1)).permute(3, 0, 4, 1, 2, 5).unbind(0)
        attended = self._attend(q, k, v).permute(0, 2, 3, 1, 4).flatten(start_dim=3)
        if window_size:
            attended = from_windows(attended, (padded_hw[0], padded_hw[1]))[:, :height, :width]
        return self.proj(attended)

    def _attend(
        self, q: Float[Tensor, "b n h w c"], k: Float[Tensor, "b n h w c"], v: Float[Tensor, "b n h w c"]
    ) -> Float[Tensor, "b n h w c"]:
        height, width = q.shape[2:4]
        by_row = torch.einsum("bnyxc,ykc->bnyxk", q, offsets(self.rel_pos_h, height))
        by_column = torch.einsum("bnyxc,xkc->bnyxk", q, offsets(self.rel_pos_w, width))
        q, keys, values = q * q.shape[-1] ** -0.5, k.flatten(2, 3), v.flatten(2, 3)
        rows = max(1, _CHUNK_WEIGHTS // (q.shape[0] * q.shape[1] * width * height * width))
        parts = []
        for top in range(0, height, rows):
            part = slice(top, top + rows)
            bias = by_row[:, :, part, :, :, None] + by_column[:, :, part, :, None, :]  # (B, heads, y, x, key y, key x)
            logits = torch.baddbmm(
                bias.flatten(4).flatten(2, 3).flatten(0, 1),
                q[:, :, part].flatten(2, 3).flatten(0, 1),
                keys.flatten(0, 1).transpose(1, 2),
            )
            attended = logits.softmax(dim=-1) @ values.flatten(0, 1)
            parts.append(attended.view_as(q[:, :, part]))
        return torch.cat(parts, dim=2)


def neck(channels: int, out_channels: int) -> nn.Sequential:
    """Build the layers from an encoder's channels to those of the decoder."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, 1, bias=False),
        LayerNorm2d(out_channels, eps=_EPS),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        LayerNorm2d(out_channels, eps=_EPS),
    )


def offsets(table: Float[Tensor, "l c"], size: int) -> Float[Tensor, "size size c"]:
    """Return the entry of each pair of positions on an axis, by their offset; a table of another size is interpolated."""
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], 2 * size - 1, mode="linear")[0].T
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions + size - 1]


def into_windows(x: Float[Tensor, "b h w d"], size: int) -> Float[Tensor, "m s s d"]:
    """Cut maps whose sides are multiples of ``size`` into windows, those of an image after one another."""
    batch, height, width, channels = x.shape
    windows = x.view(batch, height // size, size, width // size, size, channels)
    return windows.transpose(2, 3).reshape(-1, size, size, channels)


def from_windows(windows: Float[Tensor, "m s s d"], size_hw: tuple[int, int]) -> Float[Tensor, "b h w d"]:
    """Put windows together, as :func:`into_windows` cut them."""
    size, channels = windows.shape[1], windows.shape[3]
    rows, columns = size_hw[0] // size, size_hw[1] // size
    return windows.view(-1, rows, columns, size, size, channels).transpose(2, 3).reshape(-1, *size_hw, channels)
