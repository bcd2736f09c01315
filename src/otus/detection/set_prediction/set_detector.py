"""The frame of every detector that answers with a set: one pass, no anchors, no suppression.

Shape shorthand: L layers of the decoder, B images, Q queries, S class slots, C categories, D channels.

DETR and its successors fill it with different heads (:class:`SetHead`): from the backbone's maps to Q answers, each a
class or "no object" and a box. One pass leaves a record, :class:`SetStages`, and losses, predictions, explanations and
timings are all read from it. A head for masks or panoptic segmentation needs nothing more than the record has: the
backbone's maps, ``SetOutputs.features``, ``SetOutputs.memory`` and ``SetOutputs.attention``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from otus.data.dataset import Dataset
from otus.parts.backbones import Backbone
from otus.parts.batching import Batch, Target
from otus.parts.detections import Detections
from otus.parts.inference_mode import Stopwatch, seeded_generator
from otus.parts.postprocess import Postprocess
from otus.parts.system import BaseSystem, Stages
from otus.parts.transformer.set_matching import Match, denormalize_boxes
from otus.structures import Categories, Instances


@dataclass(frozen=True)
class SetOutputs:
    """What a decoder says, layer by layer, the last being what is reported.

    Parameters
    ----------
    logits, boxes
        (L, B, Q, S) and (L, B, Q, 4): classes, and boxes as centre and size in shares of each image; float32.
    features
        (B, Q, D) of the last layer.
    memory
        (B, D, h, w) of the encoder, of its coarsest map where there are several.
    attention
        Computes, for each image and query, how much it looked at each step of the map that stands first: (B, Q, h, w).
    """

    logits: Float[Tensor, "l b q s"]
    boxes: Float[Tensor, "l b q 4"]
    features: Float[Tensor, "b q d"]
    memory: Float[Tensor, "b d h w"]
    attention: Callable[[], Float[Tensor, "b q i j"]]


class SetHead(Protocol):
    """From maps to a set of answers, and what is learned from them."""

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
    """The record of one pass. ``candidates`` are all pairs of query and category above the threshold
    (``Detections.origins`` is the query).
    """

    outputs: SetOutputs


class SetDetector(BaseSystem[SetStages, Instances]):
    """A detector composed of a backbone and a head that answers with a set.

    Parameters
    ----------
    categories
        What the labels mean.
    backbone
        Images in, maps out.
    head
        Maps in, answers out.
    postprocess
        What is reported. An NMS threshold of 1 is none, as DETR means it; with a lower one suppression is done all the same.
    size_divisor
        Batches are padded to multiples of this; 1 as in DETR's own code.

    Notes
    -----
    Without objects, an image teaches that no query finds any. Crowds are no objects, and queries that answer inside them
    are not taught. Of more objects than queries, those that cost least are learned (:meth:`warnings` counts such images).
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
    def min_size(self) -> int:
        """As of the backbone."""
        return self.backbone.min_size

    def match(self, record: SetStages) -> list[Match]:
        """Which query of a recorded pass would have been taught which object, by the labels of its samples."""
        targets = [self.target(sample) for sample in record.batch.samples]
        return self.head.match(record.outputs, targets, record.batch.sizes_hw)

    def warnings(self, dataset: Dataset) -> list[str]:
        """What a person should know before learning from a data set: images with more objects than queries."""
        if dataset.objects is None:
            return []
        boxes = dataset.objects.boxes_xyxy
        known = ~dataset.objects.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        counts = np.bincount(dataset.objects.image_index[known], minlength=1)
        crowded = counts[counts > self.head.num_queries]
        if not len(crowded):
            return []
        which = "1 image has" if len(crowded) == 1 else f"{len(crowded)} images have"
        return [
            f"note: {which} more objects (at most {counts.max()}) than the {self.head.num_queries} queries; "
            f"of these, {(crowded - self.head.num_queries).sum()} objects are not learned"
        ]

    def compute_stages(
        self,
        batch: Batch,
        targets: list[Target] | None,
        *,
        postprocess: Postprocess | None,
        generator: torch.Generator | None,
        watch: Stopwatch,
    ) -> SetStages:
        """Compute feature maps, and what each query predicts."""
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


def image_on_map(batch: Batch, map_hw: tuple[int, int]) -> Bool[Tensor, "b h w"]:
    """Which steps of a map begin in each image and not in its padding, as nearest-neighbour scaling of a mask says."""
    device = batch.images.device
    inside = []
    for side in range(2):
        steps = torch.arange(map_hw[side], device=device) * batch.padded_hw[side] // map_hw[side]
        inside.append(steps < torch.tensor([size[side] for size in batch.sizes_hw], device=device)[:, None])
    return inside[0][:, :, None] & inside[1][:, None, :]
