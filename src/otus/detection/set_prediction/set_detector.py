"""The base of all set prediction detectors: one forward pass, no anchors, no NMS.

Shape shorthand: L layers of the decoder, B images, Q queries, S class logits, C categories, D channels.

DETR and its successors differ in the head (:class:`SetHead`), which computes Q predictions from the backbone's feature
maps, each a class or "no object" and a box. A pass returns a record, :class:`SetStages`, which losses, predictions,
explanations and timings are taken from. A head for masks or panoptic segmentation needs only this record: the
backbone's feature maps, ``SetOutputs.features``, ``SetOutputs.memory`` and ``SetOutputs.attention``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import box_convert

from otus.data.dataset import Dataset
from otus.parts.backbones import Backbone
from otus.parts.batching import Batch, Target, clip_to_images
from otus.parts.detections import Detections, postprocess_batch
from otus.parts.inference_mode import Stopwatch, seeded_generator
from otus.parts.postprocess import Postprocess
from otus.parts.system import BaseSystem, Stages
from otus.parts.transformer.set_matching import Match, denormalize_boxes
from otus.structures import Categories, Instances


@dataclass(frozen=True)
class SetOutputs:
    """The predictions of each decoder layer; detections are computed from the last.

    Parameters
    ----------
    logits, boxes
        (L, B, Q, S) class logits, and (L, B, Q, 4) boxes, cxcywh as fractions of each image; float32.
    features
        (B, Q, D) query features of the last layer.
    memory
        (B, D, h, w) output of the encoder, of its coarsest feature map if there are several.
    attention
        Computes the attention of each query to each location of the head's first feature map: (B, Q, h, w).
    """

    logits: Float[Tensor, "l b q s"]
    boxes: Float[Tensor, "l b q 4"]
    features: Float[Tensor, "b q d"]
    memory: Float[Tensor, "b d h w"]
    attention: Callable[[], Float[Tensor, "b q i j"]]


class SetHead(Protocol):
    """A head that computes a set of predictions from feature maps, matches them to targets and computes the losses."""

    def forward_train(
        self,
        maps: list[Tensor],
        batch: Batch,
        targets: Sequence[Target] | None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[SetOutputs, dict[str, Tensor]]: ...

    def match(
        self, outputs: SetOutputs, targets: Sequence[Target], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[Match]: ...

    def candidates(
        self, logits: Float[Tensor, "q s"], *, postprocess: Postprocess
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    @property
    def num_queries(self) -> int: ...


@dataclass(kw_only=True)
class SetStages(Stages):
    """The record of one pass.

    ``candidates`` are all pairs of query and category with a score above the threshold; ``Detections.origins`` are
    query indices.
    """

    outputs: SetOutputs


class SetDetector(BaseSystem[SetStages, Instances]):
    """A detector composed of a backbone and a head that predicts a set of objects.

    Parameters
    ----------
    categories
        Names of the labels.
    backbone
        Computes feature maps of the images.
    head
        Computes a set of predictions from the feature maps.
    postprocess
        Score and NMS thresholds of the detections (default: an NMS IoU threshold of 1, which is no NMS, as in DETR).
    size_divisor
        Height and width of a batch are padded to multiples of this (default: 1, as in DETR).

    Notes
    -----
    In an image without objects, the target of every query is "no object". Crowds are not matched, and unmatched queries
    whose boxes lie at least half inside them add no loss. If an image has more objects than queries, the matching of
    lowest cost leaves the rest unmatched (:meth:`warnings` counts such images).
    """

    postprocess: Postprocess
    backbone: Backbone
    head: SetHead

    def __init__(
        self,
        *,
        categories: Categories,
        backbone: Backbone,
        head: SetHead,
        postprocess: Postprocess = Postprocess(score_threshold=0.0, nms_iou=1.0),
        size_divisor: int = 1,
    ) -> None:
        super().__init__()
        self.categories = categories
        self.backbone = backbone
        self.head = head
        self.postprocess = postprocess
        self.size_divisor = size_divisor

    @property
    def heavy_parts(self) -> tuple[str, ...]:
        """The backbone."""
        return ("backbone",)

    @property
    def min_size(self) -> int:
        """Minimum image side of the backbone, in pixels."""
        return self.backbone.min_size

    def match(self, record: SetStages) -> list[Match]:
        """Match the queries of a recorded pass to the ground truth of its samples, as in training."""
        targets = [self.target(sample) for sample in record.batch.samples]
        return self.head.match(record.outputs, targets, record.batch.sizes_hw)

    def warnings(self, dataset: Dataset) -> list[str]:
        """Return notes on a data set before training: the number of images with more objects than queries."""
        if dataset.objects is None:
            return []
        boxes = dataset.objects.boxes_xyxy
        valid = ~dataset.objects.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        counts = np.bincount(dataset.objects.image_index[valid], minlength=1)
        too_many = counts[counts > self.head.num_queries]
        if not len(too_many):
            return []
        images = "1 image has" if len(too_many) == 1 else f"{len(too_many)} images have"
        return [
            f"note: {images} more objects (at most {counts.max()}) than the {self.head.num_queries} queries; "
            f"of these, {(too_many - self.head.num_queries).sum()} objects are not learned"
        ]

    def forward(self, images: Float[Tensor, "b 3 h w"], sizes_hw: Int[Tensor, "b 2"]) -> dict[str, Tensor]:
        """Return the detections of a batch, in the form of :func:`~otus.parts.detections.as_tensors`."""
        record = self.raw_stages(images, sizes_hw)
        logits, boxes = record.outputs.logits[-1], record.outputs.boxes[-1].flatten(0, 1)
        query, label, score = self.head.candidates(logits.flatten(0, 1), postprocess=self.postprocess)
        image_index = query // logits.shape[1]
        image_hw = sizes_hw[image_index]
        xyxy = box_convert(boxes[query], "cxcywh", "xyxy") * image_hw.flip(1).repeat(1, 2)
        return postprocess_batch(
            Detections(clip_to_images(xyxy, image_hw), score, label, query),
            image_index,
            self.postprocess,
            num_images=images.shape[0],
            padded_hw=record.batch.padded_hw,
        )

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Target] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> SetStages:
        """Compute feature maps, and the predictions of each query."""
        with seeded_generator(generator):
            with watch.time("maps"):
                features = self.backbone(batch.images)
            with watch.time("answers"):
                outputs, losses = self.head.forward_train(features, batch, targets, generator=generator)
        record = SetStages(
            batch=batch, features=features, milliseconds=watch.milliseconds, outputs=outputs, losses=losses
        )
        if postprocess is not None:
            with watch.time("postprocess"):
                self._postprocess(record, postprocess)
        return record

    def _postprocess(self, record: SetStages, postprocess: Postprocess) -> None:
        for logits, boxes, size_hw in zip(
            record.outputs.logits[-1], record.outputs.boxes[-1], record.batch.sizes_hw, strict=True
        ):
            query, label, score = self.head.candidates(logits, postprocess=postprocess)
            record.keep(Detections(denormalize_boxes(boxes[query], size_hw), score, label, query), postprocess)


def valid_locations(batch: Batch, map_hw: tuple[int, int]) -> Bool[Tensor, "b h w"]:
    """Return which locations of a feature map are inside each image and not in its padding, by nearest neighbour."""
    device = batch.images.device
    sizes_hw = torch.as_tensor(batch.sizes_hw, device=device)
    inside = []
    for axis in range(2):
        pixels = torch.arange(map_hw[axis], device=device) * batch.padded_hw[axis] // map_hw[axis]
        inside.append(pixels < sizes_hw[:, axis, None])
    return inside[0][:, :, None] & inside[1][:, None, :]


def to_attention_mask(inside: Bool[Tensor, "b h w"]) -> Bool[Tensor, "b 1 k"] | None:
    """Return the attention mask that excludes the padding; None if there is no padding."""
    if not torch.compiler.is_compiling() and inside.all():  # an exported program cannot depend on the values
        return None
    return inside.flatten(1)[:, None]
