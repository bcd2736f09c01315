"""DETR: a transformer predicts the set of objects directly, each object matched to one query, without anchors and NMS.

Shape shorthand: L layers, B images, Q queries, K = h x w locations of the feature map, S class logits (the last is "no
object"), D the embedding dimension.

Paper: "End-to-End Object Detection with Transformers" (Carion et al., ECCV 2020, arXiv:2005.12872), section 3 and appendix
A. Official code: github.com/facebookresearch/detr (Apache-2.0), whose defaults are kept and whose weights load.

As in the official code and unlike the paper: the class cost is minus the probability, without a logarithm; "no object" has
the weight 0.1 in the cross-entropy, which is divided by the sum of the weights. Departures: unmatched queries whose boxes
are inside a crowd have no class loss; losses are divided by the number of objects of this process, not of all processes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from otus.detection.set_prediction.set_detector import SetDetector, SetOutputs, to_attention_mask, valid_locations
from otus.errors import ShapeError
from otus.parts.backbones import efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch, Target
from otus.parts.heads.class_indices import class_index_tables, class_indices_of
from otus.parts.inference_mode import inference_mode
from otus.parts.postprocess import Postprocess
from otus.parts.transformer.attention import Attention, Float32Linear, feed_forward, mlp
from otus.parts.transformer.encoder import TransformerEncoderLayer
from otus.parts.transformer.positional_encodings import sine_positional_encoding
from otus.parts.transformer.set_matching import (
    GIOU_WEIGHT,
    L1_WEIGHT,
    HungarianMatcher,
    Match,
    box_losses,
    inside_crowd,
    normalize_boxes,
)
from otus.structures import Categories

CLASS_WEIGHT = 1.0
NO_OBJECT_WEIGHT = 0.1


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention to the encoded feature map, a feed-forward network."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads, dropout=dropout)
        self.cross_attn = Attention(embed_dim, num_heads, dropout=dropout)
        self.feed_forward = feed_forward(embed_dim, ffn_dim, dropout=dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def self_attention(self, x: Tensor, queries: Tensor) -> Float[Tensor, "b q d"]:
        """Compute the self-attention block, the first of the layer's three."""
        with_pos = x + queries
        return self.norm1(x + self.dropout(self.self_attn(with_pos, with_pos, x)))

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        queries: Float[Tensor, "b q d"],
        memory: Float[Tensor, "b k d"],
        memory_with_pos: Float[Tensor, "b k d"],
        attention_mask: Bool[Tensor, "b 1 k"] | None,
    ) -> Float[Tensor, "b q d"]:
        """Compute the layer; ``queries`` are learned embeddings, added to queries and keys like positional encodings."""
        x = self.self_attention(x, queries)
        attended = self.cross_attn(x + queries, memory_with_pos, memory, attention_mask=attention_mask)
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class DETRHead(nn.Module):
    """Transformer over a backbone's coarsest feature map; each query predicts class logits and a box.

    Parameters
    ----------
    in_channels
        Channels of that feature map.
    class_indices
        Index of each label among the class logits; a further logit, the last, is "no object".
    embed_dim, num_heads, ffn_dim, num_encoder_layers, num_decoder_layers, num_queries, dropout
        Sizes of the transformer (default: the paper's).
    matcher
        Matches queries to objects.
    num_classes
        Number of class logits without "no object" (default: the highest class index + 1).

    Raises
    ------
    ShapeError
        If ``num_classes`` is not above the highest class index.
    """

    def __init__(
        self,
        in_channels: int,
        class_indices: Sequence[int],
        *,
        embed_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        num_queries: int = 100,
        dropout: float = 0.1,
        matcher: HungarianMatcher = HungarianMatcher(CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT),
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.input_proj = nn.Conv2d(in_channels, embed_dim, 1)
        self.encoder = nn.ModuleList(
            TransformerEncoderLayer(embed_dim, num_heads, ffn_dim, dropout=dropout) for _ in range(num_encoder_layers)
        )
        self.query_embed = nn.Embedding(num_queries, embed_dim)
        self.decoder = nn.ModuleList(
            DecoderLayer(embed_dim, num_heads, ffn_dim, dropout=dropout) for _ in range(num_decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(embed_dim)
        label_of_index, index_of_label = class_index_tables(class_indices, background=False)
        self.no_object = len(label_of_index) if num_classes is None else num_classes
        if self.no_object < len(label_of_index):
            raise ShapeError(f"num_classes: expected at least {len(label_of_index)}, got {num_classes}")
        self.class_embed = Float32Linear(embed_dim, self.no_object + 1)
        self.bbox_embed = mlp(embed_dim, embed_dim, embed_dim, 4, layer=Float32Linear)
        self.index_of_label: Tensor
        self.register_buffer("index_of_label", index_of_label, persistent=False)
        self.matcher = matcher

    @property
    def num_queries(self) -> int:
        """Q, the maximum number of objects that can be detected in an image."""
        return self.query_embed.num_embeddings

    def forward_train(
        self,
        maps: list[Tensor],
        batch: Batch,
        targets: Sequence[Target] | None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[SetOutputs, dict[str, Tensor]]:
        """Return the outputs of all layers and, given targets, the losses ``class``, ``box``, ``giou`` and ``auxiliary``."""
        outputs = self(maps[-1], valid_locations(batch, (maps[-1].shape[-2], maps[-1].shape[-1])))
        return outputs, {} if targets is None else self.losses(outputs, targets, batch.sizes_hw)

    def forward(self, x: Float[Tensor, "b c h w"], inside: Bool[Tensor, "b h w"]) -> SetOutputs:
        """Predict from a feature map; ``inside`` is False in the padding."""
        pos_embed = sine_positional_encoding(inside, self.input_proj.out_channels).flatten(2).transpose(1, 2)
        attention_mask = to_attention_mask(inside)
        memory = self.input_proj(x).flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory = layer(memory, pos_embed, attention_mask)
        memory_with_pos = memory + pos_embed
        queries = self.query_embed.weight.expand(x.shape[0], -1, -1)
        y, layer_outputs, last_input = torch.zeros_like(queries), [], queries
        for layer in self.decoder:
            last_input, y = y, layer(y, queries, memory, memory_with_pos, attention_mask)
            layer_outputs.append(self.decoder_norm(y))
        features = torch.stack(layer_outputs)

        def attention() -> Float[Tensor, "b q h w"]:
            decoder_layer: DecoderLayer = self.decoder[-1]  # type: ignore[assignment]
            with inference_mode(decoder_layer) as last_layer:
                attention_queries = last_layer.self_attention(last_input, queries) + queries
                weights = last_layer.cross_attn.weights(
                    attention_queries, memory_with_pos, attention_mask=attention_mask
                )
            return torch.unflatten(weights.mean(dim=1), 2, x.shape[-2:])

        return SetOutputs(
            logits=self.class_embed(features),
            boxes=self.bbox_embed(features).sigmoid(),
            features=layer_outputs[-1],
            memory=memory.transpose(1, 2).unflatten(2, x.shape[-2:]),
            attention=attention,
        )

    def losses(
        self, outputs: SetOutputs, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the weighted losses of the last layer, and ``auxiliary``, the sum of those of all layers before it."""
        per_layer = []
        for logits, boxes in zip(outputs.logits, outputs.boxes, strict=True):
            matches = self._match(logits, boxes, targets, sizes_hw)
            l1, giou = box_losses(boxes, matches, targets, sizes_hw)
            per_layer.append(
                {
                    "class": CLASS_WEIGHT * self._class_loss(logits, boxes, matches, targets, sizes_hw),
                    "box": L1_WEIGHT * l1,
                    "giou": GIOU_WEIGHT * giou,
                }
            )
        auxiliary = [loss for layer in per_layer[:-1] for loss in layer.values()]
        return per_layer[-1] | ({"auxiliary": torch.stack(auxiliary).sum()} if auxiliary else {})

    def match(self, outputs: SetOutputs, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]) -> list[Match]:
        """Match the queries of the last layer to objects."""
        return self._match(outputs.logits[-1], outputs.boxes[-1], targets, sizes_hw)

    def candidates(self, logits: Float[Tensor, "q s"], *, postprocess: Postprocess) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, label and score of one image's candidates: the highest-scoring category of each query, if it is
        above its threshold."""
        score, label = logits.softmax(dim=1)[:, self.index_of_label].max(dim=1)
        thresholds = postprocess.thresholds(torch.arange(len(self.index_of_label), device=label.device))
        query = torch.where(score > thresholds[label])[0]
        return query, label[query], score[query]

    def _match(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[Match]:
        matches = []
        for probabilities, image_boxes, target, size_hw in zip(
            logits.softmax(dim=2), boxes, targets, sizes_hw, strict=True
        ):
            class_cost = -probabilities[:, self.index_of_label[target.labels]]
            matches.append(self.matcher(class_cost, image_boxes, normalize_boxes(target.boxes, size_hw)))
        return matches

    def _class_loss(
        self,
        logits: Float[Tensor, "b q s"],
        boxes: Float[Tensor, "b q 4"],
        matches: Sequence[Match],
        targets: Sequence[Target],
        sizes_hw: Sequence[tuple[int, int]],
    ) -> Float[Tensor, ""]:
        class_indices = torch.full(logits.shape[:2], self.no_object, device=logits.device)
        weights = torch.full(logits.shape[:2], NO_OBJECT_WEIGHT, device=logits.device)
        for i, (match, target) in enumerate(zip(matches, targets, strict=True)):
            weights[i, inside_crowd(boxes[i], target, sizes_hw[i])] = 0.0
            class_indices[i, match.queries] = self.index_of_label[target.labels[match.objects]]
            weights[i, match.queries] = 1.0
        cross_entropy = F.cross_entropy(logits.transpose(1, 2), class_indices, reduction="none")
        return (cross_entropy * weights).sum() / weights.sum().clamp(min=NO_OBJECT_WEIGHT)


def detr_resnet50(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_queries: int = 100,
    freezing: Freezing = Freezing(),
) -> SetDetector:
    """Build the paper's DETR over ResNet-50.

    Parameters
    ----------
    categories
        Names of the labels.
    class_indices
        Index of each label among the class logits (default: 0, 1, 2 …). In the official weights, these are COCO's ids.
    num_queries
        Maximum number of objects that can be detected in an image.
    freezing
        Which weights of the backbone are frozen.
    """
    return _over_resnet("resnet50", categories, class_indices, num_queries, freezing)


def detr_resnet50_dc5(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_queries: int = 100,
    freezing: Freezing = Freezing(),
) -> SetDetector:
    """Build :func:`detr_resnet50` with the backbone's last stage dilated: a feature map of stride 16 instead of 32."""
    return _over_resnet("resnet50", categories, class_indices, num_queries, freezing, output_stride=16)


def detr_resnet101(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_queries: int = 100,
    freezing: Freezing = Freezing(),
) -> SetDetector:
    """Build DETR over ResNet-101; see :func:`detr_resnet50` for the parameters."""
    return _over_resnet("resnet101", categories, class_indices, num_queries, freezing)


def detr_resnet101_dc5(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_queries: int = 100,
    freezing: Freezing = Freezing(),
) -> SetDetector:
    """Build :func:`detr_resnet101` with the backbone's last stage dilated: a feature map of stride 16 instead of 32."""
    return _over_resnet("resnet101", categories, class_indices, num_queries, freezing, output_stride=16)


def detr_efficientnet_lite0(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_queries: int = 50,
    freezing: Freezing = Freezing(),
) -> SetDetector:
    """Build a small DETR over EfficientNet-Lite0, for images of about 320 pixels.

    It has 128 channels, three encoder and three decoder layers, and no dropout; see :func:`detr_resnet50` for the
    parameters.
    """
    backbone = efficientnet_lite0_backbone(levels=(5,), freezing=freezing)
    class_indices = class_indices_of(categories, class_indices, background=False)
    head = DETRHead(
        backbone.channels[-1],
        class_indices,
        embed_dim=128,
        ffn_dim=512,
        num_encoder_layers=3,
        num_decoder_layers=3,
        num_queries=num_queries,
        dropout=0.0,
    )
    return SetDetector(categories=categories, backbone=backbone, head=head)


def _over_resnet(
    name: str,
    categories: Categories,
    class_indices: Sequence[int] | None,
    num_queries: int,
    freezing: Freezing,
    *,
    output_stride: int = 32,
) -> SetDetector:
    level = output_stride.bit_length() - 1
    backbone = torchvision_backbone(name, levels=(level,), output_stride=output_stride, freezing=freezing)
    class_indices = class_indices_of(categories, class_indices, background=False)
    head = DETRHead(backbone.channels[-1], class_indices, num_queries=num_queries)
    return SetDetector(categories=categories, backbone=backbone, head=head)
