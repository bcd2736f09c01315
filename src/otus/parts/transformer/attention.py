"""Multi-head attention: softmax(Q K^T / sqrt(d)) V, and feed-forward networks.

Shape shorthand: B images, Q queries, K keys, D the embedding dimension, H heads.

Paper: "Attention Is All You Need" (Vaswani et al., NeurIPS 2017, arXiv:1706.03762), section 3.2. Reference:
``torch.nn.MultiheadAttention`` (BSD-3-Clause), which keeps the three input projections in one matrix; here they are
separate, but initialised as if they were parts of one.
"""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention.

    Parameters
    ----------
    embed_dim
        D, of queries, keys, values and outputs.
    num_heads
        H, each with inner_dim / H channels.
    inner_dim
        Channels of the projections, a multiple of H (default: D).
    dropout
        Probability that an attention weight is dropped in training.
    """

    def __init__(self, embed_dim: int, num_heads: int, *, inner_dim: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        inner_dim = embed_dim if inner_dim is None else inner_dim
        self.num_heads = num_heads
        self.head_dim = inner_dim // num_heads
        self.dropout = dropout
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(embed_dim, inner_dim) for _ in range(3))
        self.out_proj = nn.Linear(inner_dim, embed_dim)
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)
            nn.init.zeros_(layer.bias)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        queries: Float[Tensor, "b q d"],
        keys: Float[Tensor, "b k d"],
        values: Float[Tensor, "b k d"],
        *,
        attention_mask: Bool[Tensor, "*b q k"] | None = None,
    ) -> Float[Tensor, "b q d"]:
        """Compute the attention of queries to keys and values.

        Parameters
        ----------
        queries, keys, values
            Positional encodings, if any, are already added.
        attention_mask
            True where a query may attend to a key; leading axes broadcast (default: everywhere).
        """
        attended = F.scaled_dot_product_attention(
            self.split_heads(self.q_proj(queries)),
            self.split_heads(self.k_proj(keys)),
            self.split_heads(self.v_proj(values)),
            attn_mask=None if attention_mask is None else attention_mask.unsqueeze(-3),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended.transpose(1, 2).flatten(start_dim=2))

    def weights(
        self,
        queries: Float[Tensor, "b q d"],
        keys: Float[Tensor, "b k d"],
        *,
        attention_mask: Bool[Tensor, "*b q k"] | None = None,
    ) -> Float[Tensor, "b h q k"]:
        """Compute the attention weights of each head, which sum to 1 over the keys; parameters as for :meth:`forward`."""
        q, k = self.split_heads(self.q_proj(queries)).float(), self.split_heads(self.k_proj(keys)).float()
        logits = q @ k.transpose(2, 3) / self.head_dim**0.5
        if attention_mask is not None:
            logits = logits.masked_fill(~attention_mask.unsqueeze(-3), float("-inf"))
        return logits.softmax(dim=3)

    def split_heads(self, x: Float[Tensor, "b n e"]) -> Float[Tensor, "b h n c"]:
        """Reshape projected queries, keys or values (B, N, H * C) to (B, H, N, C)."""
        return torch.unflatten(x, 2, (self.num_heads, -1)).transpose(1, 2)


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 even under autocast, for scores and boxes, which need the precision."""

    def forward(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """Compute the layer; the output is float32 whatever the dtype of the input."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight, self.bias)


def mlp(*widths: int, layer: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    """Build linear layers of the given widths with ReLU between them: ``mlp(256, 256, 4)`` has two layers."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [layer(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def feed_forward(embed_dim: int, ffn_dim: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Build a transformer's feed-forward network, with Xavier initialisation as in DETR."""
    layers = nn.Sequential(nn.Linear(embed_dim, ffn_dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(ffn_dim, embed_dim))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return layers
