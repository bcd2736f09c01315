"""SAM's mask decoder: tokens and the image's map attend to one another, then each mask token is compared with each pixel.

Shape shorthand: B prompts, T tokens each, N = h x w locations of the map, D the embedding dimension, H heads of c channels,
M masks.

Paper: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), section 3 and appendix A. Official code:
github.com/facebookresearch/segment-anything (Apache-2.0), whose parameter names these are but for the MLPs.

There are a few tokens and thousands of locations, and two facts save most of the work without changing the answer but for
rounding (benchmarks/promptable.py):

- before the first block all prompts see the same map, so its projections are computed once for all (:class:`ImageSide`);
- from then on each prompt has a map of its own, but q · (W k) = (W^T q) · k, and the mean of W v is W times the mean of v:
  the projections are done on the side of the tokens, H T vectors in the place of N.

The transposed convolutions, whose strides are their kernels, are linear layers on each location, and are computed only for
prompts whose masks are asked for.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.parts.transformer.attention import Attention, mlp


class ImageSide(NamedTuple):
    """What does not depend on points, boxes and text: computed once for all prompts (B = 1), or for each mask prompt.

    Parameters
    ----------
    locations
        (B, N, D) the map, with what masks add to it.
    encodings
        (N, D) of the positions.
    keys, values, queries
        (B, H, N, c) projections of the first block.
    """

    locations: Float[Tensor, "b n d"]
    encodings: Float[Tensor, "n d"]
    keys: Float[Tensor, "b h n c"]
    values: Float[Tensor, "b h n c"]
    queries: Float[Tensor, "b h n c"]


class MaskDecoder(nn.Module):
    """Masks and their predicted IoUs from a map and the tokens of prompts.

    Parameters
    ----------
    embed_dim
        D, a multiple of 8.
    num_masks
        Of the candidates for an ambiguous prompt; one more is for prompts that are not.
    depth, num_heads, ffn_dim
        Of the two-way transformer.
    iou_dim
        Of the hidden layers that predict IoUs (default: D).
    """

    def __init__(
        self,
        embed_dim: int = 256,
        *,
        num_masks: int = 3,
        depth: int = 2,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        iou_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.transformer = TwoWayTransformer(embed_dim, depth=depth, num_heads=num_heads, ffn_dim=ffn_dim)
        self.iou_token = nn.Embedding(1, embed_dim)
        self.mask_tokens = nn.Embedding(num_masks + 1, embed_dim)
        self.output_upscaling = nn.Sequential(
            LocationUpscaling(embed_dim, embed_dim // 4),
            nn.LayerNorm(embed_dim // 4, eps=1e-6),
            nn.GELU(),
            LocationUpscaling(embed_dim // 4, embed_dim // 8),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            mlp(embed_dim, embed_dim, embed_dim, embed_dim // 8) for _ in range(num_masks + 1)
        )
        iou_dim = iou_dim or embed_dim
        self.iou_prediction_head = mlp(embed_dim, iou_dim, iou_dim, num_masks + 1)

    def image_side(
        self, features: Float[Tensor, "d h w"], dense: Float[Tensor, "b d _ _"], encodings: Float[Tensor, "n d"]
    ) -> ImageSide:
        """Compute what all prompts share.

        Parameters
        ----------
        features
            The image's map.
        dense
            What masks, or their absence, add to it.
        encodings
            Of the positions of its locations.
        """
        locations = (features + dense).flatten(2).transpose(1, 2)
        return self.transformer.image_side(locations, encodings)

    def forward(
        self, image: ImageSide, prompts: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b m h w"], Float[Tensor, "b m"]]:
        """Return logits of all masks, 4 times as wide as the map, and their predicted IoUs.

        The first mask is the one for prompts that are not ambiguous.
        """
        tokens, locations = self.attend(image, prompts)
        return self.logits(tokens, locations), self.predicted_ious(tokens)

    def attend(
        self, image: ImageSide, prompts: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b t2 d"], Float[Tensor, "b n d"]]:
        """Return the tokens, first that of the IoU, then those of the masks, and the map of each prompt after attention."""
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return self.transformer(image, torch.cat([own.expand(len(prompts), -1, -1), prompts], dim=1))

    def predicted_ious(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b m"]:
        """Return the predicted IoU of each mask with the object."""
        return self.iou_prediction_head(tokens[:, 0])

    def logits(self, tokens: Float[Tensor, "b t d"], locations: Float[Tensor, "b n d"]) -> Float[Tensor, "b m h w"]:
        """Return the masks' logits: of each the product of its token's vector with each upscaled location."""
        vectors = torch.stack(
            [network(tokens[:, 1 + mask]) for mask, network in enumerate(self.output_hypernetworks_mlps)], dim=2
        )
        upscaled = self.output_upscaling(locations)  # (B, N, 2, 2, 2, 2, D / 8)
        side = round(locations.shape[1] ** 0.5)
        logits = upscaled.flatten(1, 5) @ vectors
        by_step = torch.unflatten(logits, 1, (side, side, 2, 2, 2, 2))  # y and x of the location, then of each doubling
        return by_step.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(2, 4).flatten(3, 5)


class LocationUpscaling(nn.ConvTranspose2d):
    """A transposed convolution whose stride and kernel are 2, as a linear layer: no output is of two locations."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 2, stride=2)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 2 2 e"]:  # type: ignore[override]
        """Return the four outputs of each location, in y and x."""
        assert self.bias is not None
        weight = self.weight.permute(2, 3, 1, 0)
        return torch.unflatten(F.linear(x, weight.flatten(0, 2), self.bias.repeat(4)), -1, weight.shape[:3])


