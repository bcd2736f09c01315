"""What a dense detector leaves of one pass over a batch: the record that everything else is read from.

Shape shorthand: A anchors of all maps, D numbers of a box (4: xyxy, 5: xywhr), S class slots.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.batching import Batch
from otus.parts.dense_head import Answers
from otus.structures import Categories, Instances, oriented
from otus.structures.boxes import as_boxes


@dataclass(frozen=True)
class DenseAssignment:
    """What each anchor of one picture should say.

    ``matches`` are indices of objects, or NEGATIVE or NEUTRAL of :mod:`otus.parts.matching`; ``slots`` the class slot to be
    answered, of the same negative numbers elsewhere; ``boxes`` the objects' boxes of the positives, in their order.
    """

    matches: Int[Tensor, "a"]
    slots: Int[Tensor, "a"]
    positives: Int[Tensor, "p"]
    boxes: Float[Tensor, "p d"]


@dataclass(frozen=True)
class DenseDetections:
    """Objects of one picture as tensors. ``anchors`` says of which anchor each was made."""

    boxes: Float[Tensor, "n d"]
    scores: Float[Tensor, "n"]
    labels: Int[Tensor, "n"]
    anchors: Int[Tensor, "n"]

    def __getitem__(self, index: Tensor) -> "DenseDetections":
        return DenseDetections(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class DenseStages:
    """The record of one pass over a batch, in the frame of the prepared pictures.

    ``maps``, ``anchors`` and the lists of ``answers`` have one entry a map, the others one a picture. A pass that learns
    leaves ``assignments`` and ``losses``, one that predicts what follows them.
    """

    batch: Batch
    maps: list[Tensor]
    anchors: list[Float[Tensor, "_ 4"]]
    answers: Answers
    milliseconds: dict[str, float]
    assignments: list[DenseAssignment] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    candidates: list[DenseDetections] = field(default_factory=list)
    kept: list[Int[Tensor, "_"]] = field(default_factory=list)
    detections: list[DenseDetections] = field(default_factory=list)


def dense_instances(record: DenseStages, categories: Categories) -> list[Instances]:
    """The detections of a pass as numpy values; oriented boxes with the boxes around them, inside the picture."""
    found = []
    for detections, size_hw in zip(record.detections, record.batch.sizes_hw, strict=True):
        boxes = detections.boxes.cpu().numpy()
        turned = None
        if boxes.shape[1] == 5:
            turned, limit = boxes, np.array([size_hw[1], size_hw[0]] * 2)
            boxes = as_boxes(oriented.enclosing_boxes(turned).clip(0, limit).astype(np.float32))
        found.append(
            Instances(
                boxes_xyxy=boxes,
                labels=detections.labels.cpu().numpy(),
                size_hw=size_hw,
                categories=categories,
                scores=detections.scores.cpu().numpy(),
                oriented_boxes_xywhr=turned,
            )
        )
    return found
