"""The record of a region-based detector's forward pass, from which losses, predictions and explanations are read.

Shape shorthand: R regions of all images, S classes of the head, K keypoints.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from otus.parts.detections import as_instances
from otus.parts.heads.box_head import Assignment
from otus.parts.regions.proposals import Proposals
from otus.parts.system import Stages
from otus.structures import Categories, Instances


@dataclass(kw_only=True)
class RegionStages(Stages):
    """The record of one forward pass. Lists have one entry per image.

    In training, ``logits`` and ``box_deltas`` are those of sampled regions, which ``assignments`` describe. When
    predicting, they are those of all proposals, and there are ``scores`` (softmax of the logits) and, with the respective
    heads, ``masks`` and ``keypoints``.
    """

    proposals: Proposals
    logits: Float[Tensor, "r s"]
    box_deltas: Float[Tensor, "r s 4"]
    assignments: list[Assignment] | None = None
    scores: list[Float[Tensor, "_ s"]] = field(default_factory=list)
    masks: list[Float[Tensor, "_ h w"]] | None = None
    keypoints: list[Float[Tensor, "_ k 4"]] | None = None


def to_instances(record: RegionStages, categories: Categories) -> list[Instances]:
    """Convert the detections of a pass to numpy values, with masks at low resolution."""
    return as_instances(
        record.detections, record.batch.sizes_hw, categories, masks=record.masks, keypoints=record.keypoints
    )
