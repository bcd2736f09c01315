"""An improved DETR that learns from few images: dense maps propose the queries, deformable attention refines them.

Shape shorthand: L layers, B images, Q queries, T locations of all feature maps, C categories, D the embedding
dimension.

It is no single paper's model and reads nobody's weights; each idea and where it comes from is below.

DETR learns slowly because its queries attend everywhere and each object is the target of only one ("2k is too small",
facebookresearch/detr issue 125). Here every part of the answer has a short way to learn:

- several maps and attention to a few points around a box that each layer moves: "Deformable DETR" (Zhu et al., ICLR 2021,
  arXiv:2010.04159), sections 4.1 and 4.2, with its two stages: the top-scoring locations are the first reference boxes;
- self-attention on the coarsest map only, a pyramid below it: RT-DETR (Zhao et al., CVPR 2024, arXiv:2304.08069), section
  4.2; from it too that scores learn the IoU of their box (section 4.3);
- each object is the target of several locations, the one-to-many supervision of Co-DETR (Zong et al., ICCV 2023,
  arXiv:2211.12860): :mod:`otus.parts.boxes.task_aligned`;
- several top-scoring locations then show the same object, and queries that hardly differ take long to learn which of them
  is the positive: queries are made of locations that survive a class-agnostic NMS, whose boxes differ (DDQ, Zhang et
  al., CVPR 2023, arXiv:2303.12776, section 3.2);
- denoising queries: DN-DETR (Li et al., CVPR 2022) and DINO (Zhang et al., ICLR 2023),
  :mod:`otus.parts.transformer.denoising`.

As DETR it reports a set: each object is matched to one query in each layer, without NMS on its outputs. Departures
from all of these: the pyramid is that of :mod:`otus.parts.backbones.feature_pyramid`, widths are for images of 320
pixels. No official weights are read.
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

_RARE = -4.6
"""Logit of a prior probability of 0.01."""
_FIRST_STEPS = 4.0
"""Sides of the initial boxes of locations, in strides."""


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention around their boxes, a feed-forward network."""

    def __init__(self, embed_dim: int, num_heads: int, ffn_dim: int, *, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.self_attn = Attention(embed_dim, num_heads)
        self.cross_attn = DeformableAttention(embed_dim, num_heads, num_levels=num_levels, num_points=num_points)
        self.feed_forward = feed_forward(embed_dim, ffn_dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(embed_dim) for _ in range(3))

    def self_attention(self, x: Tensor, pos_embed: Tensor, attention_mask: Tensor | None) -> Float[Tensor, "b q d"]:
        """The first half of the layer."""
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
        """``sampling_locations`` encode ``boxes``; ``attention_mask`` keeps noisy queries apart."""
        x = self.self_attention(x, pos_embed, attention_mask)
        x = self.norm2(x + self.cross_attn(x + pos_embed, boxes, maps, extent))
        return self.norm3(x + self.feed_forward(x))


class QuerySelectionHead(nn.Module):
    """Query selection and decoder: from several feature maps to a set of predictions.

    Parameters
    ----------
    channels, strides
        Of the backbone's maps, fine to coarse; the pyramid adds one.
    category_count
        C.
    embed_dim, num_heads, num_points, ffn_dim, num_layers, num_queries
        Sizes of the transformer; the ``num_queries`` top-scoring locations become queries.
    query_nms_iou
        A location whose box has a higher IoU than this with a higher-scoring one becomes a query only where there
        are too few others.
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
        self.dense_class_embed, self.dense_bbox_embed = _answer_layers(embed_dim, category_count)
        self.content_proj = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.LayerNorm(embed_dim))
        self.label_embed = nn.Embedding(category_count, embed_dim)
        self.query_pos_embed = mlp(2 * embed_dim, embed_dim, embed_dim)
        self.decoder = nn.ModuleList(
            DeformableDecoderLayer(embed_dim, num_heads, ffn_dim, num_levels=len(self.strides), num_points=num_points)
            for _ in range(num_layers)
        )
        outputs = [_answer_layers(embed_dim, category_count) for _ in range(num_layers)]
        self.class_embed = nn.ModuleList(class_layer for class_layer, _ in outputs)
        self.bbox_embed = nn.ModuleList(boxes for _, boxes in outputs)
        self.matcher, self.assigner, self.denoising = matcher, assigner, denoising

    def forward_train(
        self,
        maps: list[Tensor],
        batch: Batch,
        targets: Sequence[Target] | None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[SetOutputs, dict[str, Tensor]]:
        """All layers' answers and, given targets, the losses ``class``, ``box``, ``giou`` of the last layer, ``auxiliary``
        of those before, ``dense`` of the maps and ``denoising``."""
        maps, inside = self._encode(maps, batch)
        dense = _DensePredictions(self, maps, inside, batch)
        index = dense.top_queries(self.num_queries, nms_iou=self.query_nms_iou)[..., None]
        content = self.content_proj(dense.features.gather(1, index.expand(-1, -1, dense.features.shape[2])).detach())
        boxes = dense.boxes.gather(1, index.expand(-1, -1, 4)).detach()
        noisy = None
        if targets is not None:
            noisy = self.denoising(targets, batch.sizes_hw, category_count=self.category_count, generator=generator)
        outputs, of_noisy = self._decode(content, boxes, maps, batch, noisy)
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
        if noisy is not None and of_noisy is not None:
            groups = int(noisy.group.max()) + 1
            parts = [
                loss / groups
                for logits, predicted in zip(*of_noisy, strict=True)
                for loss in set_criterion(
                    logits, predicted, noisy.matches, targets, sizes_hw, valid=noisy.valid
                ).values()
            ]
            losses["denoising"] = torch.stack(parts).sum()
        return outputs, losses

    def match(self, outputs: SetOutputs, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]) -> list[Match]:
        """Which query of the last layer is taught which object."""
        return self._match(outputs.logits[-1], outputs.boxes[-1], targets, sizes_hw)

    def candidates(self, logits: Float[Tensor, "q c"], *, postprocess: Postprocess) -> tuple[Tensor, Tensor, Tensor]:
        """Query, label and score of one image's answers above the threshold; each category is a yes or no of its own."""
        scores = logits.sigmoid()
        thresholds = postprocess.thresholds(torch.arange(scores.shape[1], device=scores.device))
        query, label = torch.where(scores > thresholds)
        return query, label, scores[query, label]

    def _encode(self, maps: list[Tensor], batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """The pyramid, 0 in the padding, and where the images are on its maps."""
        projected = [layer(x) for layer, x in zip(self.input_proj, maps, strict=True)]
        coarse = projected[-1]
        inside = valid_locations(batch, (coarse.shape[-2], coarse.shape[-1]))
        pos_embed = sine_positional_encoding(inside, coarse.shape[1]).flatten(2).transpose(1, 2)
        attention_mask = to_attention_mask(inside)
        mixed = self.encoder(coarse.flatten(2).transpose(1, 2), pos_embed, attention_mask)
        projected[-1] = mixed.transpose(1, 2).unflatten(2, coarse.shape[-2:])
        pyramid = self.pyramid(projected)
        places_inside = [valid_locations(batch, (x.shape[-2], x.shape[-1])) for x in pyramid]
        return [x * here[:, None] for x, here in zip(pyramid, places_inside, strict=True)], places_inside

    def _decode(
        self, content: Tensor, boxes: Tensor, maps: list[Tensor], batch: Batch, noisy: DenoisingQueries | None
    ) -> tuple[SetOutputs, tuple[Tensor, Tensor] | None]:
        first = 0 if noisy is None else noisy.labels.shape[1]
        attention_mask = None
        if noisy is not None:
            attention_mask = noisy.attention_mask(content.shape[1])
            content = torch.cat([self.label_embed(noisy.labels), content], dim=1)
            boxes = torch.cat([noisy.boxes, boxes], dim=1)
        extent = _extent(batch)
        x, all_logits, all_boxes = content, [], []
        for layer, class_layer, bbox_layer in zip(self.decoder, self.class_embed, self.bbox_embed, strict=True):
            pos_embed = self.query_pos_embed(sine_embedding(boxes, content.shape[2] // 2))
            before, of_layer = x, boxes
            x = layer(x, pos_embed, boxes, maps, extent, attention_mask)
            predicted = (_logit(boxes) + bbox_layer(x)).sigmoid()
            all_logits.append(class_layer(x))
            all_boxes.append(predicted)
            boxes = predicted.detach()
        logits, predicted = torch.stack(all_logits), torch.stack(all_boxes)

        def attention() -> Float[Tensor, "b q h w"]:
            decoder_layer: DeformableDecoderLayer = self.decoder[-1]  # type: ignore[assignment]
            with inference_mode(decoder_layer) as last:
                attention_queries = last.self_attention(before, pos_embed, attention_mask) + pos_embed
                where, weights = last.cross_attn.sampling_locations(attention_queries, of_layer)
            return _drawn(where * extent[:, None, None, None, None], weights, maps[0])[:, first:]

        outputs = SetOutputs(logits[:, :, first:], predicted[:, :, first:], x[:, first:], maps[-1], attention)
        return outputs, None if noisy is None else (logits[:, :, :first], predicted[:, :, :first])

    def _match(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[Match]:
        return [
            self.matcher(_focal_cost(predicted)[:, target.labels], of_image, normalize_boxes(target.boxes, size_hw))
            for predicted, of_image, target, size_hw in zip(logits, boxes, targets, sizes_hw, strict=True)
        ]


class _DensePredictions:
    """What all steps of all maps say: features, classes, boxes, and what they learn.

    T steps, map after map; ``centres`` (B, T, 2) and ``boxes`` (B, T, 4) in shares of each image.
    """

    def __init__(self, head: QuerySelectionHead, maps: list[Tensor], inside: list[Tensor], batch: Batch) -> None:
        self.features = torch.cat([head.dense_conv(x).flatten(2).transpose(1, 2) for x in maps], dim=1)
        self.inside = torch.cat([here.flatten(1) for here in inside], dim=1)
        self.assigner = head.assigner
        extent, centres, sizes = _extent(batch), [], []
        for x, stride in zip(maps, head.strides, strict=True):
            rows, columns = (torch.arange(side, device=x.device) + 0.5 for side in x.shape[-2:])
            grid = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], dim=-1)
            centres.append(grid.flatten(0, 1) / grid.new_tensor([x.shape[-1], x.shape[-2]]))
            side = grid.new_tensor([batch.padded_hw[1], batch.padded_hw[0]])
            sizes.append((_FIRST_STEPS * stride / side).expand(len(centres[-1]), -1))
        self.centres = torch.cat(centres) / extent[:, None]
        first = torch.cat([self.centres, torch.cat(sizes) / extent[:, None]], dim=2)
        self.logits = head.dense_class_embed(self.features)
        self.boxes = (_logit(first) + head.dense_bbox_embed(self.features)).sigmoid()

    def top_queries(self, count: int, *, nms_iou: float) -> Int[Tensor, "b q"]:
        """At most so many steps of each image: first those whose boxes differ, then the others, by falling score."""
        chosen = []
        for logits, boxes, inside in zip(self.logits.amax(dim=2), self.boxes, self.inside, strict=True):
            score = (logits.float().sigmoid() * inside).detach()
            corners = box_convert(boxes, "cxcywh", "xyxy")
            distinct = batched_nms(
                corners, score, torch.zeros_like(score, dtype=torch.int64), iou_threshold=nms_iou, limit=count
            )
            rank = score.clone()
            rank[distinct] += inside[distinct]
            chosen.append(stable_topk(rank[None], count)[0])
        return torch.stack(chosen)

    def loss(self, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]) -> Float[Tensor, ""]:
        """Of classes and boxes, all objects and steps together, divided by what all positives should score."""
        target_scores, learned = torch.zeros_like(self.logits), self.inside.clone()
        matches, qualities = [], []
        for i, (target, size_hw) in enumerate(zip(targets, sizes_hw, strict=True)):
            learned[i] &= ~inside_crowd(self.boxes[i], target, size_hw)
            scores = self.logits[i].sigmoid() * self.inside[i, :, None]
            location, objects, quality = self.assigner(
                scores, self.boxes[i], self.centres[i], normalize_boxes(target.boxes, size_hw), target.labels
            )
            target_scores[i, location, target.labels[objects]] = quality
            learned[i, location] = True
            matches.append(Match(location, objects))
            qualities.append(quality)
        count = max(1.0, float(sum(quality.sum() for quality in qualities)))
        l1, giou = box_losses(self.boxes, matches, targets, sizes_hw)
        objects_count = max(1, sum(len(target.boxes) for target in targets))
        positives = max(1, sum(len(quality) for quality in qualities))
        boxes = (L1_WEIGHT * l1 + GIOU_WEIGHT * giou) * objects_count / positives
        return (varifocal_loss(self.logits, target_scores) * learned[..., None]).sum() / count + boxes


def set_criterion(
    logits: Float[Tensor, "b q c"],
    boxes: Float[Tensor, "b q 4"],
    matches: Sequence[Match],
    targets: Sequence[Target],
    sizes_hw: Sequence[tuple[int, int]],
    *,
    valid: Bool[Tensor, "b q"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """The weighted losses of a layer, divided by the number of objects; matched queries learn the IoU of their box."""
    target_scores = torch.zeros_like(logits)
    learned = torch.ones_like(logits[..., 0], dtype=torch.bool) if valid is None else valid.clone()
    for i, (match, target, size_hw) in enumerate(zip(matches, targets, sizes_hw, strict=True)):
        learned[i] &= ~inside_crowd(boxes[i], target, size_hw)
        learned[i, match.queries] = True
        predicted = box_convert(boxes[i, match.queries].detach(), "cxcywh", "xyxy")
        objects = box_convert(normalize_boxes(target.boxes, size_hw)[match.objects], "cxcywh", "xyxy")
        target_scores[i, match.queries, target.labels[match.objects]] = paired_iou(predicted, objects).clamp(min=1e-3)
    count = max(1, sum(len(target.boxes) for target in targets))
    l1, giou = box_losses(boxes, matches, targets, sizes_hw)
    cross_entropy = (varifocal_loss(logits, target_scores) * learned[..., None]).sum() / count
    return {"class": cross_entropy, "box": L1_WEIGHT * l1, "giou": GIOU_WEIGHT * giou}


def query_selection_detr_efficientnet_lite0(
    categories: Categories, *, num_queries: int = 100, freezing: Freezing = Freezing()
) -> SetDetector:
    """A small one for images of about 320 pixels: EfficientNet-Lite0, maps of strides 8 to 64, 128 channels, three layers.

    ``freezing`` is of the backbone.
    """
    backbone = efficientnet_lite0_backbone(levels=(3, 4, 5), freezing=freezing)
    head = QuerySelectionHead(backbone.channels, backbone.strides, len(categories), num_queries=num_queries)
    return SetDetector(categories=categories, backbone=backbone, head=head, size_divisor=32)


def _answer_layers(width: int, category_count: int) -> tuple[Float32Linear, nn.Sequential]:
    """Class logits that say "nothing" at first, and moves of boxes that are none at first."""
    class_layer = Float32Linear(width, category_count)
    boxes = mlp(width, width, width, 4, layer=Float32Linear)
    nn.init.constant_(class_layer.bias, _RARE)
    nn.init.zeros_(boxes[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(boxes[-1].bias)  # type: ignore[arg-type]
    return class_layer, boxes


def _extent(batch: Batch) -> Float[Tensor, "b 2"]:
    """Width and height of each image in shares of the batch's."""
    sizes = torch.as_tensor(batch.sizes_hw, dtype=torch.float32, device=batch.images.device)
    return (sizes / sizes.new_tensor(batch.padded_hw)).flip(1)


def _logit(shares: Tensor) -> Tensor:
    return torch.logit(shares.clamp(1e-4, 1 - 1e-4))


def _focal_cost(logits: Float[Tensor, "q c"]) -> Float[Tensor, "q c"]:
    """What it costs to call each query each category: Deformable DETR's focal cost."""
    p = logits.sigmoid()
    yes, no = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log(), 0.75 * p**2 * -(1 - p + 1e-8).log()
    return yes - no


def _drawn(where: Tensor, weights: Tensor, like: Tensor) -> Float[Tensor, "b q h w"]:
    """Points (B, H, Q, V, P, 2) in shares of the batch, each weight added to the step of the map ``like`` that it is on."""
    height, width = like.shape[-2:]
    x, y = (where[..., 0] * width).floor().long(), (where[..., 1] * height).floor().long()
    seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).transpose(1, 2).flatten(2)
    amount = (weights * seen / weights.shape[1]).transpose(1, 2).flatten(2)
    drawn = amount.new_zeros(*place.shape[:2], height * width).scatter_add_(2, place, amount)
    return torch.unflatten(drawn, 2, (height, width))
