"""An improved DETR that can be trained on few images: queries are selected from dense predictions, then refined.

Shape shorthand: L layers, B images, Q queries, T locations of all feature maps, C categories, D the embedding
dimension.

It is not the model of a single paper, and no published weights fit it; its ideas and their sources are listed below.

DETR converges slowly because its queries attend everywhere and each object is the target of only one of them ("2k is too
small", facebookresearch/detr issue 125). The remedies used here:

- several feature maps, and attention to a few points around a box that each layer refines: "Deformable DETR" (Zhu et al.,
  ICLR 2021, arXiv:2010.04159), sections 4.1 and 4.2, in its two-stage form: the boxes of the top-scoring locations are the
  initial reference boxes;
- self-attention on the coarsest feature map only, followed by a pyramid: RT-DETR (Zhao et al., CVPR 2024,
  arXiv:2304.08069), section 4.2; also from it: the target score of a query is the IoU of its box (section 4.3);
- each object is the target of several locations, the one-to-many supervision of Co-DETR (Zong et al., ICCV 2023,
  arXiv:2211.12860): :mod:`otus.parts.boxes.task_aligned`;
- then several top-scoring locations predict the same object, and for nearly equal queries it takes long to learn which is
  the positive: queries are selected by a class-agnostic NMS, so that their boxes differ (DDQ, Zhang et al., CVPR 2023,
  arXiv:2303.12776, section 3.2);
- denoising queries: DN-DETR (Li et al., CVPR 2022) and DINO (Zhang et al., ICLR 2023),
  :mod:`otus.parts.transformer.denoising`.

As in DETR, the prediction is a set: each object is matched to one query in each layer, without NMS on the outputs.
Departures from all of these: the pyramid is that of :mod:`otus.parts.backbones.feature_pyramid`, and the numbers of
channels suit images of 320 pixels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, box_convert

from otus.detection.set_prediction.set_detector import SetDetector, SetOutputs, to_attention_mask, valid_locations
from otus.parts.backbones import efficientnet_lite0_backbone
from otus.parts.backbones.feature_pyramid import FeaturePyramid
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch, Target
from otus.parts.boxes.matching import paired_iou
from otus.parts.boxes.nms import batched_nms
from otus.parts.boxes.task_aligned import TaskAlignedAssigner
from otus.parts.inference_mode import inference_mode
from otus.parts.losses import varifocal_loss, zero_loss
from otus.parts.postprocess import Postprocess
from otus.parts.ranking import stable_topk
from otus.parts.transformer.attention import Attention, Float32Linear, feed_forward, mlp
from otus.parts.transformer.deformable_attention import DeformableAttention
from otus.parts.transformer.denoising import Denoising, DenoisingQueries
from otus.parts.transformer.encoder import TransformerEncoderLayer
from otus.parts.transformer.positional_encodings import sine_embedding, sine_positional_encoding
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

_PRIOR_LOGIT = -4.6
"""Initial class logit: a probability of 0.01."""
_INITIAL_BOX_STRIDES = 4.0
"""Side of the initial box of a location, in strides."""


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention around their boxes, a feed-forward network."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads)
        self.cross_attn = DeformableAttention(embed_dim, num_heads, num_levels=num_levels, num_points=num_points)
        self.feed_forward = feed_forward(embed_dim, ffn_dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(embed_dim) for _ in range(3))

    def self_attention(self, x: Tensor, pos_embed: Tensor, attention_mask: Tensor | None) -> Float[Tensor, "b q d"]:
        """Compute the self-attention block, the first of the layer's three."""
        with_pos = x + pos_embed
        return self.norm1(x + self.self_attn(with_pos, with_pos, x, attention_mask=attention_mask))

    def forward(
        self,
        x: Float[Tensor, "b q d"],
        pos_embed: Float[Tensor, "b q d"],
        boxes: Float[Tensor, "b q 4"],
        maps: Sequence[Tensor],
        extent: Float[Tensor, "b 2"],
        attention_mask: Bool[Tensor, "q q"] | None,
    ) -> Float[Tensor, "b q d"]:
        """Compute the layer.

        Parameters
        ----------
        x
            Query features.
        pos_embed
            Positional encodings of ``boxes``.
        boxes
            Reference boxes cxcywh, normalised by each image's size.
        maps, extent
            See :class:`~otus.parts.transformer.deformable_attention.DeformableAttention`.
        attention_mask
            Which query may attend to which; separates groups of denoising queries.
        """
        x = self.self_attention(x, pos_embed, attention_mask)
        x = self.norm2(x + self.cross_attn(x + pos_embed, boxes, maps, extent))
        return self.norm3(x + self.feed_forward(x))


