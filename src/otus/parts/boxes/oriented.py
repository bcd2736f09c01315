"""Oriented boxes as tensors: targets, box coder, loss, and NMS.

Shape shorthand: N boxes, A anchors. A box is xywhr: centre, width, height, and the angle in radians of the width's axis,
from x towards y (:mod:`otus.structures.oriented`). (w, h, r), (w, h, r + pi) and (h, w, r + pi / 2) are the same box.

Papers: boxes as Gaussians with their mean at the centre and their standard deviations along the sides: "Rethinking Rotated
Object Detection with Gaussian Wasserstein Distance Loss" (Yang et al., ICML 2021, arXiv:2101.11952); such a loss is the
same for all three representations of a box, and continuous. The distance used here is that of "Gaussian Bounding Boxes and
Probabilistic Intersection-over-Union" (ProbIoU, Llerena et al., arXiv:2106.06072), equations 4 to 7 and its loss L1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.batching import Target
from otus.parts.boxes import _nms_kernels as kernels
from otus.parts.postprocess import Postprocess
from otus.structures.oriented import corners, enclosing_boxes

_LARGEST_LOG_SIZE = math.log(1000 / 8)
_TINY = 1e-7


def oriented_boxes(target: Target) -> Float[Tensor, "n 5"]:
    """Return the oriented box of each object; its upright box if it has none."""
    x1, y1, x2, y2 = target.boxes.unbind(1)
    upright = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, torch.zeros_like(x1)], dim=1)
    if target.corners is None:
        return upright
    oriented = from_corners(target.corners)
    valid = oriented.isfinite().all(dim=1) & (oriented[:, 2:4] > 0).all(dim=1)
    return torch.where(valid[:, None], oriented, upright)


def from_corners(points: Float[Tensor, "n 4 2"]) -> Float[Tensor, "n 5"]:
    """Convert corners to boxes xywhr, as :func:`otus.structures.oriented.from_corners` does for arrays."""
    edges = points.roll(-1, dims=1) - points
    lengths = edges.norm(dim=2)
    width_axis = edges[:, 0] - edges[:, 2]
    width, height = (lengths[:, 0] + lengths[:, 2]) / 2, (lengths[:, 1] + lengths[:, 3]) / 2
    angle = torch.atan2(width_axis[:, 1], width_axis[:, 0])
    return torch.cat([points.mean(dim=1), torch.stack([width, height, angle], dim=1)], dim=1)


def to_box_frame(offsets: Float[Tensor, "*n 2"], boxes: Float[Tensor, "*n 5"]) -> Float[Tensor, "*n 2"]:
    """Rotate offsets from the boxes' centres to the axes of each box: along its width, along its height."""
    x, y = offsets.unbind(-1)
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return torch.stack([x * cos + y * sin, y * cos - x * sin], dim=-1)


class OrientedBoxCoder:
    """Encode centre and size relative to a square anchor, and the angle r as cosine and sine of 2r.

    2r is equal, modulo 2 pi, for r and r + pi, which describe the same box.

    Examples
    --------
    >>> box_coder, anchor = OrientedBoxCoder(), torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    >>> box = torch.tensor([[4.0, 8.0, 16.0, 8.0, 0.5]])
    >>> box_coder.decode(box_coder.encode(box, anchor), anchor).round(decimals=4).tolist()
    [[4.0, 8.0, 16.0, 8.0, 0.5]]
    """

    def encode(self, boxes: Float[Tensor, "*n 5"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 6"]:
        """Return the deltas dx, dy, log w, log h, cos 2r, sin 2r of boxes relative to anchors."""
        centre, size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
        angle = 2 * boxes[..., 4:]
        parts = [(boxes[..., :2] - centre) / size, (boxes[..., 2:4] / size).log(), angle.cos(), angle.sin()]
        return torch.cat(parts, dim=-1)

    def decode(self, box_deltas: Float[Tensor, "*n 6"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 5"]:
        """Return the boxes xywhr of deltas relative to anchors; r is between -pi / 2 and pi / 2."""
        centre, size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
        box_sizes = box_deltas[..., 2:4].clamp(-_LARGEST_LOG_SIZE, _LARGEST_LOG_SIZE).exp() * size
        cos, sin = box_deltas[..., 4], box_deltas[..., 5]
        is_zero = (cos == 0) & (sin == 0)  # where atan2 has no gradient
        angle = torch.atan2(sin, torch.where(is_zero, 1.0, cos)) / 2
        return torch.cat([box_deltas[..., :2] * size + centre, box_sizes, angle[..., None]], dim=-1)


def gaussian_distance(predicted: Float[Tensor, "n 5"], target: Float[Tensor, "n 5"]) -> Float[Tensor, "n"]:
    """Compute the Hellinger distance of the Gaussians of boxes: about 0 if equal, near 1 if far apart.

    It is sqrt(1 - exp(-B)), B the Bhattacharyya distance: a term of the centres and one of the covariances.
    """
    a1, b1, c1 = _covariance(predicted)
    a2, b2, c2 = _covariance(target)
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    dx, dy = (predicted[:, :2] - target[:, :2]).unbind(1)
    determinant = (a * b - c**2).clamp(min=_TINY)
    centre_term = (a * dy**2 + b * dx**2 - 2 * c * dx * dy) / determinant / 4
    product = ((a1 * b1 - c1**2).clamp(min=_TINY) * (a2 * b2 - c2**2).clamp(min=_TINY)).sqrt()
    covariance_term = (determinant / (4 * product)).clamp(min=1).log() / 2
    return (1 - torch.exp(-(centre_term + covariance_term)) + _TINY).sqrt()


def _covariance(boxes: Float[Tensor, "n 5"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the variances along x and y and the covariance of a uniform density over each box."""
    width_variance, height_variance = boxes[:, 2] ** 2 / 12, boxes[:, 3] ** 2 / 12
    cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
    return (
        width_variance * cos**2 + height_variance * sin**2,
        width_variance * sin**2 + height_variance * cos**2,
        (width_variance - height_variance) * cos * sin,
    )


@dataclass(frozen=True)
class OrientedPostprocess(Postprocess):
    """A :class:`~otus.parts.postprocess.Postprocess` for oriented boxes: NMS uses their exact IoU."""

    def keep(
        self, boxes: Float[Tensor, "n 5"], scores: Float[Tensor, "n"], labels: Int[Tensor, "n"]
    ) -> Int[Tensor, "kept"]:
        """Return the indices of the boxes that remain after NMS and the limit, highest score first."""
        return oriented_nms(boxes, scores, labels, iou_threshold=self.nms_iou, limit=self.max_detections)


def oriented_nms(
    boxes: Float[Tensor, "n 5"],
    scores: Float[Tensor, "n"],
    groups: Int[Tensor, "n"],
    *,
    iou_threshold: float,
    limit: int | None = None,
) -> Int[Tensor, "kept"]:
    """Return the indices of oriented boxes that remain after NMS within each group, highest score first.

    Parameters are those of :func:`~otus.parts.boxes.nms.batched_nms`, except for the boxes (xywhr); the IoU is exact.
    """
    boxes_xywhr = boxes.detach().cpu().double().numpy()
    kept = kernels.keep_greedily(
        scores.detach().argsort(descending=True, stable=True).cpu().numpy(),
        groups.contiguous().cpu().numpy(),
        enclosing_boxes(boxes_xywhr),
        boxes_xywhr[:, 2:4].prod(axis=1),
        corners(boxes_xywhr),
        float(iou_threshold),
        len(boxes) if limit is None else limit,
    )
    return torch.from_numpy(kept).to(boxes.device)
