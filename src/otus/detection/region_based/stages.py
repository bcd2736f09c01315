"""What a region-based detector leaves of one pass over a batch: the record that everything else is read from.

Shape shorthand: R regions of all images, S classes of the head, K keypoints.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from torch import Tensor

from otus.parts.heads.box_head import Assignment
from otus.parts.regions.proposals import Proposals
from otus.parts.system import Stages
from otus.structures import Categories, Instances, Masks


@dataclass(kw_only=True)
class RegionStages(Stages):
    """The record of one pass. Lists have one entry per image.

    A pass that learns has ``assignments`` and samples the regions that ``logits`` and ``box_deltas`` are of; one that
    predicts takes all proposals, and has ``scores`` (softmax of the logits) and what the further heads predict.
    """

    proposals: Proposals
    logits: Float[Tensor, "r s"]
    box_deltas: Float[Tensor, "r s 4"]
    assignments: list[Assignment] | None = None
    scores: list[Float[Tensor, "_ s"]] = field(default_factory=list)
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
