"""What a dense detector leaves of one pass over a batch: the record that everything else is read from.

Shape shorthand: A anchors of all maps, D numbers of a box (4: xyxy, 5: xywhr), S class slots.
"""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.batching import Batch
from otus.parts.detections import Detections
from otus.parts.heads.dense_head import DenseOutputs


@dataclass(frozen=True)
class DenseAssignment:
    """What each anchor of one image should say.

    ``matches`` are indices of objects, or NEGATIVE or NEUTRAL of :mod:`otus.parts.boxes.matching`; ``slots`` the class slot to be
    answered, of the same negative numbers elsewhere; ``boxes`` the objects' boxes of the positives, in their order.
    """

    matches: Int[Tensor, "a"]
    slots: Int[Tensor, "a"]
    positives: Int[Tensor, "p"]
    boxes: Float[Tensor, "p d"]


@dataclass
class DenseStages:
    """The record of one pass over a batch, in the frame of the prepared images.

    ``maps``, ``anchors`` and the lists of ``answers`` have one entry a map, the others one an image. A pass that learns
    leaves ``assignments`` and ``losses``, one that predicts what follows them.
    """

    batch: Batch
    maps: list[Tensor]
    anchors: list[Float[Tensor, "_ 4"]]
    answers: DenseOutputs
    milliseconds: dict[str, float]
    assignments: list[DenseAssignment] = field(default_factory=list)
    losses: dict[str, Tensor] = field(default_factory=dict)
    candidates: list[Detections] = field(default_factory=list)
    kept: list[Int[Tensor, "_"]] = field(default_factory=list)
    detections: list[Detections] = field(default_factory=list)
