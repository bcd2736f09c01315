"""Deformable attention: each query samples a few points of each feature map instead of attending to all locations.

Shape shorthand: B images, Q queries, D the embedding dimension, H heads, V levels, P points per level.

Paper: "Deformable DETR" (Zhu et al., ICLR 2021, arXiv:2010.04159), section 4.1; sampling points are offsets from a box's
centre in units of half its size, as in its iterative refinement (appendix A.4). Official code:
github.com/fundamentalvision/Deformable-DETR (Apache-2.0), whose CUDA kernel is replaced by ``grid_sample`` here.

Departure: the value projection has no bias. The weights of a query sum to 1, so a bias would only add a constant to the
output, which has a bias already; without it, padding contributes 0, as do points outside the feature map.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class DeformableAttention(nn.Module):
    """Attention to a few points, whose locations and weights are linear functions of the query.

    Parameters
    ----------
    embed_dim, num_heads
        D and H.
    num_levels, num_points
        V and P.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        # Initially each head samples in its own direction, point p at distance p + 1.
        angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        offsets = direction[:, None, None] * torch.arange(1, num_points + 1)[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(num_heads, num_levels, num_points, 2).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.output_proj.bias)

    def sampling_locations(
        self, queries: Float[Tensor, "b q d"], boxes: Float[Tensor, "b q 4"]
    ) -> tuple[Float[Tensor, "b h q v p 2"], Float[Tensor, "b h q v p"]]:
        """Compute the sampling locations of each head (x, y; normalised as the boxes, cxcywh) and their weights; float32."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(queries).float().unflatten(2, (*shape, 2)).transpose(1, 2)
        weights = self.attention_weights(queries).float().unflatten(2, (self.num_heads, -1)).softmax(dim=3)
        boxes = boxes[:, None, :, None, None]
        locations = boxes[..., :2] + offsets / self.num_points * boxes[..., 2:] / 2
        return locations, weights.unflatten(3, shape[1:]).transpose(1, 2)

    def forward(
        self,
        queries: Float[Tensor, "b q d"],
        boxes: Float[Tensor, "b q 4"],
        maps: Sequence[Float[Tensor, "b d _ _"]],
        extent: Float[Tensor, "b 2"],
    ) -> Float[Tensor, "b q d"]:
        """Compute the attention of each query to sampling points around its reference box.

        Parameters
        ----------
        queries
            Query features, with positional encodings added.
        boxes
            Reference boxes cxcywh, normalised by each image's size.
        maps
            Feature maps of the padded batch, 0 in the padding.
        extent
            Width and height of each image as fractions of the batch's (Deformable DETR's valid ratios).
        """
        locations, weights = self.sampling_locations(queries, boxes)
        grids = 2 * locations * extent[:, None, None, None, None] - 1
        sampled_values = []
        for i, x in enumerate(maps):
            values = self.value_proj(x.flatten(2).transpose(1, 2)).float()
            values = values.transpose(1, 2).reshape(len(x) * self.num_heads, -1, *x.shape[-2:])
            sampled = F.grid_sample(values, grids[:, :, :, i].flatten(0, 1), align_corners=False)
            sampled_values.append((sampled * weights[:, :, :, i].flatten(0, 1)[:, None]).sum(dim=3))
        total = torch.unflatten(torch.stack(sampled_values).sum(dim=0), 0, (len(queries), self.num_heads))
        return self.output_proj(total.flatten(1, 2).transpose(1, 2))
