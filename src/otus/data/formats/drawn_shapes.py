"""Shapes of annotation tools, one object each: boxes, oriented boxes, polygons, ellipses and masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from otus.data.formats.polygons import polygon_area
from otus.structures import Categories, Masks, Objects, Segmentations, oriented

_ELLIPSE_POINTS = 64


@dataclass(frozen=True)
class DrawnShape:
    """One object of the image with index ``image``: its box, and the oriented box or segmentation that it encloses.

    ``segmentation`` is a list of one ring (P, 2), or compressed run lengths.
    """

    image: int
    label: str
    box_xyxy: Float[np.ndarray, "4"]
    area: float
    corners_xy: Float[np.ndarray, "4 2"] | None = None
    segmentation: bytes | list[np.ndarray] | None = None


def box_shape(image: int, label: str, box_xyxy: Sequence[float]) -> DrawnShape:
    """Return a box; its two corners may come in any order."""
    corners = np.array(box_xyxy, dtype=np.float64).reshape(2, 2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    return DrawnShape(image, label, np.concatenate([low, high]), float(np.prod(high - low)))


def oriented_shape(image: int, label: str, box_xywhr: Sequence[float]) -> DrawnShape:
    """Return an oriented box from its centre, width, height and angle (radians, clockwise on a screen)."""
    corners = oriented.corners(np.array([box_xywhr], dtype=np.float64))[0]
    return DrawnShape(image, label, _enclosing_box(corners), polygon_area(corners), corners_xy=corners)


def polygon_shape(image: int, label: str, ring: Float[np.ndarray, "p 2"]) -> DrawnShape:
    """Return a polygon; ValueError if it has fewer than three points."""
    if len(ring) < 3:
        raise ValueError(f"expected 3 or more points of a polygon, got {ring.tolist()}")
    return DrawnShape(image, label, _enclosing_box(ring), polygon_area(ring), segmentation=[ring])


def ellipse_shape(
    image: int, label: str, centre_xy: Sequence[float], radii: Sequence[float], angle: float
) -> DrawnShape:
    """Return an ellipse, rotated by an angle (radians, clockwise on the screen), as a polygon of 64 points."""
    angles = np.arange(_ELLIPSE_POINTS) * (2 * np.pi / _ELLIPSE_POINTS)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radii)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return polygon_shape(image, label, points @ rotation + np.asarray(centre_xy))


def mask_shape(image: int, label: str, mask: Bool[np.ndarray, "h w"]) -> DrawnShape:
    """Return a mask of the size of the image; ValueError if it is empty."""
    masks = Masks.from_dense(mask[None])
    counts: Any = masks.rle()[0]["counts"]
    if not mask.any():
        raise ValueError("expected a mask with pixels, got an empty one")
    return DrawnShape(image, label, masks.boxes_xyxy()[0], float(masks.area()[0]), segmentation=counts)


def _enclosing_box(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "4"]:
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def shapes_to_objects(
    shapes: Sequence[DrawnShape], categories: Categories, columns: Mapping[str, np.ndarray] | None = None
) -> Objects:
    """Convert shapes to objects; ``columns`` are further named columns."""
    optional: dict[str, Any] = {}
    if any(shape.corners_xy is not None for shape in shapes):
        missing = np.full((4, 2), np.nan)
        optional["corners_xy"] = np.array(
            [missing if shape.corners_xy is None else shape.corners_xy for shape in shapes]
        )
    if any(shape.segmentation is not None for shape in shapes):
        optional["segmentations"] = Segmentations.build([shape.segmentation for shape in shapes])
    return Objects.build(
        image_index=[shape.image for shape in shapes],
        labels=[categories.index(shape.label) for shape in shapes],
        boxes_xyxy=np.array([shape.box_xyxy for shape in shapes]),
        areas=[shape.area for shape in shapes],
        columns=columns or {},
        **optional,
    )
