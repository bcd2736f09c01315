"""SAM's prompt encoder: points, boxes and text become tokens; a mask becomes a map that is added to the image's features.

Shape shorthand: B prompts, P points each, T tokens, D the embedding dimension, S x S the padded image, h x w its feature
map, m = 4 h the side of masks.

Paper: "Segment Anything" (Kirillov et al., ICCV 2023, arXiv:2304.02643), section 3 and appendix A. Positions are random
Fourier features, "Fourier Features Let Networks Learn High Frequency Functions" (Tancik et al., NeurIPS 2020,
arXiv:2006.10739). Official code: github.com/facebookresearch/segment-anything (Apache-2.0), whose parameter names these
are.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

from otus.errors import UsageError

NOT_A_POINT = -1
"""Label of padding: points that only fill up a batch in which prompts have different numbers of points."""
TOKEN_STD = 0.2
"""Standard deviation of learned tokens at the start of training: less than that of positions, which are added to them."""
TOP_LEFT, BOTTOM_RIGHT = 2, 3
"""Labels of the corners of a box, given as points; background is 0, and the object is 1."""


class PromptBatch(NamedTuple):
    """B prompts of the same kind, in pixels of the padded image.

    Parameters
    ----------
    points, labels
        (B, P, 2) x, y and (B, P) labels: 1 for the object, 0 for background, 2 and 3 for corners of a box, -1 for padding.
    boxes
        (B, 4) xyxy.
    masks
        (B, 1, m, m) logits of a previous prediction.
    text
        (B, K, E) text embeddings, for models that were trained with text.
    """

    points: Float[Tensor, "b p 2"] | None = None
    labels: Int[Tensor, "b p"] | None = None
    boxes: Float[Tensor, "b 4"] | None = None
    masks: Float[Tensor, "b 1 m m"] | None = None
    text: Float[Tensor, "b k e"] | None = None

    def __len__(self) -> int:
        return next((tensor.shape[0] for tensor in self if tensor is not None), 1)

    def split(self, size: int) -> list["PromptBatch"]:
        """Return the prompts in batches of at most ``size``."""
        starts = range(0, len(self), size)
        return [PromptBatch(*(None if tensor is None else tensor[i : i + size] for tensor in self)) for i in starts]

    def as_points(self) -> tuple[Float[Tensor, "b p 2"], Int[Tensor, "b p"]]:
        """Return points and boxes as points and labels: two corners for a box, a padding point if there is no box."""
        points, labels = [], []
        if self.points is not None and self.labels is not None:
            points.append(self.points)
            labels.append(self.labels)
            if self.boxes is None:
                points.append(self.points.new_zeros(len(self), 1, 2))
                labels.append(self.labels.new_full((len(self), 1), NOT_A_POINT))
        if self.boxes is not None:
            points.append(torch.unflatten(self.boxes, 1, (2, 2)))
            labels.append(torch.tensor([TOP_LEFT, BOTTOM_RIGHT], device=self.boxes.device).expand(len(self), -1))
        if not points:
            return torch.zeros(len(self), 0, 2), torch.zeros(len(self), 0, dtype=torch.long)
        return torch.cat(points, dim=1), torch.cat(labels, dim=1)


class FourierPositions(nn.Module):
    """Positional encodings of points in [0, 1]: sines and cosines of random projections (random Fourier features)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, embed_dim // 2))

    def forward(self, points: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n d"]:
        """Encode x, y, given relative to the padded image."""
        angles = 2 * math.pi * ((2 * points - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Encode prompts as tokens and as a map that is added to the image's feature map.

    Parameters
    ----------
    embed_dim
        Embedding dimension D, the channels of the image's feature map.
    map_size
        Side h = w of that feature map. Mask prompts have 4 times its resolution.
    image_size
        Side S of the padded image, in whose pixels points and boxes are given.
    mask_channels
        Channels of the convolutions on a mask.
    text_dim
        Channels of text embeddings, which a linear layer projects to tokens (default: no text). Its weights are zero until
        they are trained with text.
    point_features
        Add the projected feature of the location that a point lies in to its token, as the visual sampler of SEEM (Zou et
        al., NeurIPS 2023, arXiv:2304.06718): with few images, attention is slow to learn to look there.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        map_size: int,
        image_size: int,
        mask_channels: int = 16,
        text_dim: int | None = None,
        point_features: bool = False,
    ) -> None:
        super().__init__()
        self.map_size = map_size
        self.image_size = image_size
        self.pe_layer = FourierPositions(embed_dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, embed_dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, embed_dim)
        for kind in (*self.point_embeddings, self.not_a_point_embed):
            nn.init.normal_(kind.weight, std=TOKEN_STD)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, 2, stride=2),
            LayerNorm2d(mask_channels // 4, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, 2, stride=2),
            LayerNorm2d(mask_channels, eps=1e-6),
            nn.GELU(),
            nn.Conv2d(mask_channels, embed_dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, embed_dim)
        self.point_projection = nn.Linear(embed_dim, embed_dim, bias=False) if point_features else None
        self.text_projection = None if text_dim is None else nn.Linear(text_dim, embed_dim)
        if self.text_projection is not None:
            nn.init.zeros_(self.text_projection.weight)
            nn.init.zeros_(self.text_projection.bias)

    @property
    def mask_size(self) -> int:
        """Side of mask prompts and of the decoder's masks."""
        return 4 * self.map_size

    @property
    def trained_with_text(self) -> bool:
        """Whether the weights were trained with text."""
        return self.text_projection is not None and bool(self.text_projection.weight.any())

    def forward(
        self,
        points: Float[Tensor, "b p 2"] | None = None,
        labels: Int[Tensor, "b p"] | None = None,
        boxes: Float[Tensor, "b 4"] | None = None,
        masks: Float[Tensor, "b 1 m m"] | None = None,
        text: Float[Tensor, "b k e"] | None = None,
        *,
        features: Float[Tensor, "c h w"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d _ _"]]:
        """Encode a batch of prompts of the same kind.

        Parameters
        ----------
        points, labels
            x, y in pixels of the padded image, and labels: 1 for the object, 0 for background, -1 for padding.
        boxes
            xyxy, in the same pixels.
        masks
            Logits of the previous prediction, at 4 times the resolution of the feature map.
        text
            Text embeddings of ``text_dim`` channels.
        features
            Feature map of the image, of which the first D channels are used; only with ``point_features``.

        Returns
        -------
        tokens
            Tokens of points, box corners and text; T = 0 if only a mask is given.
        dense
            Dense embedding to be added to the image's feature map: (B, D, h, w) for masks, (1, D, 1, 1) without masks.

        Raises
        ------
        UsageError
            If text is given to an encoder without ``text_dim``, or has other channels.
        """
        prompts = PromptBatch(points, labels, boxes, masks, text)
        tokens = [self.no_mask_embed.weight.new_zeros(len(prompts), 0, self._embed_dim)]
        if points is not None or boxes is not None:
            tokens.append(self.embed_points(*prompts.as_points(), features))
        if text is not None:
            tokens.append(self._embed_text(text))
        if masks is not None:
            return torch.cat(tokens, dim=1), self.mask_downscaling(masks)
        return torch.cat(tokens, dim=1), self.no_mask_embed.weight[:, :, None, None]

    def map_encodings(self) -> Float[Tensor, "n d"]:
        """Return the positional encodings of the feature map's locations, row by row."""
        weight = self.pe_layer.positional_encoding_gaussian_matrix
        centres = (torch.arange(self.map_size, device=weight.device, dtype=weight.dtype) + 0.5) / self.map_size
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([x, y], dim=-1).flatten(0, 1))

    def embed_points(
        self, points: Float[Tensor, "b p 2"], labels: Int[Tensor, "b p"], features: Float[Tensor, "c h w"] | None = None
    ) -> Float[Tensor, "b p d"]:
        """Encode points as tokens; labels 2 and 3 are the corners of a box. ``features`` as in :meth:`forward`."""
        kinds = torch.cat([kind.weight for kind in self.point_embeddings])  # type: ignore[misc]
        relative = (points + 0.5) / self.image_size  # + 0.5: the centre of the pixel
        embedded = self.pe_layer(relative) + kinds[labels.clamp(min=0)]
        if self.point_projection is not None and features is not None:
            columns, rows = (relative * self.map_size).long().clamp(0, self.map_size - 1).unbind(-1)
            locations = features[: self._embed_dim].flatten(1).T[rows * self.map_size + columns]
            is_point = (labels >= 0) & (labels < TOP_LEFT)
            embedded = embedded + is_point[..., None] * self.point_projection(locations)
        return torch.where((labels == NOT_A_POINT)[..., None], self.not_a_point_embed.weight[0], embedded)

    def _embed_text(self, text: Float[Tensor, "b k e"]) -> Float[Tensor, "b k d"]:
        if self.text_projection is None:
            raise UsageError("text: the model was built without text_dim; give the channels of the text embeddings")
        if text.shape[2] != self.text_projection.in_features:
            expected = self.text_projection.in_features
            raise UsageError(f"text: expected embeddings of {expected} channels, as in training, got {text.shape[2]}")
        return self.text_projection(text)

    @property
    def _embed_dim(self) -> int:
        return self.no_mask_embed.embedding_dim
