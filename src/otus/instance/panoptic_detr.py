"""DETR for panoptic segmentation: a mask for each query; each pixel is assigned to the query of the highest mask logit.

Shape shorthand: B images, Q queries, M heads of the attention, N segments of an image, D the embedding dimension, h x w the
coarsest feature map, H x W the image.

Paper: "End-to-End Object Detection with Transformers" (Carion et al., ECCV 2020, arXiv:2005.12872), section 4.4 and figure
8. Official code: github.com/facebookresearch/detr, ``models/segmentation.py`` (Apache-2.0), whose names are kept and whose
weights load. Things and stuff are both objects with boxes, so that one set prediction contains both.

The merge: queries with scores above 0.85 compete for each pixel by the logits of their masks; queries of the same stuff
category are merged into one segment; segments of at most 4 pixels are left out, and their pixels go to the others.

Training, section 4.4: the mask head is trained on top of a trained detector (``freeze_detector``), or jointly with it, by
the focal and the Dice loss of the masks of matched queries.

Departures: masks are computed for the reported or matched queries only, not for all, and compared at the size of the image;
the official code resizes the merged result by nearest neighbour. All pixels won by queries of the same stuff category
belong to its segment, as in the paper (in the official code, those of all but the first query go to other segments).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from otus.data.tensors import TensorSample
from otus.detection.set_prediction.detr import DETRHead
from otus.detection.set_prediction.set_detector import SetDetector, SetStages, valid_locations
from otus.parts.backbones import efficientnet_lite0_backbone, torchvision_backbone
from otus.parts.backbones.freezing import Freezing
from otus.parts.batching import Batch, Target, make_target
from otus.parts.heads.class_indices import class_indices_of
from otus.parts.inference_mode import Stopwatch
from otus.parts.losses import dice_loss, zero_loss
from otus.parts.panoptic_targets import panoptic_ids, segments_as_objects
from otus.parts.postprocess import Postprocess
from otus.parts.system import BaseSystem
from otus.parts.tasks import PANOPTIC, Task
from otus.structures import Categories, PanopticMap, Segment

SCORE_THRESHOLD = 0.85
SMALL_SEGMENT_AREA = 4
"""Segments of at most this many pixels are left out."""


class MHAttentionMap(nn.Module):
    """Attention weights, per head, of each query to each location of the encoder's output, without values."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear, self.k_linear = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        for layer in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, queries: Float[Tensor, "b q d"], memory: Float[Tensor, "b d h w"], inside: Bool[Tensor, "b h w"]
    ) -> Float[Tensor, "b q m h w"]:
        """Return weights that sum to 1 over all heads and locations of a query; 0 where ``inside`` is False."""
        q = torch.unflatten(self.q_linear(queries), 2, (self.num_heads, -1))
        k = F.conv2d(memory, self.k_linear.weight[..., None, None], self.k_linear.bias)
        k = torch.unflatten(k, 1, (self.num_heads, -1))
        weights = torch.einsum("bqmd,bmdhw->bqmhw", q * q.shape[-1] ** -0.5, k)
        weights = weights.masked_fill(~inside[:, None, None], -torch.inf)
        return weights.flatten(2).softmax(dim=-1).view_as(weights)


