"""Objects of many images: the labels of a data set, or predictions for it.

Shape shorthand: N objects, K keypoints. :class:`~otus.structures.instances.Instances` holds the objects of one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.errors import ShapeError
from otus.structures.segmentations import SegmentationKind, Segmentations


@dataclass(frozen=True, eq=False)
class Objects:
    """The N objects of a data set, or of its predictions, as columns, ordered by image.

    Parameters
    ----------
    image_index
        (N,) index of the image; must not decrease (:meth:`build` sorts).
    labels, boxes_xyxy
        (N,) class indices, (N, 4).
    ids
        (N,) annotation ids of the source.
    areas
        (N,) areas in square pixels: as the source states, else of the mask or the box.
    is_crowd
        (N,) COCO's crowd regions, of many objects that are not annotated one by one. Those with the column ``ignored``
        are ignore regions of all categories, for metrics and training (:mod:`otus.metrics.detection.ignore_regions`).
    segmentations
        Polygons or RLE.
    scores
        (N,) scores of predictions.
    keypoints
        (N, K, 3) x, y, visibility; all 0 for an object without keypoints.
    corners_xy
        (N, 4, 2) corners of oriented boxes as in the source; NaN for an object without one.
    cuboids
        (N, 7), see :mod:`~otus.structures.oriented`; NaN for an object without one.
    amodal_boxes_xyxy, amodal_segmentations
        Boxes and segmentations of the whole objects with their hidden parts.
    columns
        Further columns: ``difficult``, ``truncated``, ``occluded``, ``predicted_iou`` …
    """

    image_index: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]
    boxes_xyxy: Float[np.ndarray, "n 4"]
    ids: Int[np.ndarray, "n"]
    areas: Float[np.ndarray, "n"]
    is_crowd: Bool[np.ndarray, "n"]
    segmentations: Segmentations | None = None
    scores: Float[np.ndarray, "n"] | None = None
    keypoints: Float[np.ndarray, "n k 3"] | None = None
    corners_xy: Float[np.ndarray, "n 4 2"] | None = None
    cuboids: Float[np.ndarray, "n 7"] | None = None
    amodal_boxes_xyxy: Float[np.ndarray, "n 4"] | None = None
    amodal_segmentations: Segmentations | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.image_index)
        for attribute in fields(self):
            value = getattr(self, attribute.name)
            if attribute.name != "columns" and value is not None and len(value) != count:
                raise ShapeError(f"objects: expected {count} {attribute.name}, one per object, got {len(value)}")
        for name, column in self.columns.items():
            if len(column) != count:
                raise ShapeError(f"objects: expected {count} values in column {name!r}, got {len(column)}")
        if count and (np.diff(self.image_index) < 0).any():
            raise ShapeError("objects: must be ordered by image; use Objects.build")

    @classmethod
    def build(
        cls,
        *,
        image_index: Sequence[int] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        boxes_xyxy: Sequence[Sequence[float]] | np.ndarray,
        ids: Sequence[int] | np.ndarray | None = None,
        areas: Sequence[float] | np.ndarray | None = None,
        is_crowd: Sequence[bool] | np.ndarray | None = None,
        **others: Any,
    ) -> "Objects":
        """Make objects from columns in any order of images (defaults: ids 1..N, areas of the boxes, no crowds)."""
        image_index = np.asarray(image_index, dtype=np.int64).reshape(-1)
        count = len(image_index)
        boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
        size = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
        objects = cls(
            image_index=np.zeros(count, dtype=np.int64),  # sorted below
            labels=np.asarray(labels, dtype=np.int64).reshape(-1),
            boxes_xyxy=boxes,
            ids=np.arange(1, count + 1) if ids is None else np.asarray(ids, dtype=np.int64).reshape(-1),
            areas=size[:, 0] * size[:, 1] if areas is None else np.asarray(areas, dtype=np.float64).reshape(-1),
            is_crowd=np.zeros(count, dtype=bool) if is_crowd is None else np.asarray(is_crowd, dtype=bool).reshape(-1),
            **others,
        )
        if (np.diff(image_index) >= 0).all():
            return replace(objects, image_index=image_index)
        order = np.argsort(image_index, kind="stable")
        return replace(objects.take(order), image_index=image_index[order])

    @classmethod
    def empty(cls) -> "Objects":
        """Return no objects."""
        return cls.build(image_index=[], labels=[], boxes_xyxy=[])

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def has_mask(self) -> Bool[np.ndarray, "n"]:
        """(N,) which objects have a segmentation and are no crowds."""
        if self.segmentations is None:
            return np.zeros(len(self), dtype=bool)
        return (self.segmentations.kinds != SegmentationKind.NONE) & ~self.is_crowd

    @property
    def has_keypoints(self) -> Bool[np.ndarray, "n"]:
        """(N,) which objects have a labelled keypoint and are no crowds."""
        if self.keypoints is None:
            return np.zeros(len(self), dtype=bool)
        return (self.keypoints[..., 2] > 0).any(axis=1) & ~self.is_crowd

    def take(self, index: Any) -> "Objects":
        """Return some objects, by an index array that keeps the order of images or by a bool array."""
        indices = np.arange(len(self))[index]
        changes: dict[str, Any] = {"columns": {name: column[indices] for name, column in self.columns.items()}}
        for attribute in fields(self):
            value = getattr(self, attribute.name)
            if attribute.name != "columns" and value is not None:
                changes[attribute.name] = value.take(indices) if isinstance(value, Segmentations) else value[indices]
        return replace(self, **changes)
