"""Build columns while a file is read, so that records need not be kept in memory.

Shape shorthand: N objects, P points.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np
from jaxtyping import Int, UInt8
from pycocotools import mask as rle_codec

from otus.structures import SegmentationKind, Segmentations
from otus.structures.segmentations import gather, offsets_of


class ColumnBuilder:
    """A growing array with rows of shape ``tail``; missing rows are ``fill``."""

    def __init__(self, dtype: Any, *tail: int, fill: float = 0) -> None:
        self._row = int(np.prod(tail, dtype=np.int64))
        self.tail, self._fill = tail, fill
        self._values = np.empty(0, dtype=dtype)
        self._used = 0

    def extend(self, values: Any) -> None:
        """Append rows."""
        flat = np.asarray(values).reshape(-1)
        end = self._used + len(flat)
        if end > len(self._values):
            # Usually grows in place; a larger factor would touch memory that is never used.
            self._values.resize(max(end, len(self._values) * 9 // 8, 1024), refcheck=False)
        self._values[self._used : end] = flat
        self._used = end

    def pad(self, count: int) -> None:
        """Pad with ``fill`` to ``count`` rows."""
        missing = count * self._row - self._used
        if missing > 0:
            self.extend(np.full(missing, self._fill))

    @property
    def values(self) -> np.ndarray:
        """View of the rows so far, ``(N, *tail)``; release it before appending more."""
        return self._values[: self._used].reshape(-1, *self.tail)

    def finish(self) -> np.ndarray:
        """Return the rows ``(N, *tail)``; the builder cannot be used afterwards."""
        values, self._values = self._values, np.empty(0)
        values.resize(self._used, refcheck=False)
        return values.reshape(-1, *self.tail)


class JsonRLE(msgspec.Struct, gc=False):
    """COCO's run lengths as stored in JSON."""

    size: tuple[int, int]
    counts: str | list[int]


Coordinate = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]
"""Coordinates are limited because rasterising takes memory proportional to the length of a polygon."""
JsonSegmentation = list[list[Coordinate]] | JsonRLE | None


def segmentation_problem(segmentation: JsonSegmentation) -> tuple[str, str] | None:
    """Return the field and problem of a segmentation that is invalid regardless of its image; None if it is valid."""
    if isinstance(segmentation, list):
        for index, ring in enumerate(segmentation):
            if len(ring) < 6 or len(ring) % 2:
                return (
                    f"[{index}]",
                    f"expected a polygon of 3 points or more (6, 8, 10 … numbers), got {len(ring)} numbers",
                )
    elif segmentation is not None:
        height, width = segmentation.size
        if min(height, width) < 0 or max(height, width) > 1 << 30:
            return ".size", f"expected a height and a width, got {height} and {width}"
        if isinstance(segmentation.counts, list):
            if (segmentation.counts and min(segmentation.counts) < 0) or sum(segmentation.counts) != height * width:
                total = sum(segmentation.counts)
                return ".counts", f"expected runs that add up to {height} x {width}, got {total}"
        elif not segmentation.counts.isascii():
            return ".counts", "expected run lengths in ASCII"
    return None


class SegmentationBuilder:
    """Builds :class:`Segmentations`, and the size (N, 2) of each RLE (-1 for others).

    x and y are separate columns, so that reordering the objects doubles the memory of one of them only.
    """

    def __init__(self) -> None:
        self._kinds = ColumnBuilder(np.uint8)
        self._ring_counts, self._point_counts, self._byte_counts = (
            ColumnBuilder(np.int64),
            ColumnBuilder(np.int64),
            ColumnBuilder(np.int64),
        )
        self._points = [ColumnBuilder(np.float64), ColumnBuilder(np.float64)]
        self._bytes = ColumnBuilder(np.uint8)
        self._sizes_hw = ColumnBuilder(np.int32, 2, fill=-1)

    def pad(self, count: int) -> None:
        """Pad with objects without segmentation to ``count`` objects."""
        for column in (self._kinds, self._ring_counts, self._byte_counts, self._sizes_hw):
            column.pad(count)

    def extend(self, segmentations: Sequence[JsonSegmentation]) -> None:
        """Append objects whose segmentations have no :func:`segmentation_problem`."""
        kinds = np.zeros(len(segmentations), dtype=np.uint8)
        rings: list[list[float]] = []
        rle_bytes: list[bytes] = []
        ring_counts, byte_counts = (
            np.zeros(len(segmentations), dtype=np.int64),
            np.zeros(len(segmentations), dtype=np.int64),
        )
        sizes_hw = np.full((len(segmentations), 2), -1, dtype=np.int32)
        for i, segmentation in enumerate(segmentations):
            if not segmentation:
                continue
            if isinstance(segmentation, list):
                kinds[i], ring_counts[i] = SegmentationKind.POLYGONS, len(segmentation)
                rings += segmentation
            else:
                counts = _compressed(segmentation)
                kinds[i], byte_counts[i], sizes_hw[i] = SegmentationKind.RLE, len(counts), segmentation.size
                rle_bytes.append(counts)
        self._kinds.extend(kinds)
        self._ring_counts.extend(ring_counts)
        self._byte_counts.extend(byte_counts)
        self._sizes_hw.extend(sizes_hw)
        lengths = np.fromiter(map(len, rings), np.int64, len(rings))
        self._point_counts.extend(lengths // 2)
        points = np.fromiter(chain.from_iterable(rings), np.float64, int(lengths.sum()))
        for axis, column in enumerate(self._points):
            column.extend(points[axis::2])
        self._bytes.extend(np.frombuffer(b"".join(rle_bytes), dtype=np.uint8))

    def run_lengths(self) -> tuple[UInt8[np.ndarray, "n"], Int[np.ndarray, "n 2"], UInt8[np.ndarray, "b"], np.ndarray]:
        """Return kinds, RLE sizes, RLE bytes, and their offsets (N + 1,)."""
        return self._kinds.values, self._sizes_hw.values, self._bytes.values, offsets_of(self._byte_counts.values)

    def finish(self, order: Int[np.ndarray, "m"]) -> Segmentations:
        """Return the segmentations of the objects in ``order``; the builder cannot be used afterwards."""
        ring_counts, byte_counts = self._ring_counts.finish(), self._byte_counts.finish()
        point_counts = self._point_counts.finish()
        first_ring, first_byte, first_point = offsets_of(ring_counts), offsets_of(byte_counts), offsets_of(point_counts)
        rings = gather(np.arange(len(point_counts)), first_ring[order], ring_counts[order])
        points = np.empty((2, int(point_counts[rings].sum())))
        for axis in (0, 1):
            gather(self._points.pop(0).finish(), first_point[rings], point_counts[rings], out=points[axis])
        return Segmentations(
            kinds=self._kinds.finish()[order],
            rings=offsets_of(ring_counts[order]),
            points=offsets_of(point_counts[rings]),
            points_xy=points.T,
            counts=offsets_of(byte_counts[order]),
            counts_bytes=gather(self._bytes.finish(), first_byte[order], byte_counts[order]),
        )


def _compressed(segmentation: JsonRLE) -> bytes:
    if isinstance(segmentation.counts, str):
        return segmentation.counts.encode("ascii")
    record = {"size": list(segmentation.size), "counts": segmentation.counts}
    return bytes(rle_codec.frPyObjects(record, *segmentation.size)["counts"])