class MaskHeadSmallConv(nn.Module):
    """Predict the mask of a query from its attention weights: convolutions with group normalisation, upsampled FPN-style.

    Parameters
    ----------
    embed_dim, num_heads
        D and M of the transformer.
    channels
        Channels of the backbone's three finer feature maps, coarse to fine, which are added while upsampling.
    """

    def __init__(self, embed_dim: int, num_heads: int, channels: Sequence[int]) -> None:
        super().__init__()
        in_channels = embed_dim + num_heads
        widths = [in_channels, in_channels, *(embed_dim // divisor for divisor in (2, 4, 8, 16))]
        for i in range(1, 6):
            self.add_module(f"lay{i}", nn.Conv2d(widths[i - 1], widths[i], 3, padding=1))
            self.add_module(f"gn{i}", nn.GroupNorm(math.gcd(8, widths[i]), widths[i]))
        self.out_lay = nn.Conv2d(widths[5], 1, 3, padding=1)
        for i, inputs in enumerate(channels):
            self.add_module(f"adapter{i + 1}", nn.Conv2d(inputs, widths[i + 2], 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "1 d h w"],
        attention: Float[Tensor, "q m h w"],
        maps: Sequence[Float[Tensor, "1 _ _ _"]],
    ) -> Float[Tensor, "q i j"]:
        """Return the mask logits of the queries of one image, at the size of the finest feature map; float32.

        Parameters
        ----------
        x
            The projected coarsest feature map, the input of the transformer.
        attention
            Attention weights of each query to the locations of ``x``.
        maps
            The backbone's finer feature maps, coarse to fine.
        """
        x = torch.cat([x.expand(len(attention), -1, -1, -1), attention], dim=1)
        for i in range(1, 6):
            if i > 2:
                lateral = getattr(self, f"adapter{i - 2}")(maps[i - 3])
                x = lateral + F.interpolate(x, size=lateral.shape[-2:], mode="nearest")
            x = F.relu(getattr(self, f"gn{i}")(getattr(self, f"lay{i}")(x)))
        return self.out_lay(x)[:, 0].float()


@dataclass(kw_only=True)
class PanopticDETRStages(SetStages):
    """The record of one forward pass: that of DETR, the mask logits of the detections, one entry per image, and the labels
    that are reported (None for all)."""

    mask_logits: list[Float[Tensor, "n i j"]] = field(default_factory=list)
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class PanopticQueries:
    """The detected queries of an image with their masks, to be merged to a panoptic map at any size.

    Parameters
    ----------
    mask_logits, labels, scores
        Mask logits, labels and scores of N queries, the highest score first.
    categories
        Names of the labels.
    padded_hw, size_hw
        Height and width of the padded batch, which the mask logits cover, and of the image in its top left corner.
    reported
        Labels of the segments that are reported (default: all).
    """

    mask_logits: Float[Tensor, "n i j"]
    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]
    categories: Categories
    padded_hw: tuple[int, int]
    size_hw: tuple[int, int]
    reported: tuple[int, ...] | None = None

    def resized(self, size_hw: tuple[int, int]) -> PanopticMap:
        """Return the panoptic map of the image at any size; segment ids are in the order of the scores."""
        logits, covered = self.mask_logits, []
        for axis, (padded, new, old) in enumerate(zip(self.padded_hw, size_hw, self.size_hw, strict=True), start=1):
            stride = padded / logits.shape[axis]
            locations = min(logits.shape[axis], math.ceil(old / stride) + 1)  # crop the padding, but for a margin
            logits = logits.narrow(axis, 0, locations)
            covered.append(round(locations * stride * new / old))
        winner, owner = merge_queries(logits, self.labels, self.categories, (covered[0], covered[1]), size_hw)
        owners = sorted(set(owner.tolist()) - {-1})
        segment_id = np.zeros(len(owner) + 1, dtype=np.int32)  # the last stands for pixels of no query, index -1
        segment_id[owners] = np.arange(len(owners)) + 1
        segments = tuple(
            Segment(id, int(self.labels[query]), score=float(self.scores[query])) for id, query in enumerate(owners, 1)
        )
        panoptic = PanopticMap(segment_id[winner], segments, self.categories)
        return panoptic if self.reported is None else panoptic.select(self.reported)


class PanopticDETR(BaseSystem[PanopticDETRStages, PanopticQueries]):
    """A set detector of things and stuff, and a head that predicts the masks of its queries.

    Parameters
    ----------
    detector
        DETR over a backbone with four feature maps, fine to coarse; its categories are things and stuff.
    freeze_detector
        Whether only the mask head is trained, on top of a trained detector.

    Notes
    -----
    ``losses`` are the detector's, ``mask`` (focal) and ``dice``; only the last two if the detector is frozen.
    """

    postprocess: Postprocess
    detector: SetDetector

    def __init__(self, detector: SetDetector, *, freeze_detector: bool = False) -> None:
        super().__init__()
        self.categories = detector.categories
        self.detector = detector
        self.freeze_detector = freeze_detector
        embed_dim, num_heads = self.head.input_proj.out_channels, self.head.num_heads
        self.bbox_attention = MHAttentionMap(embed_dim, num_heads)
        self.mask_head = MaskHeadSmallConv(embed_dim, num_heads, detector.backbone.channels[-2::-1])
        self.postprocess = replace(detector.postprocess, score_threshold=SCORE_THRESHOLD)
        self.size_divisor = detector.size_divisor
        if freeze_detector:
            detector.requires_grad_(False)

    @property
    def head(self) -> DETRHead:
        """The head of the detector."""
        return self.detector.head  # type: ignore[return-value]

    @property
    def task(self) -> Task:
        """Panoptic segmentation."""
        return PANOPTIC

    @property
    def min_size(self) -> int:
        """Minimum height and width of a batch, in pixels: that of the detector."""
        return self.detector.min_size

    def target(self, sample: TensorSample) -> Target:
        """Return the segments of a sample, stuff included, as objects."""
        count = len(self.categories)
        ids = panoptic_ids(sample, category_count=count)
        objects = segments_as_objects(sample, ids, {label: label for label in range(count)})
        return make_target(objects, category_count=count, device=self.device)

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Target] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> PanopticDETRStages:
        """Compute the forward pass of DETR, and the masks of its detections or, in training, of the matched queries."""
        labels = None if postprocess is None else postprocess.labels
        set_stages = self.detector.compute_stages(
            batch,
            None if self.freeze_detector else targets,
            # All labels compete for the pixels, also those that are not reported, whose pixels become void.
            postprocess=None if postprocess is None else replace(postprocess, labels=None),
            generator=generator,
            watch=watch,
        )
        values = {field.name: getattr(set_stages, field.name) for field in fields(set_stages)}
        record = PanopticDETRStages(**values, labels=labels)
        with watch.time("masks"):
            if targets is None:
                record.mask_logits = self._mask_logits(record, [of_image.origins for of_image in record.detections])
            else:
                record.losses |= self._mask_losses(record, targets)
        return record

    def _mask_logits(
        self, record: PanopticDETRStages, queries: Sequence[Int[Tensor, "_"]]
    ) -> list[Float[Tensor, "_ i j"]]:
        """Return the mask logits of some queries of each image, at the size of the finest feature map."""
        *finer, coarsest = record.features
        inside = valid_locations(record.batch, (coarsest.shape[-2], coarsest.shape[-1]))
        x = self.head.input_proj(coarsest)
        logits = []
        for i, chosen in enumerate(queries):
            image = slice(i, i + 1)
            if not len(chosen):
                logits.append(x.new_zeros((0, *finer[0].shape[-2:]), dtype=torch.float32))
                continue
            attention = self.bbox_attention(
                record.outputs.features[image, chosen], record.outputs.memory[image], inside[image]
            )
            image_maps = [feature_map[image] for feature_map in reversed(finer)]
            logits.append(self.mask_head(x[image], attention[0], image_maps))
        return logits

    def _mask_losses(self, record: PanopticDETRStages, targets: Sequence[Target]) -> dict[str, Float[Tensor, ""]]:
        """Compute focal and Dice loss of the masks of matched queries, divided by the number of segments."""
        matches = self.head.match(record.outputs, targets, record.batch.sizes_hw)
        height, width = record.batch.padded_hw
        zero = zero_loss(self.bbox_attention) + zero_loss(self.mask_head)
        mask, dice = [zero], [zero]
        mask_logits = self._mask_logits(record, [match.queries for match in matches])
        for logits, match, target in zip(mask_logits, matches, targets, strict=True):
            if target.masks is None or not len(logits):
                continue
            masks = target.masks[match.objects].to(logits.dtype)
            masks = F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
            resized = F.interpolate(logits[None], (height, width), mode="bilinear")[0]
            mask.append(sigmoid_focal_loss(resized, masks, alpha=0.25, gamma=2).mean(dim=(1, 2)).sum())
            dice.append(dice_loss(resized, masks).sum())
        count = max(1, sum(len(target.boxes) for target in targets))
        return {"mask": torch.stack(mask).sum() / count, "dice": torch.stack(dice).sum() / count}

    def results(self, record: PanopticDETRStages) -> list[PanopticQueries]:
        """Return the detections of each image with their masks, whose ``resized(size_hw)`` is the panoptic map."""
        padded_hw = record.batch.padded_hw
        return [
            PanopticQueries(
                logits.cpu(),
                detections.labels.cpu().numpy(),
                detections.scores.cpu().numpy(),
                self.categories,
                padded_hw,
                size_hw,
                record.labels,
            )
            for detections, logits, size_hw in zip(
                record.detections, record.mask_logits, record.batch.sizes_hw, strict=True
            )
        ]

    def tensors(self, record: PanopticDETRStages) -> dict[str, Tensor]:
        """Return the detector's tensors and ``mask_logits`` of the detections, at the size of the finest feature map."""
        return self.detector.tensors(record) | {"mask_logits": torch.cat(record.mask_logits)}


