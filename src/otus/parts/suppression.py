"""From scored boxes to what is reported: score threshold, non-maximum suppression, a limit.

Reference: torchvision ``batched_nms`` (BSD-3-Clause), whose CPU operator knows float32 only.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import batched_nms


@dataclass(frozen=True)
class Decision:
    """What a detector reports of all that it scores. A system's ``decision`` may be replaced at any time.

    Parameters
    ----------
    score_threshold
        Only what scores above.
    nms_threshold
        Of boxes of one category with more IoU than this, the one that scores highest.
    max_detections
        At most so many of a picture, the best.
    """

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100

    def keep(
        self, boxes: Float[Tensor, "n 4"], scores: Float[Tensor, "n"], labels: Int[Tensor, "n"]
    ) -> Int[Tensor, "kept"]:
        """Indices of the boxes that stay among those above the score threshold, best first."""
        return suppress(boxes, scores, labels, iou_threshold=self.nms_threshold)[: self.max_detections]


def suppress(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, "n"], groups: Int[Tensor, "n"], *, iou_threshold: float
) -> Int[Tensor, "kept"]:
    """Indices of the boxes that stay, highest score first.

    Parameters
    ----------
    boxes
        xyxy; compared in float32 whatever came.
    groups
        Boxes of different groups (categories, levels of a pyramid) do not suppress one another.
    iou_threshold
        A box with more IoU than this with a kept box of its group goes.
    """
    return batched_nms(boxes.float(), scores.float(), groups, iou_threshold)
