"""What a dense detector leaves of one pass over a batch: the record that everything else is read from.

Shape shorthand: A anchors of all maps, D numbers of a box (4: xyxy, 5: xywhr), S class slots.
"""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.heads.dense_head import DenseOutputs
from otus.parts.system import Stages


@dataclass(frozen=True)
class DenseAssignment:
    """What each anchor of one image should say.

    ``matches`` are indices of objects, or NEGATIVE or NEUTRAL of :mod:`otus.parts.boxes.matching`; ``class_indices`` the class slot to be
    answered, of the same negative numbers elsewhere; ``boxes`` the objects' boxes of the positives, in their order.
    """

    matches: Int[Tensor, "a"]
    class_indices: Int[Tensor, "a"]
    positives: Int[Tensor, "p"]
    boxes: Float[Tensor, "p d"]


@dataclass(kw_only=True)
class DenseStages(Stages):
    """The record of one pass.

    ``anchors`` and the lists of ``outputs`` have one entry per feature map; ``assignments``, of a pass that learns, one
    per image.
    """

    anchors: list[Float[Tensor, "_ 4"]]
    outputs: DenseOutputs
    assignments: list[DenseAssignment] = field(default_factory=list)