class QuerySelectionHead(nn.Module):
    """Predict a set of objects from several feature maps, by query selection and a decoder.

    Parameters
    ----------
    channels, strides
        Channels and strides of the backbone's feature maps, fine to coarse; the pyramid adds one.
    category_count
        C.
    embed_dim, num_heads, num_points, ffn_dim, num_layers, num_queries
        Sizes of the transformer; the ``num_queries`` top-scoring locations become queries.
    query_nms_iou
        A location whose box has a higher IoU than this with a higher-scoring one becomes a query only if there are too
        few others.
    matcher, assigner, denoising
        Matching of queries, assignment of locations, and denoising queries.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        category_count: int,
        *,
        embed_dim: int = 128,
        num_heads: int = 4,
        num_points: int = 4,
        ffn_dim: int = 512,
        num_layers: int = 3,
        num_queries: int = 100,
        query_nms_iou: float = 0.6,
        matcher: HungarianMatcher = HungarianMatcher(2.0, L1_WEIGHT, GIOU_WEIGHT),
        assigner: TaskAlignedAssigner = TaskAlignedAssigner(),
        denoising: Denoising = Denoising(),
    ) -> None:
        super().__init__()
        self.num_queries, self.category_count, self.query_nms_iou = num_queries, category_count, query_nms_iou
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, embed_dim, 1), nn.GroupNorm(8, embed_dim)) for inputs in channels
        )
        self.encoder = TransformerEncoderLayer(embed_dim, num_heads, ffn_dim)
        self.pyramid = FeaturePyramid((embed_dim,) * len(channels), embed_dim)
        self.strides = self.pyramid.strides_of(strides)
        self.dense_conv = Conv2dNormActivation(embed_dim, embed_dim, 3, norm_layer=lambda count: nn.GroupNorm(8, count))
        self.dense_class_embed, self.dense_bbox_embed = _prediction_layers(embed_dim, category_count)
        self.content_proj = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim))
        self.label_embed = nn.Embedding(category_count, embed_dim)
        self.query_pos_embed = mlp(2 * embed_dim, embed_dim, embed_dim)
        self.decoder = nn.ModuleList(
            DeformableDecoderLayer(embed_dim, num_heads, ffn_dim, num_levels=len(self.strides), num_points=num_points)
            for _ in range(num_layers)
        )
        layers = [_prediction_layers(embed_dim, category_count) for _ in range(num_layers)]
        self.class_embed = nn.ModuleList(class_layer for class_layer, _ in layers)
        self.bbox_embed = nn.ModuleList(bbox_layer for _, bbox_layer in layers)
        self.matcher, self.assigner, self.denoising = matcher, assigner, denoising

    def forward_train(
        self,
        maps: list[Tensor],
        batch: Batch,
        targets: Sequence[Target] | None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[SetOutputs, dict[str, Tensor]]:
        """Return the outputs of all layers and, given targets, the losses by name: ``class``, ``box`` and ``giou`` of the
        last layer, ``auxiliary`` of the layers before, ``steps`` of the dense predictions, and ``denoising``."""
        maps, inside = self._encode(maps, batch)
        dense = _DensePredictions(self, maps, inside, batch)
        index = dense.top_queries(self.num_queries, nms_iou=self.query_nms_iou)[..., None]
        content = self.content_proj(dense.features.gather(1, index.expand(-1, -1, dense.features.shape[2])).detach())
        boxes = dense.boxes.gather(1, index.expand(-1, -1, 4)).detach()
        denoising_queries = None
        if targets is not None:
            denoising_queries = self.denoising(
                targets, batch.sizes_hw, category_count=self.category_count, generator=generator
            )
        outputs, denoising_outputs = self._decode(content, boxes, maps, batch, denoising_queries)
        if targets is None:
            return outputs, {}
        sizes_hw = batch.sizes_hw
        losses = {"steps": dense.loss(targets, sizes_hw)}
        per_layer = []
        for logits, predicted in zip(outputs.logits, outputs.boxes, strict=True):
            matches = self._match(logits, predicted, targets, sizes_hw)
            per_layer.append(set_criterion(logits, predicted, matches, targets, sizes_hw))
        auxiliary = [loss for layer in per_layer[:-1] for loss in layer.values()]
        losses |= per_layer[-1] | ({"auxiliary": torch.stack(auxiliary).sum()} if auxiliary else {})
        losses["denoising"] = zero_loss(self.label_embed)
        if denoising_queries is not None and denoising_outputs is not None:
            groups = int(denoising_queries.group.max()) + 1
            parts = [
                loss / groups
                for logits, predicted in zip(*denoising_outputs, strict=True)
                for loss in set_criterion(
                    logits, predicted, denoising_queries.matches, targets, sizes_hw, valid=denoising_queries.valid
                ).values()
            ]
            losses["denoising"] = torch.stack(parts).sum()
        return outputs, losses

    def match(self, outputs: SetOutputs, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]) -> list[Match]:
        """Match the queries of the last layer to objects."""
        return self._match(outputs.logits[-1], outputs.boxes[-1], targets, sizes_hw)

    def candidates(self, logits: Float[Tensor, "q c"], *, postprocess: Postprocess) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, label and score of one image's candidates: all pairs of query and category above the category's
        threshold, by independent sigmoids."""
        scores = logits.sigmoid()
        thresholds = postprocess.thresholds(torch.arange(scores.shape[1], device=scores.device))
        query, label = torch.where(scores > thresholds)
        return query, label, scores[query, label]

    def _encode(self, maps: list[Tensor], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Return the levels of the pyramid, 0 in the padding, and which of their locations are inside each image."""
        projected = [layer(x) for layer, x in zip(self.input_proj, maps, strict=True)]
        coarse = projected[-1]
        inside = valid_locations(batch, (coarse.shape[-2], coarse.shape[-1]))
        pos_embed = sine_positional_encoding(inside, coarse.shape[1]).flatten(2).transpose(1, 2)
        attention_mask = to_attention_mask(inside)
        encoded = self.encoder(coarse.flatten(2).transpose(1, 2), pos_embed, attention_mask)
        projected[-1] = encoded.transpose(1, 2).unflatten(2, coarse.shape[-2:])
        pyramid = self.pyramid(projected)
        all_inside = [valid_locations(batch, (x.shape[-2], x.shape[-1])) for x in pyramid]
        return [x * inside[:, None] for x, inside in zip(pyramid, all_inside, strict=True)], all_inside

    def _decode(
        self,
        content: Tensor,
        boxes: Tensor,
        maps: list[Tensor],
        batch: Batch,
        denoising_queries: DenoisingQueries | None,
    ) -> tuple[SetOutputs, tuple[Tensor, Tensor] | None]:
        """Return the outputs of the queries, and logits and boxes of the denoising queries, which come first inside."""
        first = 0 if denoising_queries is None else denoising_queries.labels.shape[1]
        attention_mask = None
        if denoising_queries is not None:
            attention_mask = denoising_queries.attention_mask(content.shape[1])
            content = torch.cat([self.label_embed(denoising_queries.labels), content], dim=1)
            boxes = torch.cat([denoising_queries.boxes, boxes], dim=1)
        extent = _extent(batch)
        x, all_logits, all_boxes = content, [], []
        for layer, class_layer, bbox_layer in zip(self.decoder, self.class_embed, self.bbox_embed, strict=True):
            pos_embed = self.query_pos_embed(sine_embedding(boxes, content.shape[2] // 2))
            last_input, last_boxes = x, boxes
            x = layer(x, pos_embed, boxes, maps, extent, attention_mask)
            predicted = (_logit(boxes) + bbox_layer(x)).sigmoid()
            all_logits.append(class_layer(x))
            all_boxes.append(predicted)
            boxes = predicted.detach()
        logits, predicted = torch.stack(all_logits), torch.stack(all_boxes)

        def attention() -> Float[Tensor, "b q h w"]:
            decoder_layer: DeformableDecoderLayer = self.decoder[-1]  # type: ignore[assignment]
            with inference_mode(decoder_layer) as last_layer:
                attention_queries = last_layer.self_attention(last_input, pos_embed, attention_mask) + pos_embed
                points, weights = last_layer.cross_attn.sampling_locations(attention_queries, last_boxes)
            return _attention_map(points * extent[:, None, None, None, None], weights, maps[0])[:, first:]

        outputs = SetOutputs(logits[:, :, first:], predicted[:, :, first:], x[:, first:], maps[-1], attention)
        return outputs, None if denoising_queries is None else (logits[:, :, :first], predicted[:, :, :first])

    def _match(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[Match]:
        matches = []
        for image_logits, image_boxes, target, size_hw in zip(logits, boxes, targets, sizes_hw, strict=True):
            class_cost = _focal_cost(image_logits)[:, target.labels]
            matches.append(self.matcher(class_cost, image_boxes, normalize_boxes(target.boxes, size_hw)))
        return matches


class _DensePredictions:
    """The predictions of all T locations of all feature maps: features, class logits, boxes, and their loss.

    ``centres`` (B, T, 2) of the locations and ``boxes`` (B, T, 4) are normalised by each image's size.
    """

    def __init__(self, head: QuerySelectionHead, maps: list[Tensor], inside: list[Tensor], batch: Batch) -> None:
        self.features = torch.cat([head.dense_conv(x).flatten(2).transpose(1, 2) for x in maps], dim=1)
        self.inside = torch.cat([map_inside.flatten(1) for map_inside in inside], dim=1)
        self.assigner = head.assigner
        extent, centres, sizes = _extent(batch), [], []
        for x, stride in zip(maps, head.strides, strict=True):
            rows, columns = (torch.arange(side, device=x.device) + 0.5 for side in x.shape[-2:])
            grid = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], dim=-1)
            centres.append(grid.flatten(0, 1) / grid.new_tensor([x.shape[-1], x.shape[-2]]))
            padded_wh = grid.new_tensor([batch.padded_hw[1], batch.padded_hw[0]])
            sizes.append((_INITIAL_BOX_STRIDES * stride / padded_wh).expand(len(centres[-1]), -1))
        self.centres = torch.cat(centres) / extent[:, None]
        initial_boxes = torch.cat([self.centres, torch.cat(sizes) / extent[:, None]], dim=2)
        self.logits = head.dense_class_embed(self.features)
        self.boxes = (_logit(initial_boxes) + head.dense_bbox_embed(self.features)).sigmoid()

    def top_queries(self, count: int, *, nms_iou: float) -> Int[Tensor, "b q"]:
        """Return the indices of ``count`` locations per image: first those kept by NMS, then others, by decreasing score."""
        chosen = []
        for logits, boxes, inside in zip(self.logits.amax(dim=2), self.boxes, self.inside, strict=True):
            score = (logits.float().sigmoid() * inside).detach()
            corners = box_convert(boxes, "cxcywh", "xyxy")
            one_group = torch.zeros_like(score, dtype=torch.int64)  # class-agnostic
            kept = batched_nms(corners, score, one_group, iou_threshold=nms_iou, limit=count)
            priority = score.clone()
            priority[kept] += inside[kept]
            chosen.append(stable_topk(priority[None], count)[0])
        return torch.stack(chosen)

    def loss(self, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]) -> Float[Tensor, ""]:
        """Compute the class loss, divided by the sum of target scores, plus the box losses, averaged over positives."""
        target_scores, has_loss = torch.zeros_like(self.logits), self.inside.clone()
        matches, positive_scores = [], []
        for i, (target, size_hw) in enumerate(zip(targets, sizes_hw, strict=True)):
            has_loss[i] &= ~inside_crowd(self.boxes[i], target, size_hw)
            scores = self.logits[i].sigmoid() * self.inside[i, :, None]
            location, objects, target_score = self.assigner(
                scores, self.boxes[i], self.centres[i], normalize_boxes(target.boxes, size_hw), target.labels
            )
            target_scores[i, location, target.labels[objects]] = target_score
            has_loss[i, location] = True
            matches.append(Match(location, objects))
            positive_scores.append(target_score)
        class_loss = (varifocal_loss(self.logits, target_scores) * has_loss[..., None]).sum()
        class_loss = class_loss / max(1.0, float(sum(scores.sum() for scores in positive_scores)))
        l1, giou = box_losses(self.boxes, matches, targets, sizes_hw)
        num_objects = max(1, sum(len(target.boxes) for target in targets))  # which box_losses divides by
        num_positives = max(1, sum(len(scores) for scores in positive_scores))
        return class_loss + (L1_WEIGHT * l1 + GIOU_WEIGHT * giou) * num_objects / num_positives


def set_criterion(
    logits: Float[Tensor, "b q c"],
    boxes: Float[Tensor, "b q 4"],
    matches: Sequence[Match],
    targets: Sequence[Target],
    sizes_hw: Sequence[tuple[int, int]],
    *,
    valid: Bool[Tensor, "b q"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Compute the weighted losses of a decoder layer, divided by the number of objects.

    The target score of a matched query is the IoU of its box. Queries where ``valid`` is False have no class loss.
    """
    target_scores = torch.zeros_like(logits)
    has_loss = torch.ones_like(logits[..., 0], dtype=torch.bool) if valid is None else valid.clone()
    for i, (match, target, size_hw) in enumerate(zip(matches, targets, sizes_hw, strict=True)):
        has_loss[i] &= ~inside_crowd(boxes[i], target, size_hw)
        has_loss[i, match.queries] = True
        predicted = box_convert(boxes[i, match.queries].detach(), "cxcywh", "xyxy")
        objects = box_convert(normalize_boxes(target.boxes, size_hw)[match.objects], "cxcywh", "xyxy")
        target_scores[i, match.queries, target.labels[match.objects]] = paired_iou(predicted, objects).clamp(min=1e-3)
    count = max(1, sum(len(target.boxes) for target in targets))
    l1, giou = box_losses(boxes, matches, targets, sizes_hw)
    class_loss = (varifocal_loss(logits, target_scores) * has_loss[..., None]).sum() / count
    return {"class": class_loss, "box": L1_WEIGHT * l1, "giou": GIOU_WEIGHT * giou}


def query_selection_detr_efficientnet_lite0(
    categories: Categories, *, num_queries: int = 100, freezing: Freezing = Freezing()
) -> SetDetector:
    """Build the detector over EfficientNet-Lite0, for images of about 320 pixels.

    It has feature maps of strides 8 to 64, 128 channels and three decoder layers.

    Parameters
    ----------
    categories
        Names of the labels.
    num_queries
        Maximum number of objects that can be detected in an image.
    freezing
        Which weights of the backbone are frozen.
    """
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing)
    head = QuerySelectionHead(backbone.channels, backbone.strides, len(categories), num_queries=num_queries)
    return SetDetector(categories=categories, backbone=backbone, head=head, size_divisor=32)


