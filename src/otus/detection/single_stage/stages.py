"""What a dense detector leaves of one pass over a batch: the record that everything else is read from."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from otus.parts.heads.dense_head import DenseAssignment, DenseOutputs
from otus.parts.system import Stages


@dataclass(kw_only=True)
class DenseStages(Stages):
    """The record of one pass.

    ``anchors`` and the lists of ``outputs`` have one entry per feature map; ``assignments``, of a pass that learns, one
    per image.
    """

    anchors: list[Float[Tensor, "_ 4"]]
    outputs: DenseOutputs
    assignments: list[DenseAssignment] = field(default_factory=list)
