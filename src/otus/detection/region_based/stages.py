"""What a region-based detector leaves of one pass over a batch: the record that everything else is read from.

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
    return as_instances(
        record.detections, record.batch.sizes_hw, categories, masks=record.masks, keypoints=record.keypoints
    )