def merge_queries(
    logits: Float[Tensor, "n i j"],
    labels: Int[np.ndarray, "n"],
    categories: Categories,
    padded_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "n"]]:
    """Assign each pixel to the query of the highest mask logit, and merge queries of the same stuff category.

    Parameters
    ----------
    logits
        Mask logits of the queries of one image, the highest score first.
    labels
        Labels of the queries.
    categories
        Names of the labels; ``is_thing`` says which are stuff.
    padded_hw, size_hw
        Size that the logits cover, and size of the image in its top left corner.

    Returns
    -------
    winner, owner
        The segment of each pixel, -1 if there is no query; and the segment of each query, -1 if it is left out. A segment
        is identified by its first query.
    """
    first_of_stuff: dict[int, int] = {}
    owner = np.arange(len(labels))
    for i, label in enumerate(labels.tolist()):
        if not categories.is_thing[label]:
            owner[i] = first_of_stuff.setdefault(label, i)
    kept = np.arange(len(labels))
    while True:
        winner = owner[kept][_argmax(logits[kept], padded_hw, size_hw)] if len(kept) else np.full(size_hw, -1)
        areas = np.bincount(winner.ravel() + 1, minlength=len(labels) + 1)[1:]
        large = areas[owner[kept]] > SMALL_SEGMENT_AREA
        if large.all():
            return winner, np.where(np.isin(np.arange(len(labels)), kept), owner, -1)
        kept = kept[large]


