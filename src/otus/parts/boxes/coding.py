"""Box coders: boxes as deltas relative to a reference box, or as distances to its edges, and back.

Paper: R-CNN (Girshick et al., CVPR 2014, arXiv:1311.2524), appendix C: dx and dy shift the centre in units of the region's
size, dw and dh scale the size in log space.
Departure, as in every implementation since Fast R-CNN: the four are multiplied by weights, about the inverse of their
standard deviations, and dw, dh are clamped to at most log(1000 / 16) before the exponential.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

LARGEST_LOG_SCALE = math.log(1000 / 16)


class DeltaBoxCoder:
    """Encode boxes as deltas relative to regions, and decode them.

    Parameters
    ----------
    weights
        Multipliers of dx, dy, dw, dh.

    Examples
    --------
    >>> box_coder = DeltaBoxCoder()
    >>> region = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    >>> box_deltas = box_coder.encode(torch.tensor([[5.0, 0.0, 15.0, 10.0]]), region)
    >>> box_deltas.tolist(), box_coder.decode(box_deltas, region).tolist()
    ([[0.5, 0.0, 0.0, 0.0]], [[5.0, 0.0, 15.0, 10.0]])
    """

    def __init__(self, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.weights = weights

    def encode(self, boxes: Float[Tensor, "*n 4"], regions: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
        """Return the deltas from ``regions`` to ``boxes``, both xyxy and of positive size."""
        x, y, width, height = _centre_and_size(boxes)
        region_x, region_y, region_width, region_height = _centre_and_size(regions)
        wx, wy, ww, wh = self.weights
        dx = wx * (x - region_x) / region_width
        dy = wy * (y - region_y) / region_height
        dw = ww * torch.log(width / region_width)
        dh = wh * torch.log(height / region_height)
        return torch.stack([dx, dy, dw, dh], dim=-1)

    def decode(self, box_deltas: Float[Tensor, "*n 4"], regions: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
        """Return the boxes xyxy of ``box_deltas`` applied to ``regions``; leading axes broadcast."""
        x, y, width, height = _centre_and_size(regions)
        dx, dy, dw, dh = (part / weight for part, weight in zip(box_deltas.unbind(-1), self.weights, strict=True))
        x, y = dx * width + x, dy * height + y
        half_width = 0.5 * (dw.clamp(max=LARGEST_LOG_SCALE).exp() * width)
        half_height = 0.5 * (dh.clamp(max=LARGEST_LOG_SCALE).exp() * height)
        return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


class LTRBCoder:
    """Encode boxes as distances from a location to the four edges, in strides (FCOS, arXiv:1904.01355, equation 1).

    A location is given as a square anchor around it, whose side is the stride. Departure, as in torchvision: ReLU instead
    of the paper's exponential, and division by the stride instead of learned scales.

    Examples
    --------
    >>> ltrb = LTRBCoder().encode(torch.tensor([[0.0, 0.0, 8.0, 16.0]]), torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
    >>> ltrb.tolist()
    [[0.5, 0.5, 1.5, 3.5]]
    """

    def encode(self, boxes: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
        """Return the distances to the left, top, right and bottom edge; negative if the location is outside the box."""
        x, y, width, height = _centre_and_size(anchors)
        x1, y1, x2, y2 = boxes.unbind(-1)
        return torch.stack([(x - x1) / width, (y - y1) / height, (x2 - x) / width, (y2 - y) / height], dim=-1)

    def decode(self, box_deltas: Float[Tensor, "*n 4"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
        """Return the boxes xyxy of predicted distances; negative ones count as 0."""
        x, y, width, height = _centre_and_size(anchors)
        left, top, right, bottom = F.relu(box_deltas).unbind(-1)
        return torch.stack([x - left * width, y - top * height, x + right * width, y + bottom * height], dim=-1)


def _centre_and_size(boxes: Float[Tensor, "*n 4"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
