"""What a region-based detector leaves of one pass over a batch: the record that everything else is read from.

Shape shorthand: R regions of all images, S class slots, K keypoints.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.batching import Batch
from otus.parts.detections import Detections
from otus.parts.heads.box_head import Assignment
from otus.parts.regions.proposals import Proposals
from otus.structures import Categories, Instances, Masks


@dataclass
class RegionStages:
    """The record of one pass over a batch, in the frame of the prepared images. Lists have one entry an image.

    A pass that learns leaves ``assignments`` and ``losses``, one that predicts what follows them.
    """

    batch: Batch
    maps: list[Tensor]
    proposals: Proposals
    milliseconds: dict[str, float]
    logits: Float[Tensor, "r s"]
    transforms: Float[Tensor, "r s 4"]
    assignments: list[Assignment] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    scores: list[Float[Tensor, "_ s"]] = field(default_factory=list)
    candidates: list[Detections] = field(default_factory=list)
    kept: list[Int[Tensor, "_"]] = field(default_factory=list)
    detections: list[Detections] = field(default_factory=list)
    masks: list[Float[Tensor, "_ h w"]] | None = None
    keypoints: list[Float[Tensor, "_ k 4"]] | None = None


def to_instances(record: RegionStages, categories: Categories) -> list[Instances]:
    """The detections of a pass as numpy values, masks in the low-resolution form."""
    found = []
    for i, (detections, size_hw) in enumerate(zip(record.detections, record.batch.sizes_hw, strict=True)):
        boxes = _numpy(detections.boxes)
        points = None if record.keypoints is None else _numpy(record.keypoints[i])
        masks = None
        if record.masks is not None:
            masks = Masks.from_probabilities(_numpy(record.masks[i]), boxes, size_hw)
        found.append(
            Instances(
                boxes_xyxy=boxes,
                labels=_numpy(detections.labels),
                size_hw=size_hw,
                categories=categories,
                scores=_numpy(detections.scores),
                masks=masks,
                keypoints=None if points is None else points[..., :3],
                keypoint_scores=None if points is None else points[..., 3],
            )
        )
    return found


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
