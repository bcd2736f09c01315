"""Locations instead of anchors: the points of a feature map, and the object that each of them is matched to.

Shape shorthand: A locations of all feature maps, N objects, D numbers per box (4: xyxy, 5: xywhr).

Paper: FCOS (Tian et al., ICCV 2019, arXiv:1904.01355), section 3.1 (which locations are positive), 3.2 (each level has
a range of object sizes), equation 3 (centre-ness); sampling near the centre: arXiv:2006.09214, section 2.

A location is represented by a square anchor around it, whose side is the stride, so that dense detectors with and without
anchors share their code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from otus.parts.boxes.anchors import GridAnchorGenerator
from otus.parts.boxes.matching import NEGATIVE, NEUTRAL, pairwise_ioa

Geometry = Callable[[Float[Tensor, "a 2"], Float[Tensor, "n d"]], tuple[Tensor, Tensor, Tensor]]
"""Function of points and boxes: distances to the four edges (A, N, 4), offsets from the centres (A, N, 2), areas (N,)."""


def location_generator(strides: Sequence[int]) -> GridAnchorGenerator:
    """Return a generator of the locations of feature maps with these strides."""
    return GridAnchorGenerator([(stride,) for stride in strides], aspect_ratios=(1.0,))


def ltrb_geometry(points: Float[Tensor, "a 2"], boxes: Float[Tensor, "n 4"]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the :data:`Geometry` of boxes xyxy; the edges are left, top, right, bottom."""
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    ltrb = torch.cat([points[:, None] - corner, opposite - points[:, None]], dim=2)
    return ltrb, points[:, None] - (corner + opposite) / 2, (opposite - corner).prod(dim=1)


@dataclass(frozen=True)
class LocationMatcher:
    """Match each location to the smallest object that contains it, is centred near it and is of the level's size.

    Parameters
    ----------
    radius
        A location is near the centre if x and y differ by less than this many strides.
    geometry
        Computes distances and areas (default: for boxes xyxy).
    """

    radius: float = 1.5
    geometry: Geometry = ltrb_geometry

    def __call__(
        self,
        locations: Float[Tensor, "a 4"],
        boxes: Float[Tensor, "n d"],
        *,
        crowds: Float[Tensor, "c 4"] | None = None,
    ) -> Int[Tensor, "a"]:
        """Return the index of each location's object, or NEGATIVE, or NEUTRAL inside ``crowds``.

        A level is responsible for objects whose farthest edge is 4 to 8 strides away from the location, the finest level
        also for smaller ones and the coarsest also for larger ones.
        """
        points, strides = (locations[:, :2] + locations[:, 2:]) / 2, locations[:, 2] - locations[:, 0]
        matches = torch.full_like(strides, NEGATIVE, dtype=torch.int64)
        if len(boxes):
            edges, offsets, areas = self.geometry(points, boxes)
            farthest = edges.amax(dim=2)
            low = torch.where(strides == strides.min(), 0, strides * 4)[:, None]
            high = torch.where(strides == strides.max(), torch.inf, strides * 8)[:, None]
            fits = offsets.abs().amax(dim=2) < self.radius * strides[:, None]
            fits &= (edges.amin(dim=2) > 0) & (farthest > low) & (farthest < high)
            smallest, index = torch.where(fits, areas, torch.inf).min(dim=1)
            matches = torch.where(smallest.isfinite(), index, matches)
        if crowds is not None and len(crowds):
            matches[(matches == NEGATIVE) & (pairwise_ioa(locations, crowds) >= 0.5)] = NEUTRAL
        return matches


def centerness(ltrb: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """Compute sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)): 1 at the centre of a box, 0 at its edges (equation 3)."""
    near, far = ltrb[:, [0, 1]], ltrb[:, [2, 3]]
    return (torch.minimum(near, far) / torch.maximum(near, far)).prod(dim=1).sqrt()
