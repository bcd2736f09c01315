"""The objects of one image, labelled or predicted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from otus.errors import ShapeError
from otus.structures import oriented
from otus.structures.boxes import as_boxes
from otus.structures.categories import Categories
from otus.structures.masks import Masks

_SHAPES: dict[str, tuple[int | None, ...]] = {
    "scores": (),
    "keypoints": (None, 3),
    "keypoint_scores": (None,),
    "oriented_boxes_xywhr": (5,),
    "cuboids": (7,),
    "amodal_boxes_xyxy": (4,),
}

_COLUMNS_IN_REPR = ("masks", "keypoints", "oriented_boxes_xywhr", "cuboids")


@dataclass(frozen=True, eq=False)
class Instances:
    """N objects of one image, as columns of equal length. Indexing filters all columns together.

    Parameters
    ----------
    boxes_xyxy
        (N, 4) float, pixels.
    labels
        (N,) int64, indices into ``categories``.
    size_hw
        The image's height and width.
    categories
        The categories that the labels index.
    scores
        (N,) scores of predictions, in [0, 1].
    masks, amodal_masks
        Masks of the visible parts, and of the whole objects with their hidden parts.
    keypoints, keypoint_scores
        (N, K, 3) x, y, visibility, and (N, K) scores of predicted keypoints.
    oriented_boxes_xywhr, cuboids, amodal_boxes_xyxy
        (N, 5) and (N, 7) as in :mod:`~otus.structures.oriented`; (N, 4) boxes of the whole objects.
    columns
        Further named arrays whose first axis is N, e.g. ``is_crowd``, ``difficult``, ``ids``.

    Examples
    --------
    >>> instances = Instances([[0, 0, 4, 4], [2, 2, 3, 3]], [0, 1], size_hw=(8, 8), scores=[0.9, 0.3])
    >>> len(instances), instances[instances.scores > 0.5].boxes_xyxy.tolist()
    (2, [[0.0, 0.0, 4.0, 4.0]])
    """

    boxes_xyxy: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    size_hw: tuple[int, int]
    categories: Categories | None = None
    scores: Float[np.ndarray, "n"] | None = None
    masks: Masks | None = None
    keypoints: Float[np.ndarray, "n k 3"] | None = None
    keypoint_scores: Float[np.ndarray, "n k"] | None = None
    oriented_boxes_xywhr: Float[np.ndarray, "n 5"] | None = None
    cuboids: Float[np.ndarray, "n 7"] | None = None
    amodal_boxes_xyxy: Float[np.ndarray, "n 4"] | None = None
    amodal_masks: Masks | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes_xyxy", as_boxes(self.boxes_xyxy))
        count = len(self.boxes_xyxy)
        labels = np.asarray(self.labels, dtype=np.int64).reshape(-1)
        object.__setattr__(self, "labels", labels)
        self._check("labels", labels.shape, (count,))
        if self.categories is not None and count and not (labels.min() >= 0 and labels.max() < len(self.categories)):
            raise ShapeError(f"labels: expected 0..{len(self.categories) - 1}, got {labels.min()}..{labels.max()}")
        for name, tail in _SHAPES.items():
            value = getattr(self, name)
            if value is None:
                continue
            array = np.asarray(value)
            if array.dtype not in (np.float32, np.float64):
                array = array.astype(np.float64)
            if array.size == 0 and array.ndim != len(tail) + 1:
                array = array.reshape(0, *(1 if size is None else size for size in tail))
            self._check(name, array.shape, (count, *tail))
            object.__setattr__(self, name, array)
        for name in ("masks", "amodal_masks"):
            masks = getattr(self, name)
            if masks is not None and (len(masks) != count or tuple(masks.size_hw) != tuple(self.size_hw)):
                raise ShapeError(
                    f"{name}: expected {count} of size {self.size_hw}, got {len(masks)} of {masks.size_hw}"
                )
        for name, column in self.columns.items():
            self._check(f"columns[{name!r}]", np.shape(column), (count, *np.shape(column)[1:]))

    @staticmethod
    def _check(name: str, actual: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
        fits = len(actual) == len(expected) and all(e is None or a == e for a, e in zip(actual, expected, strict=True))
        if not fits:
            shape = ", ".join("K" if size is None else str(size) for size in expected)
            raise ShapeError(f"{name}: expected shape ({shape}), got {actual}")

    @classmethod
    def empty(cls, size_hw: tuple[int, int], categories: Categories | None = None, **columns: Any) -> "Instances":
        """Return instances without objects for an image of ``size_hw``; ``columns`` are further fields, with 0 rows."""
        return cls(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), size_hw, categories, **columns)

    @classmethod
    def concatenate(cls, parts: Sequence["Instances"]) -> "Instances":
        """Concatenate objects of one image; all must have the same fields and named columns."""
        first = parts[0]
        changes: dict[str, Any] = {
            "columns": {name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns}
        }
        for attribute in fields(cls):
            values = [getattr(part, attribute.name) for part in parts]
            if attribute.name in ("size_hw", "categories", "columns") or values[0] is None:
                continue
            is_masks = isinstance(values[0], Masks)
            changes[attribute.name] = Masks.concatenate(values, first.size_hw) if is_masks else np.concatenate(values)
        return replace(first, **changes)

    def __repr__(self) -> str:
        kinds = [name.replace("_", " ") for name in _COLUMNS_IN_REPR if getattr(self, name) is not None]
        counts = np.bincount(self.labels, minlength=1) if len(self) else np.zeros(0, int)
        counted = [
            f"{count} {label if self.categories is None else self.categories[label]}"
            for label, count in enumerate(counts)
            if count
        ]
        more = f" and {len(counted) - 5} more categories" if len(counted) > 5 else ""
        height, width = self.size_hw
        what = ", ".join(counted[:5]) + more or "no objects"
        return f"Instances({what}; {width}x{height} pixels{''.join(f', {kind}' for kind in kinds)})"

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def __getitem__(self, index: Any) -> "Instances":
        """Return the chosen objects: a slice, an array of indices, a bool array, or one integer (still an Instances)."""
        if isinstance(index, int | np.integer):
            index = [int(index)]
        indices = np.arange(len(self))[index]
        changes: dict[str, Any] = {"columns": {name: np.asarray(c)[indices] for name, c in self.columns.items()}}
        for attribute in fields(self):
            value = getattr(self, attribute.name)
            if attribute.name not in ("size_hw", "categories", "columns") and value is not None:
                changes[attribute.name] = value[indices]
        return replace(self, **changes)

    def resized(self, size_hw: tuple[int, int]) -> "Instances":
        """Return the objects scaled to an image of ``size_hw``; the ratios are float32, as in torchvision.

        Where the two ratios differ, oriented boxes become the nearest rectangles. Cuboids, in world units, are not
        scaled.
        """
        if tuple(size_hw) == tuple(self.size_hw):
            return self
        ratio_y, ratio_x = (np.float32(b) / np.float32(a) for a, b in zip(self.size_hw, size_hw, strict=True))
        box_scale = np.array([ratio_x, ratio_y, ratio_x, ratio_y])
        changes: dict[str, Any] = {}
        for name in ("boxes_xyxy", "amodal_boxes_xyxy"):
            boxes = getattr(self, name)
            if boxes is not None:
                changes[name] = boxes * box_scale.astype(boxes.dtype)
        if self.keypoints is not None:
            changes["keypoints"] = self.keypoints * np.array([ratio_x, ratio_y, 1], dtype=self.keypoints.dtype)
        if self.oriented_boxes_xywhr is not None:
            scaled = oriented.from_corners(oriented.corners(self.oriented_boxes_xywhr) * box_scale[:2])
            changes["oriented_boxes_xywhr"] = scaled.astype(self.oriented_boxes_xywhr.dtype)
        for name in ("masks", "amodal_masks"):
            masks = getattr(self, name)
            if masks is not None:
                changes[name] = masks.resized(size_hw)
        if "areas" in self.columns:
            changes["columns"] = {**self.columns, "areas": self.columns["areas"] * (float(ratio_x) * float(ratio_y))}
        return replace(self, size_hw=size_hw, **changes)

    def __iter__(self) -> Iterator["Instances"]:
        return (self[i] for i in range(len(self)))

    def column(self, name: str, default: Any) -> np.ndarray:
        """Return a named column, or one filled with ``default`` if there is none."""
        return np.asarray(self.columns[name]) if name in self.columns else np.full(len(self), default)

    def with_columns(self, **columns: np.ndarray) -> "Instances":
        """Return the same objects with further or replaced named columns."""
        return replace(self, columns={**self.columns, **columns})
