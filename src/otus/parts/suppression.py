"""Non-maximum suppression: of boxes that overlap much, keep the one with the highest score.

Reference: torchvision ``batched_nms`` (BSD-3-Clause), whose CPU operator knows float32 only.
"""

from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import batched_nms


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
