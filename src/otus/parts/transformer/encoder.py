"""The encoder layer of DETR: self-attention over all locations of a feature map, then a feed-forward network.

Shape shorthand: B images, K locations of the feature map, D the embedding dimension.

Paper: "Attention Is All You Need" (arXiv:1706.03762), section 3.1, with the norms after each sum ("post-norm"); as in DETR
(arXiv:2005.12872, appendix A.3), positional encodings are added in every layer.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from otus.parts.transformer.attention import Attention, feed_forward


class TransformerEncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual connection and a layer norm after it.

    Parameters
    ----------
    embed_dim, num_heads
        D, and attention heads.
    ffn_dim
        Hidden features of the feed-forward network.
    dropout
        Dropout probability: of attention weights, after attention, and in and after the feed-forward network.
    """

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads, dropout=dropout)
        self.feed_forward = feed_forward(embed_dim, ffn_dim, dropout=dropout)
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "b k d"], pos_embed: Float[Tensor, "b k d"], attention_mask: Bool[Tensor, "b 1 k"] | None
    ) -> Float[Tensor, "b k d"]:
        """Compute the layer; positional encodings are added to queries and keys, not to values."""
        with_pos = x + pos_embed
        x = self.norm1(x + self.dropout(self.self_attn(with_pos, with_pos, x, attention_mask=attention_mask)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))