class TwoWayTransformer(nn.Module):
    """Blocks in which tokens attend to one another and to the map, and the map to the tokens; tokens have the last word."""

    def __init__(self, embed_dim: int, *, depth: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(embed_dim, num_heads, ffn_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(embed_dim, num_heads, inner_dim=embed_dim // 2)
        self.norm_final_attn = nn.LayerNorm(embed_dim)
        later = [block.cross_attn_token_to_image for block in self.layers[1:] if isinstance(block, TwoWayBlock)]
        for attention in (*later, self.final_attn_token_to_image):  # no answer depends on it, see :func:`gather`
            attention.k_proj.bias.requires_grad_(False)

    def image_side(self, locations: Float[Tensor, "b n d"], encodings: Float[Tensor, "n d"]) -> ImageSide:
        """Compute the first block's projections of a map."""
        block = self.layers[0]
        assert isinstance(block, TwoWayBlock)
        positioned = locations + encodings
        to_image, to_tokens = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        return ImageSide(
            locations,
            encodings,
            keys=to_image.split_heads(to_image.k_proj(positioned)),
            values=to_image.split_heads(to_image.v_proj(locations)),
            queries=to_tokens.split_heads(to_tokens.q_proj(positioned)),
        )

    def forward(
        self, image: ImageSide, tokens: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b n d"]]:
        """Return the tokens and the map of each prompt."""
        positions = tokens  # the prompts' own encodings are added again wherever tokens are compared
        locations = image.locations
        for index, block in enumerate(self.layers):
            tokens, locations = block(tokens, positions, locations, image.encodings, image if index == 0 else None)
        gathered = gather(self.final_attn_token_to_image, tokens + positions, locations + image.encodings, locations)
        return self.norm_final_attn(tokens + gathered), locations


class TwoWayBlock(nn.Module):
    """Self-attention of the tokens, tokens to map, MLP, map to tokens."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(embed_dim, num_heads)
        self.cross_attn_token_to_image = Attention(embed_dim, num_heads, inner_dim=embed_dim // 2)
        self.mlp = mlp(embed_dim, ffn_dim, embed_dim)
        self.cross_attn_image_to_token = Attention(embed_dim, num_heads, inner_dim=embed_dim // 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(embed_dim) for _ in range(4))

    def forward(
        self,
        tokens: Float[Tensor, "b t d"],
        positions: Float[Tensor, "b t d"],
        locations: Float[Tensor, "_ n d"],
        encodings: Float[Tensor, "n d"],
        image: ImageSide | None,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b n d"]]:
        """Return tokens and map after the block; of the first block the map's projections are those of ``image``."""
        if self.first:  # tokens are their positions still
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            queries = tokens + positions
            tokens = self.norm1(tokens + self.self_attn(queries, queries, tokens))
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        if image is not None:
            tokens = self.norm2(tokens + gather_projected(to_image, tokens + positions, image.keys, image.values))
            tokens = self.norm3(tokens + self.mlp(tokens))
            locations = spread_projected(to_tokens, image.queries, tokens + positions, tokens, locations)
        else:
            positioned = locations + encodings
            tokens = self.norm2(tokens + gather(to_image, tokens + positions, positioned, locations))
            tokens = self.norm3(tokens + self.mlp(tokens))
            locations = spread(to_tokens, positioned, tokens + positions, tokens, locations)
        return tokens, self.norm4(locations)


def gather(
    attention: Attention,
    tokens: Float[Tensor, "b t d"],
    positioned: Float[Tensor, "b n d"],
    locations: Float[Tensor, "b n d"],
) -> Float[Tensor, "b t d"]:
    """Attend from tokens to a map: ``attention(tokens, positioned, locations)``, projected on the side of the tokens.

    The bias of the keys adds the same to all logits of a query, so that the softmax does not see it.
    """
    queries = attention.split_heads(attention.q_proj(tokens)) * attention.head_dim**-0.5
    folded = queries @ torch.unflatten(attention.k_proj.weight, 0, (attention.num_heads, -1))  # (B, H, T, D)
    weights = (folded.flatten(1, 2) @ positioned.transpose(1, 2)).softmax(dim=-1)
    means = torch.unflatten(weights @ locations, 1, (attention.num_heads, -1))
    values = means @ torch.unflatten(attention.v_proj.weight, 0, (attention.num_heads, -1)).transpose(1, 2)
    return attention.out_proj(values.transpose(1, 2).flatten(start_dim=2) + attention.v_proj.bias)


def spread(
    attention: Attention,
    positioned: Float[Tensor, "b n d"],
    keys: Float[Tensor, "b t d"],
    tokens: Float[Tensor, "b t d"],
    locations: Float[Tensor, "b n d"],
) -> Float[Tensor, "b n d"]:
    """Attend from a map to tokens, and add: ``locations + attention(positioned, keys, tokens)``, projected as in
    :func:`gather`."""
    projected = attention.split_heads(attention.k_proj(keys)) * attention.head_dim**-0.5
    folded = projected @ torch.unflatten(attention.q_proj.weight, 0, (attention.num_heads, -1))
    bias = projected @ torch.unflatten(attention.q_proj.bias, 0, (attention.num_heads, -1, 1))
    logits = torch.baddbmm(bias.flatten(1, 2), folded.flatten(1, 2), positioned.transpose(1, 2))
    return _add_values(attention, torch.unflatten(logits, 1, (attention.num_heads, -1)), tokens, locations)


def gather_projected(
    attention: Attention,
    tokens: Float[Tensor, "b t d"],
    keys: Float[Tensor, "_ h n c"],
    values: Float[Tensor, "_ h n c"],
) -> Float[Tensor, "b t d"]:
    """Attend from tokens to a map that is projected already."""
    queries = attention.split_heads(attention.q_proj(tokens))
    shape = len(tokens), *keys.shape[1:]
    gathered = F.scaled_dot_product_attention(queries, keys.expand(shape), values.expand(shape))
    return attention.out_proj(gathered.transpose(1, 2).flatten(start_dim=2))


def spread_projected(
    attention: Attention,
    queries: Float[Tensor, "_ h n c"],
    keys: Float[Tensor, "b t d"],
    tokens: Float[Tensor, "b t d"],
    locations: Float[Tensor, "_ n d"],
) -> Float[Tensor, "b n d"]:
    """Attend from a map that is projected already to tokens, and add."""
    projected = attention.split_heads(attention.k_proj(keys)) * attention.head_dim**-0.5
    return _add_values(attention, projected @ queries.transpose(2, 3), tokens, locations)


def _add_values(
    attention: Attention, logits: Float[Tensor, "b h t n"], tokens: Float[Tensor, "b t d"], locations: Tensor
) -> Float[Tensor, "b n d"]:
    """Weigh the tokens' values, projected to the output, and add them to the locations."""
    weights = logits.softmax(dim=2).flatten(1, 2).transpose(1, 2)
    values = attention.split_heads(attention.v_proj(tokens))
    outputs = values @ torch.unflatten(attention.out_proj.weight, 1, (attention.num_heads, -1)).permute(1, 2, 0)
    locations = (locations + attention.out_proj.bias).expand(len(tokens), -1, -1)
    return torch.baddbmm(locations, weights, outputs.flatten(1, 2))
