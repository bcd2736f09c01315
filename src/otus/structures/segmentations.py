"""Segmentations of many objects of many images, as files store them: polygons, RLE, or none.

Flat arrays with offsets rather than lists of objects, so that a data set of a million objects is a handful of arrays.
Shape shorthand: N objects, R rings (a ring is one closed polygon), P points, B bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Float, Int, UInt8

from otus.errors import ShapeError
from otus.structures.masks import Masks


class SegmentationKind(IntEnum):
    """The form in which an object's segmentation is stored."""

    NONE = 0
    POLYGONS = 1
    RLE = 2


@dataclass(frozen=True, eq=False)
class Segmentations:
    """Segmentations of N objects.

    Parameters
    ----------
    kinds
        (N,) values of :class:`SegmentationKind`.
    rings
        (N + 1,) offsets: object i has rings ``rings[i]`` to ``rings[i + 1]``.
    points
        (R + 1,) offsets: ring r has points ``points[r]`` to ``points[r + 1]``.
    points_xy
        (P, 2) float64, x, y in pixels.
    counts
        (N + 1,) offsets: the compressed COCO run lengths of object i are bytes ``counts[i]`` to ``counts[i + 1]``.
    counts_bytes
        (B,) uint8, the compressed run lengths.
    """

    kinds: UInt8[np.ndarray, "n"]
    rings: Int[np.ndarray, "n_plus_1"]
    points: Int[np.ndarray, "r_plus_1"]
    points_xy: Float[np.ndarray, "p 2"]
    counts: Int[np.ndarray, "n_plus_1"]
    counts_bytes: UInt8[np.ndarray, "b"]

    def __post_init__(self) -> None:
        if len(self.rings) != len(self.kinds) + 1 or len(self.counts) != len(self.kinds) + 1:
            raise ShapeError(
                f"segmentations: {len(self.kinds)} kinds need {len(self.kinds) + 1} offsets, "
                f"got {len(self.rings)} of rings and {len(self.counts)} of run lengths"
            )

    @classmethod
    def build(cls, values: Iterable[bytes | Sequence[np.ndarray] | None]) -> "Segmentations":
        """Make segmentations from one value per object: compressed run lengths (bytes), rings (P, 2), or None."""
        kinds: list[int] = []
        rings, points, counts = [0], [0], [0]
        arrays: list[np.ndarray] = []
        payload: list[bytes] = []
        for value in values:
            if value is None:
                kinds.append(SegmentationKind.NONE)
            elif isinstance(value, bytes):
                kinds.append(SegmentationKind.RLE)
                payload.append(value)
            else:
                kinds.append(SegmentationKind.POLYGONS)
                for ring in value:
                    array = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
                    arrays.append(array)
                    points.append(points[-1] + len(array))
            rings.append(len(points) - 1)
            counts.append(counts[-1] + (len(payload[-1]) if kinds[-1] == SegmentationKind.RLE else 0))
        return cls(
            kinds=np.array(kinds, dtype=np.uint8),
            rings=np.array(rings, dtype=np.int64),
            points=np.array(points, dtype=np.int64),
            points_xy=np.concatenate(arrays) if arrays else np.zeros((0, 2)),
            counts=np.array(counts, dtype=np.int64),
            counts_bytes=np.frombuffer(b"".join(payload), dtype=np.uint8),
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def polygons(self, index: int) -> list[Float[np.ndarray, "p 2"]]:
        """Return the rings of one object; [] if it has no polygons."""
        first, last = self.rings[index], self.rings[index + 1]
        return [self.points_xy[self.points[r] : self.points[r + 1]] for r in range(first, last)]

    def rle(self, index: int) -> bytes | None:
        """Return the compressed run lengths of one object; None if it is not stored as RLE."""
        if self.kinds[index] != SegmentationKind.RLE:
            return None
        return self.counts_bytes[self.counts[index] : self.counts[index + 1]].tobytes()

    def segmentation(self, index: int) -> bytes | list[np.ndarray] | None:
        """Return one object's segmentation in the form that :meth:`build` takes."""
        if self.kinds[index] == SegmentationKind.POLYGONS:
            return self.polygons(index)
        return self.rle(index)

    def masks(self, indices: Iterable[int], size_hw: tuple[int, int]) -> Masks | None:
        """Return the masks of some objects of one image as RLE; None if no object has a segmentation.

        An object without segmentation has an empty mask.
        """
        objects = [int(i) for i in indices]
        if not objects or not self.kinds[objects].any():
            return None
        height, width = size_hw
        empty = Masks.from_rle([[height * width]], size_hw)
        counts: list[bytes] = []
        for i in objects:
            kind = self.kinds[i]
            if kind == SegmentationKind.RLE:
                counts.append(self.rle(i) or b"")
                continue
            mask = Masks.from_polygons([self.polygons(i)], size_hw) if kind == SegmentationKind.POLYGONS else empty
            counts.append(mask.rle()[0]["counts"])  # type: ignore[arg-type]
        return Masks.from_rle(counts, size_hw)

    def take(self, indices: Iterable[int] | np.ndarray) -> "Segmentations":
        """Return the segmentations of some objects, in the given order."""
        objects = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64)
        ring_counts = np.diff(self.rings)[objects]
        rings = gather(np.arange(len(self.points) - 1), self.rings[objects], ring_counts)
        point_counts = np.diff(self.points)[rings]
        byte_counts = np.diff(self.counts)[objects]
        return Segmentations(
            kinds=self.kinds[objects],
            rings=offsets_of(ring_counts),
            points=offsets_of(point_counts),
            points_xy=gather(self.points_xy, self.points[rings], point_counts),
            counts=offsets_of(byte_counts),
            counts_bytes=gather(self.counts_bytes, self.counts[objects], byte_counts),
        )


def offsets_of(lengths: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n_plus_1"]:
    """Return the (N + 1,) offsets of N concatenated slices of these lengths."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def gather(
    values: np.ndarray, starts: Int[np.ndarray, "n"], lengths: Int[np.ndarray, "n"], out: np.ndarray | None = None
) -> np.ndarray:
    """Concatenate the slices ``values[starts[i] : starts[i] + lengths[i]]``, into ``out`` if given."""
    ends = offsets_of(lengths)
    gathered = np.empty((int(ends[-1]), *values.shape[1:]), dtype=values.dtype) if out is None else out
    step = 4096  # bounds the memory of the row indices
    for first in range(0, len(starts), step):
        batch = slice(first, first + step)
        low, high = ends[first], ends[min(first + step, len(starts))]
        rows = np.repeat(starts[batch] - ends[:-1][batch], lengths[batch]) + np.arange(low, high)
        gathered[low:high] = values[rows]
    return gathered
