"""Oriented boxes as tensors: targets, their code, how alike two are for learning, and their suppression.

Shape shorthand: N boxes, A anchors. A box is xywhr: centre, width, height, and the angle in radians by which the width's
axis is turned from x towards y (:mod:`otus.structures.oriented`). (w, h, r), (w, h, r + pi) and (h, w, r + pi / 2) are the
same box.

Papers: boxes as Gaussians with mean at the centre and deviations along the sides: "Rethinking Rotated Object Detection with
Gaussian Wasserstein Distance Loss" (Yang et al., ICML 2021, arXiv:2101.11952), whose reason it is that such a loss has no
jump where one of those writings becomes the other; the distance used here is "Gaussian Bounding Boxes and Probabilistic
Intersection-over-Union" (Llerena et al., arXiv:2106.06072), equations 4 to 7 and L1.
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
    """The objects' oriented boxes; of an object without one, its upright box."""
    x1, y1, x2, y2 = target.boxes.unbind(1)
    upright = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, torch.zeros_like(x1)], dim=1)
    if target.corners is None:
        return upright
    turned = from_corners(target.corners)
    known = turned.isfinite().all(dim=1) & (turned[:, 2:4] > 0).all(dim=1)
    return torch.where(known[:, None], turned, upright)


def from_corners(points: Float[Tensor, "n 4 2"]) -> Float[Tensor, "n 5"]:
    """As :func:`otus.structures.oriented.from_corners`, for tensors."""
    sides = points.roll(-1, dims=1) - points
    lengths = sides.norm(dim=2)
    across = sides[:, 0] - sides[:, 2]
    width, height = (lengths[:, 0] + lengths[:, 2]) / 2, (lengths[:, 1] + lengths[:, 3]) / 2
    angle = torch.atan2(across[:, 1], across[:, 0])
    return torch.cat([points.mean(dim=1), torch.stack([width, height, angle], dim=1)], dim=1)


def in_frame_of(offsets: Float[Tensor, "*n 2"], boxes: Float[Tensor, "*n 5"]) -> Float[Tensor, "*n 2"]:
    """Offsets from the boxes' centres, along each box's own width and height."""
    x, y = offsets.unbind(-1)
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    return torch.stack([x * cos + y * sin, y * cos - x * sin], dim=-1)


class OrientedBoxCoder:
    """Centre and size in units of a square anchor, and the angle as cosine and sine of its double.

    Twice the angle is the same for r and r + pi, so that boxes that look alike have codes that are alike.

    Examples
    --------
    >>> transform, anchor = OrientedBoxCoder(), torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    >>> box = torch.tensor([[4.0, 8.0, 16.0, 8.0, 0.5]])
    >>> transform.decode(transform.encode(box, anchor), anchor).round(decimals=4).tolist()
    [[4.0, 8.0, 16.0, 8.0, 0.5]]
    """

    def encode(self, boxes: Float[Tensor, "*n 5"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 6"]:
        """dx, dy, log w, log h, cos 2r, sin 2r."""
        centre, size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
        angle = 2 * boxes[..., 4:]
        parts = [(boxes[..., :2] - centre) / size, (boxes[..., 2:4] / size).log(), angle.cos(), angle.sin()]
        return torch.cat(parts, dim=-1)

    def decode(self, box_deltas: Float[Tensor, "*n 6"], anchors: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 5"]:
        """The boxes xywhr of codes; r from -pi / 2 to pi / 2."""
        centre, size = (anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2:] - anchors[..., :2]
        side = box_deltas[..., 2:4].clamp(-_LARGEST_LOG_SIZE, _LARGEST_LOG_SIZE).exp() * size
        cos, sin = box_deltas[..., 4], box_deltas[..., 5]
        nowhere = (cos == 0) & (sin == 0)  # where atan2 has no gradient
        angle = torch.atan2(sin, torch.where(nowhere, 1.0, cos)) / 2
        return torch.cat([box_deltas[..., :2] * size + centre, side, angle[..., None]], dim=-1)


def gaussian_distance(found: Float[Tensor, "n 5"], boxes: Float[Tensor, "n 5"]) -> Float[Tensor, "n"]:
    """The Hellinger distance of the boxes' Gaussians: 0 where they are the same, towards 1 where they are far apart."""
    a1, b1, c1 = _covariance(found)
    a2, b2, c2 = _covariance(boxes)
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    dx, dy = (found[:, :2] - boxes[:, :2]).unbind(1)
    determinant = (a * b - c**2).clamp(min=_TINY)
    apart = (a * dy**2 + b * dx**2 - 2 * c * dx * dy) / determinant / 4
    product = ((a1 * b1 - c1**2).clamp(min=_TINY) * (a2 * b2 - c2**2).clamp(min=_TINY)).sqrt()
    unlike = (determinant / (4 * product)).clamp(min=1).log() / 2
    return (1 - torch.exp(-(apart + unlike)) + _TINY).sqrt()


def _covariance(boxes: Float[Tensor, "n 5"]) -> tuple[Tensor, Tensor, Tensor]:
    """Variance along x, along y, covariance; those of a uniform density over the box."""
    along, across = boxes[:, 2] ** 2 / 12, boxes[:, 3] ** 2 / 12
    cos, sin = boxes[:, 4].cos(), boxes[:, 4].sin()
    return along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


@dataclass(frozen=True)
class OrientedPostprocess(Postprocess):
    """A :class:`~otus.parts.postprocess.Postprocess` about oriented boxes, by their exact IoU."""

    def keep(
        self, boxes: Float[Tensor, "n 5"], scores: Float[Tensor, "n"], labels: Int[Tensor, "n"]
    ) -> Int[Tensor, "kept"]:
        """As :meth:`~otus.parts.postprocess.Postprocess.keep`."""
        return oriented_nms(boxes, scores, labels, iou_threshold=self.nms_iou, limit=self.max_detections)


def oriented_nms(
    boxes: Float[Tensor, "n 5"],
    scores: Float[Tensor, "n"],
    groups: Int[Tensor, "n"],
    *,
    iou_threshold: float,
    limit: int | None = None,
) -> Int[Tensor, "kept"]:
    """As :func:`~otus.parts.boxes.nms.batched_nms`, for oriented boxes, by their exact IoU."""
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