def _argmax(
    logits: Float[Tensor, "n i j"], padded_hw: tuple[int, int], size_hw: tuple[int, int]
) -> Int[np.ndarray, "h w"]:
    """Return the index of the maximum of the resized logits at each pixel; only one resized map is in memory at a time."""
    height, width = size_hw
    maximum = torch.full(size_hw, -torch.inf, device=logits.device)
    index = torch.zeros(size_hw, dtype=torch.int64, device=logits.device)
    for i, query_logits in enumerate(logits):
        resized = F.interpolate(query_logits[None, None], padded_hw, mode="bilinear")[0, 0, :height, :width]
        index[resized > maximum] = i
        maximum = torch.maximum(maximum, resized)
    return index.cpu().numpy()


def panoptic_detr_resnet50(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_classes: int | None = None,
    num_queries: int = 100,
    freezing: Freezing = Freezing(),
    freeze_detector: bool = False,
) -> PanopticDETR:
    """Build the paper's panoptic DETR over ResNet-50.

    Parameters
    ----------
    categories
        Things and stuff.
    class_indices, num_queries, freezing
        See :func:`~otus.detection.set_prediction.detr.detr_resnet50`.
    num_classes
        See :class:`~otus.detection.set_prediction.detr.DETRHead`; 250 in the published weights.
    freeze_detector
        Whether only the mask head is trained, on top of a trained detector.
    """
    return _over_resnet("resnet50", categories, class_indices, num_classes, num_queries, freezing, freeze_detector)


def panoptic_detr_resnet50_dc5(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_classes: int | None = None,
    num_queries: int = 100,
    freezing: Freezing = Freezing(),
    freeze_detector: bool = False,
) -> PanopticDETR:
    """Build :func:`panoptic_detr_resnet50` with the backbone's last stage dilated: a feature map of stride 16."""
    return _over_resnet(
        "resnet50", categories, class_indices, num_classes, num_queries, freezing, freeze_detector, output_stride=16
    )


def panoptic_detr_resnet101(
    categories: Categories,
    *,
    class_indices: Sequence[int] | None = None,
    num_classes: int | None = None,
    num_queries: int = 100,
    freezing: Freezing = Freezing(),
    freeze_detector: bool = False,
) -> PanopticDETR:
    """Build panoptic DETR over ResNet-101; see :func:`panoptic_detr_resnet50` for the parameters."""
    return _over_resnet("resnet101", categories, class_indices, num_classes, num_queries, freezing, freeze_detector)


def panoptic_detr_efficientnet_lite0(
    categories: Categories,
    *,
    num_queries: int = 50,
    freezing: Freezing = Freezing(),
    freeze_detector: bool = False,
) -> PanopticDETR:
    """Build a small panoptic DETR for images of about 320 pixels, over the small DETR.

    See :func:`panoptic_detr_resnet50` for the parameters, and
    :func:`~otus.detection.set_prediction.detr.detr_efficientnet_lite0` for the detector.
    """
    backbone = efficientnet_lite0_backbone(levels=(2, 3, 4, 5), freezing=freezing)
    head = DETRHead(
        backbone.channels[-1],
        class_indices_of(categories, None, background=False),
        embed_dim=128,
        ffn_dim=512,
        num_encoder_layers=3,
        num_decoder_layers=3,
        num_queries=num_queries,
        dropout=0.0,
    )
    detector = SetDetector(categories=categories, backbone=backbone, head=head)
    return PanopticDETR(detector, freeze_detector=freeze_detector)


def _over_resnet(
    name: str,
    categories: Categories,
    class_indices: Sequence[int] | None,
    num_classes: int | None,
    num_queries: int,
    freezing: Freezing,
    freeze_detector: bool,
    *,
    output_stride: int = 32,
) -> PanopticDETR:
    levels = ("layer1", "layer2", "layer3", "layer4")
    backbone = torchvision_backbone(name, levels=levels, output_stride=output_stride, freezing=freezing)
    class_indices = class_indices_of(categories, class_indices, background=False)
    head = DETRHead(backbone.channels[-1], class_indices, num_queries=num_queries, num_classes=num_classes)
    detector = SetDetector(categories=categories, backbone=backbone, head=head)
    return PanopticDETR(detector, freeze_detector=freeze_detector)