def _prediction_layers(embed_dim: int, category_count: int) -> tuple[Float32Linear, nn.Sequential]:
    """Build the layers for class logits, initially of low probability, and for box deltas, initially 0."""
    class_layer = Float32Linear(embed_dim, category_count)
    bbox_layer = mlp(embed_dim, embed_dim, embed_dim, 4, layer=Float32Linear)
    nn.init.constant_(class_layer.bias, _PRIOR_LOGIT)
    nn.init.zeros_(bbox_layer[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(bbox_layer[-1].bias)  # type: ignore[arg-type]
    return class_layer, bbox_layer


def _extent(batch: Batch) -> Float[Tensor, "b 2"]:
    """Return width and height of each image as fractions of the batch's."""
    sizes = torch.as_tensor(batch.sizes_hw, dtype=torch.float32, device=batch.images.device)
    return (sizes / sizes.new_tensor(batch.padded_hw)).flip(1)


def _logit(normalized: Tensor) -> Tensor:
    return torch.logit(normalized.clamp(1e-4, 1 - 1e-4))


def _focal_cost(logits: Float[Tensor, "q c"]) -> Float[Tensor, "q c"]:
    """Compute the class cost of each query and category: the focal cost of Deformable DETR."""
    p = logits.sigmoid()
    positive, negative = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log(), 0.75 * p**2 * -(1 - p + 1e-8).log()
    return positive - negative


def _attention_map(points: Tensor, weights: Tensor, feature_map: Tensor) -> Float[Tensor, "b q h w"]:
    """Sum the attention weights of sampling points at the location of a feature map that each point lies in.

    ``points`` (B, H, Q, V, P, 2) are normalised by the batch's size; the result is the mean over the H heads.
    """
    height, width = feature_map.shape[-2:]
    x, y = (points[..., 0] * width).floor().long(), (points[..., 1] * height).floor().long()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).transpose(1, 2).flatten(2)
    mean_weights = (weights * inside / weights.shape[1]).transpose(1, 2).flatten(2)
    attention = mean_weights.new_zeros(*index.shape[:2], height * width).scatter_add_(2, index, mean_weights)
    return torch.unflatten(attention, 2, (height, width))
