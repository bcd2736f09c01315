"""SAM's mask decoder: prompt tokens and the image's feature map attend to each other, then masks are predicted.

Shape shorthand: B prompts, T tokens each, N = h x w locations of the feature map, D the embedding dimension, H heads of c
channels, M masks.

Paper: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), section 3 and appendix A. Official code:
github.com/facebookresearch/segment-anything (Apache-2.0), whose parameter names these are but for the MLPs.

There are a few tokens and thousands of locations. Two identities save most of the work; outputs differ from the official
ones by rounding only (benchmarks/promptable.py):

- In the first block all prompts see the same feature map, so its projections are computed once (:class:`ProjectedImage`).
- From then on each prompt has a feature map of its own, but q · (W k) = (W^T q) · k, and the weighted mean of W v is W times
  the weighted mean of v: W is applied to H T vectors on the side of the tokens instead of N locations.

The transposed convolutions have a stride equal to their kernel size, so they are linear layers on each location. They are
computed only for prompts whose masks are asked for.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.parts.transformer.attention import Attention, mlp
from otus.promptable.prompt_encoder import TOKEN_STD


class ProjectedImage(NamedTuple):
    """The inputs of the decoder that do not depend on points, boxes and text.

    They are computed once for all prompts (B = 1), or once per mask prompt.

    Parameters
    ----------
    locations
        (B, N, D) feature map, plus the dense embedding of the mask prompts.
    encodings
        (N, D) positional encodings of the locations.
    keys, values, queries
        (B, H, N, c) projections of the feature map in the first block.
    details
        Finer features of the image that are added to the upscaled locations: (N, 2, 2, D / 4) and (N, 2, 2, 2, 2, D / 8),
        or none.
    """

    locations: Float[Tensor, "b n d"]
    encodings: Float[Tensor, "n d"]
    keys: Float[Tensor, "b h n c"]
    values: Float[Tensor, "b h n c"]
    queries: Float[Tensor, "b h n c"]
    details: tuple[Float[Tensor, "n 2 2 d1"], Float[Tensor, "n 2 2 2 2 d2"]] | None = None


class MaskDecoder(nn.Module):
    """Predict masks and their IoUs from a feature map and prompt tokens.

    Parameters
    ----------
    embed_dim
        Embedding dimension D, a multiple of 8.
    num_masks
        Number of candidates for an ambiguous prompt; one more mask is predicted for unambiguous prompts.
    depth, num_heads, ffn_dim
        Number of blocks, attention heads and MLP width of the two-way transformer.
    iou_dim
        Width of the hidden layers of the IoU head (default: D).
    mixing
        Mix neighbouring pixels by convolutions after the first upscaling step. In SAM a pixel depends on one location,
        which is too coarse for small objects if the feature map is small.
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
        mixing: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.transformer = TwoWayTransformer(embed_dim, depth=depth, num_heads=num_heads, ffn_dim=ffn_dim)
        self.iou_token = nn.Embedding(1, embed_dim)
        self.mask_tokens = nn.Embedding(num_masks + 1, embed_dim)
        for tokens in (self.iou_token, self.mask_tokens):
            nn.init.normal_(tokens.weight, std=TOKEN_STD)
        self.output_upscaling = nn.Sequential(
            LocationUpscaling(embed_dim, embed_dim // 4),
            nn.LayerNorm(embed_dim // 4, eps=1e-6),
            nn.GELU(),
            LocationUpscaling(embed_dim // 4, embed_dim // 8),
            nn.GELU(),
        )
        self.mixing = Mixing(embed_dim // 4) if mixing else nn.Identity()
        self.output_hypernetworks_mlps = nn.ModuleList(
            mlp(embed_dim, embed_dim, embed_dim, embed_dim // 8) for _ in range(num_masks + 1)
        )
        iou_dim = iou_dim or embed_dim
        self.iou_prediction_head = mlp(embed_dim, iou_dim, iou_dim, num_masks + 1)

    def project_image(
        self, features: Float[Tensor, "c h w"], dense: Float[Tensor, "b d _ _"], encodings: Float[Tensor, "n d"]
    ) -> ProjectedImage:
        """Compute the inputs that all prompts share.

        Parameters
        ----------
        features
            Feature map of the image: D channels, or 4 D with details (:mod:`~otus.promptable.backbone_encoder`).
        dense
            Dense embedding of the mask prompts, or the one for no mask; it is added to the feature map.
        encodings
            Positional encodings of its locations.
        """
        locations = (features[: self.embed_dim] + dense).flatten(2).transpose(1, 2)
        image = self.transformer.project_image(locations, encodings)
        if len(features) == self.embed_dim:
            return image
        details = features[self.embed_dim :].flatten(1).T
        # channel, y, x of the pixel; at stride 4, y and x of each upscaling step
        stride_8 = torch.unflatten(details[:, : self.embed_dim], 1, (-1, 2, 2)).permute(0, 2, 3, 1)
        stride_4 = torch.unflatten(details[:, self.embed_dim :], 1, (-1, 2, 2, 2, 2)).permute(0, 2, 4, 3, 5, 1)
        return image._replace(details=(stride_8, stride_4))

    def forward(
        self, image: ProjectedImage, prompts: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b m h w"], Float[Tensor, "b m"]]:
        """Return the logits of all masks, at 4 times the resolution of the feature map, and their predicted IoUs.

        The first mask is the one for unambiguous prompts.
        """
        tokens, locations = self.attend(image, prompts)
        return self.logits(image, tokens, locations), self.predicted_ious(tokens)

    def attend(
        self, image: ProjectedImage, prompts: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b t2 d"], Float[Tensor, "b n d"]]:
        """Return the tokens and the feature map of each prompt after the transformer.

        The first token is the IoU's, the next ones are the masks', then come the prompt's.
        """
        return self.transformer(image, self._with_output_tokens(prompts))

    def mask_attention(self, image: ProjectedImage, prompts: Float[Tensor, "b t d"]) -> Float[Tensor, "b m h w"]:
        """Return where each mask token looks: its last attention to the image, the mean over heads; for explanations."""
        weights = self.transformer.last_attention(image, self._with_output_tokens(prompts))[:, 1 : 1 + self.num_masks]
        return torch.unflatten(weights, 2, (round(weights.shape[2] ** 0.5), -1))

    @property
    def num_masks(self) -> int:
        """Number of masks per prompt, M + 1: the candidates, and the one for unambiguous prompts."""
        return self.mask_tokens.num_embeddings

    def _with_output_tokens(self, prompts: Float[Tensor, "b t d"]) -> Float[Tensor, "b t2 d"]:
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([output_tokens.expand(prompts.shape[0], -1, -1), prompts], dim=1)

    def predicted_ious(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b m"]:
        """Return the predicted IoU of each mask with its object."""
        return self.iou_prediction_head(tokens[:, 0])

    def logits(
        self, image: ProjectedImage, tokens: Float[Tensor, "b t d"], locations: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b m h w"]:
        """Return the masks' logits: the dot product of the mask's token, after its MLP, with each upscaled location."""
        weights = torch.stack(
            [hypernetwork(tokens[:, 1 + mask]) for mask, hypernetwork in enumerate(self.output_hypernetworks_mlps)],
            dim=2,
        )
        upscaled = self._upscale(locations, image.details)
        return as_maps(torch.unflatten(upscaled.flatten(1, 5) @ weights, 1, upscaled.shape[1:6]))

    def _upscale(
        self,
        locations: Float[Tensor, "b n d"],
        details: tuple[Float[Tensor, "n 2 2 d1"], Float[Tensor, "n 2 2 2 2 d2"]] | None,
    ) -> Float[Tensor, "b n 2 2 2 2 d2"]:
        """Return the locations upscaled twice by 2."""
        first, norm, activation, second, last_activation = self.output_upscaling
        upscaled = first(locations)
        if details is not None:
            upscaled = upscaled + details[0]
        upscaled = second(self.mixing(activation(norm(upscaled))))
        if details is not None:
            upscaled = upscaled + details[1]
        return last_activation(upscaled)


class Mixing(nn.Module):
    """Two 3 x 3 convolutions with a residual connection, which have no effect until they are trained."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "b n *steps d"]) -> Float[Tensor, "b n *steps d"]:
        """Return the upscaled locations with features of their neighbours added."""
        return x + as_locations(self.second(F.gelu(self.first(as_maps(x)))), x.shape)


def as_maps(x: Float[Tensor, "b n *steps d"]) -> Float[Tensor, "b d h w"]:
    """Return upscaled locations, with y and x of each upscaling step, as maps."""
    side = round(x.shape[1] ** 0.5)
    x = torch.unflatten(x, 1, (side, side))
    rows, columns = range(1, x.dim() - 1, 2), range(2, x.dim() - 1, 2)
    x = x.permute(0, x.dim() - 1, *rows, *columns)
    return x.flatten(2 + len(rows)).flatten(2, 1 + len(rows))


def as_locations(maps: Float[Tensor, "b d h w"], shape: torch.Size) -> Float[Tensor, "b n *steps d"]:
    """Return maps in the layout of :func:`as_maps`' argument, which has this shape."""
    side, steps = round(shape[1] ** 0.5), shape[2:-1:2]
    x = torch.unflatten(torch.unflatten(maps, 3, (side, *steps)), 2, (side, *steps))
    depth = 1 + len(steps)
    order = [axis for step in range(depth) for axis in (2 + step, 2 + depth + step)]
    return x.permute(0, *order, 1).reshape(shape)


class LocationUpscaling(nn.ConvTranspose2d):
    """A transposed convolution of kernel and stride 2 as a linear layer: each output depends on one location only."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 2, stride=2)

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n 2 2 e"]:  # type: ignore[override]
        """Return the 2 x 2 outputs of each location."""
        assert self.bias is not None
        weight = self.weight.permute(2, 3, 1, 0)
        return torch.unflatten(F.linear(x, weight.flatten(0, 2), self.bias.repeat(4)), -1, weight.shape[:3])


class TwoWayTransformer(nn.Module):
    """Blocks of self-attention of tokens and cross-attention in both directions, then a last one from tokens to image."""

    def __init__(self, embed_dim: int, *, depth: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(embed_dim, num_heads, ffn_dim, first=i == 0) for i in range(depth))
        self.final_attn_token_to_image = Attention(embed_dim, num_heads, inner_dim=embed_dim // 2)
        self.norm_final_attn = nn.LayerNorm(embed_dim)
        later = [block.cross_attn_token_to_image for block in self.layers[1:] if isinstance(block, TwoWayBlock)]
        for attention in (*later, self.final_attn_token_to_image):  # it has no effect, see :func:`attention_weights`
            attention.k_proj.bias.requires_grad_(False)

    def project_image(self, locations: Float[Tensor, "b n d"], encodings: Float[Tensor, "n d"]) -> ProjectedImage:
        """Compute the first block's projections of a feature map."""
        block = self.layers[0]
        assert isinstance(block, TwoWayBlock)
        with_encodings = locations + encodings
        to_image, to_tokens = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        return ProjectedImage(
            locations,
            encodings,
            keys=to_image.split_heads(to_image.k_proj(with_encodings)),
            values=to_image.split_heads(to_image.v_proj(locations)),
            queries=to_tokens.split_heads(to_tokens.q_proj(with_encodings)),
        )

    def forward(
        self, image: ProjectedImage, tokens: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b n d"]]:
        """Return the tokens and the feature map of each prompt."""
        token_encodings = tokens  # the input tokens serve as positional encodings of queries and keys in every block
        tokens, locations = self.blocks(image, tokens)
        attended = token_to_image(
            self.final_attn_token_to_image, tokens + token_encodings, locations + image.encodings, locations
        )
        return self.norm_final_attn(tokens + attended), locations

    def blocks(
        self, image: ProjectedImage, tokens: Float[Tensor, "b t d"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b n d"]]:
        """Return the tokens and the feature map of each prompt before the last attention from tokens to image."""
        token_encodings, locations = tokens, image.locations
        for index, block in enumerate(self.layers):
            projected = image if index == 0 else None
            tokens, locations = block(tokens, token_encodings, locations, image.encodings, projected)
        return tokens, locations

    def last_attention(self, image: ProjectedImage, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t n"]:
        """Return the weights of the last attention from each token to the locations, averaged over heads."""
        updated, locations = self.blocks(image, tokens)
        weights = attention_weights(self.final_attn_token_to_image, updated + tokens, locations + image.encodings)
        return torch.unflatten(weights, 1, (self.final_attn_token_to_image.num_heads, -1)).mean(dim=1)


class TwoWayBlock(nn.Module):
    """Self-attention of tokens, cross-attention from tokens to image, MLP, cross-attention from image to tokens."""

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
        token_encodings: Float[Tensor, "b t d"],
        locations: Float[Tensor, "_ n d"],
        encodings: Float[Tensor, "n d"],
        image: ProjectedImage | None,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b n d"]]:
        """Return tokens and feature map after the block; ``image`` holds the first block's projections of the map."""
        if self.first:  # tokens equal their encodings, which are not added again
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            queries = tokens + token_encodings
            tokens = self.norm1(tokens + self.self_attn(queries, queries, tokens))
        to_image, to_tokens = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        if image is not None:
            queries = tokens + token_encodings
            tokens = self.norm2(tokens + token_to_projected_image(to_image, queries, image.keys, image.values))
            tokens = self.norm3(tokens + self.mlp(tokens))
            keys = tokens + token_encodings
            locations = add_projected_image_to_token(to_tokens, image.queries, keys, tokens, locations)
        else:
            with_encodings = locations + encodings
            queries = tokens + token_encodings
            tokens = self.norm2(tokens + token_to_image(to_image, queries, with_encodings, locations))
            tokens = self.norm3(tokens + self.mlp(tokens))
            locations = add_image_to_token(to_tokens, with_encodings, tokens + token_encodings, tokens, locations)
        return tokens, self.norm4(locations)


def attention_weights(
    attention: Attention, queries: Float[Tensor, "b t d"], keys: Float[Tensor, "b n d"]
) -> Float[Tensor, "b ht n"]:
    """Return the weights of each head and token, projected on the side of the tokens.

    The bias of the keys adds the same constant to all logits of a query, so the softmax does not depend on it.
    """
    projected = attention.split_heads(attention.q_proj(queries)) * attention.head_dim**-0.5
    folded = projected @ torch.unflatten(attention.k_proj.weight, 0, (attention.num_heads, -1))  # (B, H, T, D)
    return (folded.flatten(1, 2) @ keys.transpose(1, 2)).softmax(dim=-1)


def token_to_image(
    attention: Attention,
    queries: Float[Tensor, "b t d"],
    keys: Float[Tensor, "b n d"],
    values: Float[Tensor, "b n d"],
) -> Float[Tensor, "b t d"]:
    """Return ``attention(queries, keys, values)`` from tokens to locations, projected on the side of the tokens."""
    weights = attention_weights(attention, queries, keys)
    means = torch.unflatten(weights @ values, 1, (attention.num_heads, -1))
    outputs = means @ torch.unflatten(attention.v_proj.weight, 0, (attention.num_heads, -1)).transpose(1, 2)
    return attention.out_proj(outputs.transpose(1, 2).flatten(start_dim=2) + attention.v_proj.bias)


def add_image_to_token(
    attention: Attention,
    queries: Float[Tensor, "b n d"],
    keys: Float[Tensor, "b t d"],
    values: Float[Tensor, "b t d"],
    residual: Float[Tensor, "b n d"],
) -> Float[Tensor, "b n d"]:
    """Return ``residual + attention(queries, keys, values)`` from locations to tokens, projected on the tokens' side."""
    projected = attention.split_heads(attention.k_proj(keys)) * attention.head_dim**-0.5
    folded = projected @ torch.unflatten(attention.q_proj.weight, 0, (attention.num_heads, -1))
    bias = projected @ torch.unflatten(attention.q_proj.bias, 0, (attention.num_heads, -1, 1))
    logits = torch.baddbmm(bias.flatten(1, 2), folded.flatten(1, 2), queries.transpose(1, 2))
    return _add_attended(attention, torch.unflatten(logits, 1, (attention.num_heads, -1)), values, residual)


def token_to_projected_image(
    attention: Attention,
    queries: Float[Tensor, "b t d"],
    keys: Float[Tensor, "_ h n c"],
    values: Float[Tensor, "_ h n c"],
) -> Float[Tensor, "b t d"]:
    """Return the attention from tokens to locations whose keys and values are projected already."""
    projected = attention.split_heads(attention.q_proj(queries))
    shape = queries.shape[0], *keys.shape[1:]
    outputs = F.scaled_dot_product_attention(projected, keys.expand(shape), values.expand(shape))
    return attention.out_proj(outputs.transpose(1, 2).flatten(start_dim=2))


def add_projected_image_to_token(
    attention: Attention,
    queries: Float[Tensor, "_ h n c"],
    keys: Float[Tensor, "b t d"],
    values: Float[Tensor, "b t d"],
    residual: Float[Tensor, "_ n d"],
) -> Float[Tensor, "b n d"]:
    """Return ``residual`` plus the attention from locations to tokens, whose queries are projected already."""
    projected = attention.split_heads(attention.k_proj(keys)) * attention.head_dim**-0.5
    return _add_attended(attention, projected @ queries.transpose(2, 3), values, residual)


def _add_attended(
    attention: Attention, logits: Float[Tensor, "b h t n"], values: Float[Tensor, "b t d"], residual: Tensor
) -> Float[Tensor, "b n d"]:
    """Return ``residual`` plus the attention's output; values are projected to the output before they are averaged."""
    weights = logits.softmax(dim=2).flatten(1, 2).transpose(1, 2)
    projected = attention.split_heads(attention.v_proj(values))
    outputs = projected @ torch.unflatten(attention.out_proj.weight, 1, (attention.num_heads, -1)).permute(1, 2, 0)
    residual = (residual + attention.out_proj.bias).expand(values.shape[0], -1, -1)
    return torch.baddbmm(residual, weights, outputs.flatten(1, 2))
