"""The record of a dense detector's forward pass, from which losses, predictions and explanations are read."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from otus.parts.heads.dense_head import DenseAssignment, DenseOutputs
from otus.parts.system import Stages


@dataclass(kw_only=True)
class DenseStages(Stages):
    """The record of one forward pass.

    ``anchors`` and the lists of ``outputs`` have one entry per feature map; ``assignments`` has one per image in training,
    and is empty when predicting.
    """

    anchors: list[Float[Tensor, "_ 4"]]
    outputs: DenseOutputs
    assignments: list[DenseAssignment] = field(default_factory=list)
