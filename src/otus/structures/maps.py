"""Semantic and panoptic maps: a value for every pixel.

Shape shorthand: K categories, H x W pixels of the image, h x w pixels of a map of scores, which may be of any other
size.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.errors import ShapeError
from otus.structures.categories import Categories
from otus.structures.masks import Masks

IGNORE = 255
"""Label of the pixels that losses and metrics ignore."""


@dataclass(frozen=True, eq=False)
class SemanticMap:
    """The category of every pixel.

    Parameters
    ----------
    labels
        Integers (H, W): indices into ``categories``, or ``IGNORE`` (255).
    categories
        The categories that the labels index, at most 255.
    """

    labels: Int[np.ndarray, "h w"]
    categories: Categories

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
            raise ShapeError(f"semantic map: expected integers (H, W), got {labels.dtype} {labels.shape}")
        invalid = np.unique(labels[(labels != IGNORE) & ((labels < 0) | (labels >= len(self.categories)))])
        if len(invalid):
            raise ShapeError(
                f"semantic map: labels {invalid[:5].tolist()} are neither one of {len(self.categories)} categories "
                f"nor {IGNORE} (ignore)"
            )
        object.__setattr__(self, "labels", labels)

    def __repr__(self) -> str:
        names = [self.categories[int(label)] for label in np.unique(self.labels) if label != IGNORE]
        more = f" and {len(names) - 5} more categories" if len(names) > 5 else ""
        height, width = self.size_hw
        return f"SemanticMap({', '.join(names[:5])}{more}; {width}x{height} pixels)"

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.labels.shape[0], self.labels.shape[1]

    def resized(self, size_hw: tuple[int, int]) -> "SemanticMap":
        """Resize the map by nearest-neighbour interpolation."""
        return self if tuple(size_hw) == self.size_hw else replace(self, labels=_nearest(self.labels, size_hw))

    def relabelled(self, categories: Categories) -> "SemanticMap":
        """Return the map with labels that index another list of categories; pixels of other categories are ignored."""
        if self.categories.names == categories.names:
            return self
        lookup = np.full(IGNORE + 1, IGNORE, dtype=np.uint8)
        for label, name in enumerate(self.categories):
            if name in categories:
                lookup[label] = categories.index(name)
        return SemanticMap(lookup[self.labels], categories)

    def mask_of(self, category: str) -> Bool[np.ndarray, "h w"]:
        """Return the mask of one category."""
        return self.labels == self.categories.index(category)


@dataclass(frozen=True, eq=False)
class SemanticScores:
    """The score of every category at every pixel: the prediction of a segmenter before the argmax.

    The argmax is taken after the scores are resized: enlarged labels would have staircase outlines.

    Parameters
    ----------
    scores
        Float (K, h, w), logits or probabilities.
    categories
        The K categories, at most 255.
    """

    scores: Float[np.ndarray, "k h w"]
    categories: Categories

    def __post_init__(self) -> None:
        scores, count = np.asarray(self.scores), len(self.categories)
        if scores.ndim != 3 or scores.dtype.kind != "f" or len(scores) != count or not 0 < count <= IGNORE:
            raise ShapeError(
                f"semantic scores: expected floats (K, H, W) of {count} categories, from 1 to {IGNORE}, got "
                f"{scores.dtype} {scores.shape}"
            )
        object.__setattr__(self, "scores", scores)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the scores."""
        return self.scores.shape[1], self.scores.shape[2]

    def resized(self, size_hw: tuple[int, int]) -> SemanticMap:
        """Return the argmax over the categories of the scores resized to ``size_hw``.

        Scores are interpolated bilinearly (``align_corners=False``, no antialiasing), as torchvision and mmsegmentation
        do for evaluation. Only the uint8 labels take memory that grows with ``size_hw``.
        """
        from otus.structures._map_kernels import argmax_of_interpolated  # numba takes a second to import

        labels = np.empty(size_hw, dtype=np.uint8)
        argmax_of_interpolated(np.ascontiguousarray(self.scores, dtype=np.float32), labels)
        return SemanticMap(labels, self.categories)

    def add_resized(
        self,
        total: Float[np.ndarray, "k rows w2"],
        size_hw: tuple[int, int],
        *,
        first_row: int = 0,
        weights_yx: tuple[Float[np.ndarray, "rows"], Float[np.ndarray, "w2"]],
    ) -> None:
        """Resize the scores to ``size_hw`` and add some of the rows, weighted, to running sums.

        Parameters
        ----------
        total
            (K, rows, W2) float32, the sums; changed in place.
        size_hw
            Height and width (W2) of the image.
        first_row
            The row of the image that is the first of ``total``.
        weights_yx
            Weights of these rows, and of all columns.
        """
        from otus.structures._map_kernels import add_interpolated

        add_interpolated(total, np.ascontiguousarray(self.scores, dtype=np.float32), size_hw, first_row, *weights_yx)


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map: one object of a thing category, or all pixels of a stuff category.

    ``id`` is its value in the map, ``label`` its class index.
    """

    id: int
    label: int
    is_crowd: bool = False
    score: float | None = None


@dataclass(frozen=True, eq=False)
class PanopticMap:
    """Semantic and instance segmentation at once: every pixel belongs to at most one segment.

    Parameters
    ----------
    ids
        Integers (H, W): the id of the segment of each pixel, 0 for none.
    segments
        The segments, one per id.
    categories
        The categories that the segments' labels index.
    """

    ids: Int[np.ndarray, "h w"]
    segments: tuple[Segment, ...]
    categories: Categories

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ShapeError(f"panoptic map: expected integers (H, W), got {ids.dtype} {ids.shape}")
        known = {segment.id for segment in self.segments}
        unknown = sorted(_values(ids) - known - {0})
        if unknown:
            raise ShapeError(f"panoptic map: pixels have the ids {unknown[:5]}, which no segment has")
        if len(known) != len(self.segments) or 0 in known:
            raise ShapeError("panoptic map: the ids of segments must differ and not be 0")
        for segment in self.segments:
            if not 0 <= segment.label < len(self.categories):
                raise ShapeError(
                    f"panoptic map: segment {segment.id} has label {segment.label} of {len(self.categories)}"
                )
        object.__setattr__(self, "ids", ids)

    def __repr__(self) -> str:
        counts = Counter(self.categories[segment.label] for segment in self.segments)
        names = [name if count == 1 else f"{count} {name}" for name, count in counts.most_common(5)]
        more = f" and {len(counts) - 5} more categories" if len(counts) > 5 else ""
        return f"PanopticMap({', '.join(names)}{more}; {self.ids.shape[1]}x{self.ids.shape[0]} pixels)"

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.ids.shape[0], self.ids.shape[1]

    def resized(self, size_hw: tuple[int, int]) -> "PanopticMap":
        """Resize the map by nearest-neighbour interpolation; segments without a pixel left are dropped."""
        if tuple(size_hw) == self.size_hw:
            return self
        ids = _nearest(self.ids, size_hw)
        remaining = _values(ids)
        return replace(self, ids=ids, segments=tuple(segment for segment in self.segments if segment.id in remaining))

    def select(self, labels: Collection[int]) -> "PanopticMap":
        """Return the map with the segments of these labels only; the pixels of the others become 0."""
        kept = tuple(segment for segment in self.segments if segment.label in labels)
        if len(kept) == len(self.segments):
            return self
        ids = np.where(np.isin(self.ids, [segment.id for segment in kept]), self.ids, 0)
        return replace(self, ids=ids, segments=kept)

    def compact(self) -> "PanopticMap":
        """Return the map with ids of the smallest integer type that holds them."""
        return replace(self, ids=self.ids.astype(np.min_scalar_type(self.ids.max(initial=0))))

    def masks(self) -> Masks:
        """Return the mask of each segment, in the order of ``segments``, as RLE; only one is dense at a time."""
        from scipy.ndimage import find_objects

        order = np.argsort([segment.id for segment in self.segments])
        ids = np.array([0, *(self.segments[i].id for i in order)])
        ranks = np.searchsorted(ids, self.ids)
        masks = [Masks.from_dense(np.zeros((0, *self.size_hw)))] * len(order)
        for i, (index, window) in enumerate(zip(order, find_objects(ranks, max_label=len(order)), strict=True)):
            if window is None:
                masks[index] = Masks.from_dense(np.zeros((1, *self.size_hw)))
            else:
                crop = Masks.from_dense(ranks[window][None] == i + 1)
                masks[index] = crop.moved(top=window[0].start, left=window[1].start, size_hw=self.size_hw)
        return Masks.concatenate(masks, self.size_hw)

    def mask_of(self, segment_id: int) -> Bool[np.ndarray, "h w"]:
        """Return the mask of one segment."""
        return self.ids == segment_id

    def semantic(self) -> SemanticMap:
        """Return the semantic map, without instances."""
        if len(self.categories) > IGNORE:
            raise ShapeError(f"semantic map: {len(self.categories)} categories do not fit below {IGNORE}")
        labels = np.full(self.ids.shape, IGNORE, dtype=np.int64)
        for segment in self.segments:
            labels[self.ids == segment.id] = segment.label
        return SemanticMap(labels, self.categories)


def _nearest(values: Int[np.ndarray, "h w"], size_hw: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """Resize a map by nearest-neighbour interpolation."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size_hw, values.shape, strict=True))
    return values[rows[:, None], columns]


def _values(ids: Int[np.ndarray, "h w"]) -> set[int]:
    """Return the distinct values of a map; only the first pixel of each run of equal values is looked at, for speed."""
    flat = ids.ravel()
    return set(flat[np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1))].tolist())
