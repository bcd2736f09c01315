"""Masks of the objects of one image, in one of three forms, with their IoU and boundary IoU.

Shape shorthand: N objects, H x W the image, h x w a small mask.

- dense: bool (N, H, W);
- RLE: COCO's compressed run lengths, the form that is stored and written;
- low resolution: probabilities (N, h, w) with the boxes that they fill, as Mask R-CNN predicts them. They are pasted
  into the image on demand, one at a time for RLE, so that memory does not grow with image size times objects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as rle_codec

from otus.errors import ShapeError
from otus.structures.boxes import as_boxes

_MAX_POLYGON_PX = 4e6


@dataclass(frozen=True, eq=False)
class Masks:
    """N masks of one image. Build by ``from_dense``, ``from_rle``, ``from_polygons`` or ``from_probabilities``.

    Indexing with a slice, an index array or a bool array keeps the form.

    Examples
    --------
    >>> masks = Masks.from_polygons([[np.array([[0, 0], [4, 0], [4, 2], [0, 2]])]], size_hw=(4, 6))
    >>> masks.area().tolist(), masks.boxes_xyxy().tolist()
    ([8.0], [[0.0, 0.0, 4.0, 2.0]])
    """

    size_hw: tuple[int, int]
    _dense: Bool[np.ndarray, "n h w"] | None = None
    _counts: tuple[bytes, ...] | None = None
    _probabilities: Float[np.ndarray, "n h w"] | None = None
    _boxes_xyxy: Float[np.ndarray, "n 4"] | None = None
    threshold: float = 0.5

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.size_hw[1]}x{self.size_hw[0]} pixels)"

    @classmethod
    def from_dense(cls, masks: np.ndarray) -> "Masks":
        """Make masks from an (N, H, W) array; nonzero pixels belong to the object."""
        masks = np.asarray(masks)
        if masks.ndim != 3:
            raise ShapeError(f"masks: expected shape (N, H, W), got {masks.shape}")
        return cls(size_hw=(masks.shape[1], masks.shape[2]), _dense=masks.astype(bool, copy=False))

    @classmethod
    def from_rle(cls, counts: Sequence[bytes | str | Sequence[int]], size_hw: tuple[int, int]) -> "Masks":
        """Make masks from N COCO run lengths (column-major): compressed (bytes or str), or lists of integers."""
        height, width = size_hw
        compressed: list[bytes] = []
        for index, runs in enumerate(counts):
            if isinstance(runs, bytes):
                compressed.append(runs)
            elif isinstance(runs, str):
                compressed.append(runs.encode("ascii"))
            else:
                total = int(sum(runs))
                if total != height * width or any(length < 0 for length in runs):
                    raise ShapeError(
                        f"masks: run lengths of mask {index} add up to {total}, expected {height * width} for {size_hw}"
                    )
                record = {"size": [height, width], "counts": [int(length) for length in runs]}
                compressed.append(rle_codec.frPyObjects(record, height, width)["counts"])
        return cls(size_hw=(int(height), int(width)), _counts=tuple(compressed))

    @classmethod
    def from_polygons(cls, polygons: Sequence[Sequence[np.ndarray]], size_hw: tuple[int, int]) -> "Masks":
        """Make masks from polygons, rasterised as COCO does: for each of N objects one or more rings (P, 2) of x, y."""
        height, width = size_hw
        counts = []
        for rings in polygons:
            flat = [np.asarray(ring, dtype=np.float64).reshape(-1).tolist() for ring in rings]
            if not flat:
                raise ShapeError("masks: an object without a polygon; give at least one ring of three points")
            _check_polygon_length(rings)
            counts.append(rle_codec.merge(rle_codec.frPyObjects(flat, height, width))["counts"])
        return cls(size_hw=(int(height), int(width)), _counts=tuple(counts))

    @classmethod
    def from_probabilities(
        cls,
        probabilities: Float[np.ndarray, "n h w"],
        boxes_xyxy: Float[np.ndarray, "n 4"],
        size_hw: tuple[int, int],
        *,
        threshold: float = 0.5,
    ) -> "Masks":
        """Make masks from low-resolution probabilities that fill boxes; a pixel is set if it is >= ``threshold``."""
        probabilities, boxes = np.asarray(probabilities), as_boxes(boxes_xyxy)
        if probabilities.ndim != 3 or len(probabilities) != len(boxes):
            raise ShapeError(
                f"masks: expected probabilities (N, h, w) for {len(boxes)} boxes, got {probabilities.shape}"
            )
        return cls(size_hw, _probabilities=probabilities, _boxes_xyxy=boxes, threshold=threshold)

    @classmethod
    def empty(cls, size_hw: tuple[int, int]) -> "Masks":
        """Return 0 masks of an image of ``size_hw``."""
        return cls(size_hw=size_hw, _counts=())

    @property
    def form(self) -> str:
        """The form: ``dense``, ``rle`` or ``low_resolution``."""
        if self._dense is not None:
            return "dense"
        return "rle" if self._counts is not None else "low_resolution"

    def __len__(self) -> int:
        for values in (self._dense, self._counts, self._probabilities):
            if values is not None:
                return len(values)
        raise ShapeError("masks: made without any of its forms; use a from_… constructor")

    def __getitem__(self, index: Any) -> "Masks":
        if isinstance(index, int | np.integer):
            index = [int(index)]
        indices = np.arange(len(self))[index]
        return Masks(
            size_hw=self.size_hw,
            _dense=None if self._dense is None else self._dense[indices],
            _counts=None if self._counts is None else tuple(self._counts[i] for i in indices),
            _probabilities=None if self._probabilities is None else self._probabilities[indices],
            _boxes_xyxy=None if self._boxes_xyxy is None else self._boxes_xyxy[indices],
            threshold=self.threshold,
        )

    def __iter__(self) -> Iterator[Bool[np.ndarray, "h w"]]:
        """Yield the dense masks one by one."""
        for i in range(len(self)):
            yield self[i].dense()[0]

    def parts(self) -> Iterator[tuple[int, int, Bool[np.ndarray, "_ _"]]]:
        """Yield the top, left and content of a window of the image for each mask; outside of it the mask is empty."""
        if self._probabilities is not None and self._boxes_xyxy is not None:
            for top, left, part in _pasted_parts(self._probabilities, self._boxes_xyxy, self.size_hw):
                yield top, left, part >= self.threshold
            return
        for mask, box in zip(self, self.boxes_xyxy().astype(np.int64).tolist(), strict=True):
            left, top, right, bottom = box
            yield top, left, mask[top:bottom, left:right]

    def dense(self) -> Bool[np.ndarray, "n h w"]:
        """Return all masks as bool (N, H, W)."""
        if self._dense is not None:
            return self._dense
        height, width = self.size_hw
        if self._counts is None:
            return self.probabilities() >= self.threshold
        if not self._counts:
            return np.zeros((0, height, width), dtype=bool)
        dense = np.empty((len(self), height, width), dtype=bool)
        for mask, encoded in zip(dense, self.rle(), strict=True):  # all at once, the codec would hold a second copy
            mask[:] = rle_codec.decode(encoded)
        return dense

    def probabilities(self) -> Float[np.ndarray, "n h w"]:
        """Return the pasted probabilities, float32 (N, H, W), 0 outside the boxes; for the low-resolution form only."""
        if self._probabilities is None or self._boxes_xyxy is None:
            raise ShapeError(f"masks: the {self.form} form has no probabilities")
        return paste(self._probabilities, self._boxes_xyxy, self.size_hw)

    def rle(self) -> list[dict[str, object]]:
        """Return N dicts ``{"size": [H, W], "counts": bytes}`` as in pycocotools."""
        size = [int(self.size_hw[0]), int(self.size_hw[1])]
        if self._counts is not None:
            return [{"size": size, "counts": counts} for counts in self._counts]
        if self._probabilities is not None:
            return [
                {"size": size, "counts": _encode_part(part, top, left, self.size_hw)}
                for top, left, part in self.parts()
            ]
        return [rle_codec.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in self]

    def rle_json(self) -> list[dict[str, object]]:
        """Return :meth:`rle` with the counts as str, for JSON."""
        return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in self.rle()]  # type: ignore[attr-defined]

    def to_rle(self) -> "Masks":
        """Return the same masks as RLE."""
        return self if self._counts is not None else Masks.from_rle([r["counts"] for r in self.rle()], self.size_hw)  # type: ignore[misc]

    @classmethod
    def concatenate(cls, many: Sequence["Masks"], size_hw: tuple[int, int]) -> "Masks":
        """Concatenate masks of one image, as RLE unless all are low-resolution maps of one shape."""
        shapes = {None if m._probabilities is None else (m._probabilities.shape[1:], m.threshold) for m in many}
        if len(shapes) == 1 and None not in shapes:
            return cls.from_probabilities(
                np.concatenate([m._probabilities for m in many if m._probabilities is not None]),
                np.concatenate([m._boxes_xyxy for m in many if m._boxes_xyxy is not None]),
                size_hw,
                threshold=many[0].threshold,
            )
        return cls(size_hw=size_hw, _counts=tuple(counts for m in many for counts in m.to_rle()._counts or ()))

    def moved(self, *, top: int, left: int, size_hw: tuple[int, int]) -> "Masks":
        """Convert masks of a crop at (``top``, ``left``) to masks of the whole image of ``size_hw``."""
        if self._probabilities is not None and self._boxes_xyxy is not None:
            shift = np.array([left, top, left, top], dtype=self._boxes_xyxy.dtype)
            return Masks.from_probabilities(
                self._probabilities, self._boxes_xyxy + shift, size_hw, threshold=self.threshold
            )
        return Masks.from_rle([_encode_part(mask, top, left, size_hw) for mask in self], size_hw)

    def resized(self, size_hw: tuple[int, int]) -> "Masks":
        """Resize the masks to an image of ``size_hw``.

        For low-resolution masks only the boxes are scaled; others become dense, by nearest-neighbour interpolation.
        """
        (height, width), (new_height, new_width) = self.size_hw, size_hw
        if self._probabilities is not None and self._boxes_xyxy is not None:
            boxes = self._boxes_xyxy
            ratio_x, ratio_y = (
                boxes.dtype.type(b) / boxes.dtype.type(a) for a, b in ((width, new_width), (height, new_height))
            )
            scaled = boxes * np.array([ratio_x, ratio_y, ratio_x, ratio_y])
            return replace(self, size_hw=size_hw, _boxes_xyxy=scaled)
        rows = np.arange(new_height) * height // new_height
        columns = np.arange(new_width) * width // new_width
        if self._counts is None:
            return Masks.from_dense(self.dense()[:, rows[:, None], columns])
        resized = np.zeros((len(self), *size_hw), dtype=bool)
        for mask, counts in zip(resized, self._counts, strict=True):
            _sample_runs(run_lengths(counts), rows, columns, height=height, out=mask)
        return Masks.from_dense(resized)

    def area(self) -> Float[np.ndarray, "n"]:
        """Return the area of each mask in pixels."""
        if self._dense is not None:
            return self._dense.sum(axis=(1, 2)).astype(np.float64)
        # Not pycocotools' own area: with numpy 2 it fails for more than 255 masks.
        areas = [run_lengths(rle["counts"])[1::2].sum() for rle in self.rle()]  # type: ignore[arg-type]
        return np.array(areas, dtype=np.float64)

    def boxes_xyxy(self) -> Float[np.ndarray, "n 4"]:
        """Return the tight box of each mask; (0, 0, 0, 0) for an empty one."""
        if len(self) == 0:
            return np.zeros((0, 4))
        boxes = np.asarray(rle_codec.toBbox(self.rle()), dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return np.where(self.area()[:, None] > 0, boxes, 0.0)

    def iou(self, other: "Masks", *, crowd: Bool[np.ndarray, "m"] | None = None) -> Float[np.ndarray, "n m"]:
        """Return the IoU of every mask with every mask of ``other``; with a crowd, intersection / area of this mask."""
        if self.size_hw != other.size_hw:
            raise ShapeError(f"masks: sizes differ, {self.size_hw} and {other.size_hw}")
        if len(self) == 0 or len(other) == 0:
            return np.zeros((len(self), len(other)))
        flags = np.zeros(len(other), dtype=np.uint8) if crowd is None else np.asarray(crowd, dtype=np.uint8)
        return np.asarray(rle_codec.iou(self.rle(), other.rle(), flags), dtype=np.float64)

    def boundary(self, *, dilation_ratio: float = 0.02) -> "Masks":
        """Return the boundary region of each mask: its pixels within a distance of its contour.

        Cheng et al., Boundary IoU, CVPR 2021: the distance is ``dilation_ratio`` of the image's diagonal, at least one
        pixel; the image's border counts as contour. Returns RLE.
        """
        height, width = self.size_hw
        distance = max(1, round(dilation_ratio * float(np.hypot(height, width))))
        inner = ((top, left, part & ~_erode(part, distance)) for top, left, part in self.parts())
        counts = tuple(_encode_part(part, top, left, self.size_hw) for top, left, part in inner)
        return Masks(self.size_hw, _counts=counts)

    def boundary_iou(self, other: "Masks", *, dilation_ratio: float = 0.02) -> Float[np.ndarray, "n m"]:
        """Return the IoU of the boundary regions, which is sensitive to the contours of large objects too."""
        return self.boundary(dilation_ratio=dilation_ratio).iou(other.boundary(dilation_ratio=dilation_ratio))


def _erode(mask: Bool[np.ndarray, "h w"], steps: int) -> Bool[np.ndarray, "h w"]:
    """Erode ``steps`` times by a 3 x 3 square, as one separable minimum filter; outside is background."""
    from scipy.ndimage import minimum_filter1d

    eroded = np.pad(mask, 1).astype(np.uint8)
    for axis in (0, 1):
        eroded = minimum_filter1d(eroded, size=2 * steps + 1, axis=axis, mode="constant", cval=0)
    return eroded[1:-1, 1:-1].astype(bool)


def _check_polygon_length(rings: Sequence[np.ndarray]) -> None:
    """Raise if a ring is too long: pycocotools needs memory in proportion to its length, and crashes without."""
    for ring in rings:
        points = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
        extent = float(np.abs(points).max(initial=0))
        if 2 * extent * len(points) <= _MAX_POLYGON_PX:  # an upper bound of the length
            continue
        if not extent <= _MAX_POLYGON_PX:
            raise ShapeError(
                f"masks: a polygon has coordinates up to {extent:.6g} pixels; the limit is {_MAX_POLYGON_PX:.6g}"
            )
        length = float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
        if length > _MAX_POLYGON_PX:
            raise ShapeError(f"masks: a polygon is {length:.6g} pixels long; the limit is {_MAX_POLYGON_PX:.6g}")


def paste(
    probabilities: Float[np.ndarray, "n h w"], boxes_xyxy: Float[np.ndarray, "n 4"], size_hw: tuple[int, int]
) -> Float[np.ndarray, "n H W"]:
    """Resize small maps bilinearly into their boxes: float32 (N, H, W), 0 outside.

    As torchvision and Detectron do: each map is padded by one pixel of zeros and its box enlarged to match, the corners
    are truncated to whole pixels, and the last pixel is included.
    """
    pasted = np.zeros((len(probabilities), *size_hw), dtype=np.float32)
    for canvas, (top, left, part) in zip(pasted, _pasted_parts(probabilities, boxes_xyxy, size_hw), strict=True):
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return pasted


def _pasted_parts(
    probabilities: Float[np.ndarray, "n h w"], boxes_xyxy: Float[np.ndarray, "n 4"], size_hw: tuple[int, int]
) -> Iterator[tuple[int, int, Float[np.ndarray, "_ _"]]]:
    """Yield the top, left and values of the part of the image that each map fills."""
    height, width = size_hw
    map_height, map_width = probabilities.shape[1:]
    padded = np.pad(probabilities.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    centre = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    scale = np.array([(map_width + 2) / map_width, (map_height + 2) / map_height], dtype=boxes_xyxy.dtype)
    half = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) / 2 * scale
    enlarged: Int[np.ndarray, "n 4"] = np.trunc(np.concatenate([centre - half, centre + half], axis=1)).astype(np.int64)
    for values, (x1, y1, x2, y2) in zip(padded, enlarged.tolist(), strict=True):
        box_height, box_width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        left, right = max(x1, 0), min(x1 + box_width, width)
        top, bottom = max(y1, 0), min(y1 + box_height, height)
        if left >= right or top >= bottom:
            yield 0, 0, np.zeros((0, 0), dtype=np.float32)
            continue
        rows = _bilinear_weights(box_height, map_height + 2, range(top - y1, bottom - y1))
        columns = _bilinear_weights(box_width, map_width + 2, range(left - x1, right - x1))
        yield top, left, rows @ values @ columns.T


def _encode_part(part: Bool[np.ndarray, "_ _"], top: int, left: int, size_hw: tuple[int, int]) -> bytes:
    """Return the compressed run lengths of a mask that is ``part`` at (``top``, ``left``) and empty elsewhere."""
    height, width = size_hw
    columns = np.zeros((height, part.shape[1]), dtype=np.int8)
    columns[top : top + part.shape[0]] = part
    changes = np.flatnonzero(np.diff(columns.ravel(order="F"), prepend=0, append=0)) + left * height
    runs = np.diff(np.concatenate([[0], changes, [height * width]]))
    record = {"size": [height, width], "counts": runs[: len(runs) - (runs[-1] == 0 and len(runs) > 1)].tolist()}
    return rle_codec.frPyObjects(record, height, width)["counts"]


def run_lengths(counts: bytes) -> Int[np.ndarray, "r"]:
    """Decode COCO's compressed run lengths: 5 bits per character; from the fourth on, runs minus the run two before."""
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((characters & 0x20) == 0) + 1
    starts = np.concatenate([[0], ends[:-1]])
    shifts = 5 * (np.arange(len(characters)) - np.repeat(starts, ends - starts))
    runs = np.add.reduceat((characters & 0x1F) << shifts, starts)
    runs -= ((characters[ends - 1] & 0x10) > 0) * (1 << 5 * (ends - starts))
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def _sample_runs(
    runs: Int[np.ndarray, "r"],
    rows: Int[np.ndarray, "h"],
    columns: Int[np.ndarray, "w"],
    *,
    height: int,
    out: Bool[np.ndarray, "h w"],
) -> None:
    """Write the given rows and columns (ascending) of a mask of ``height`` rows to ``out``.

    Only the columns that hold the object are decoded.
    """
    edges = np.cumsum(runs)
    if len(runs) < 2:
        return
    first, last = np.searchsorted(columns, [edges[0] // height, -(-edges[1::2][-1] // height)])
    if first >= last:
        return
    left, right = columns[first], columns[last - 1] + 1
    inside = np.diff(np.clip(edges, left * height, right * height), prepend=left * height)
    part = np.repeat(np.arange(len(runs)) % 2 == 1, inside).reshape(right - left, height)
    out[:, first:last] = part[np.ix_(columns[first:last] - left, rows)].T


def _bilinear_weights(output: int, source: int, pixels: range) -> Float[np.ndarray, "pixels source"]:
    """Return the weights of the source pixels for some output pixels (``align_corners=False``), one row per pixel."""
    position = np.maximum((np.arange(pixels.start, pixels.stop) + 0.5) * (source / output) - 0.5, 0)
    lower = np.minimum(position.astype(np.int64), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    weights = np.zeros((len(position), source), dtype=np.float32)
    fraction = (position - lower).astype(np.float32)
    rows = np.arange(len(position))
    np.add.at(weights, (rows, lower), 1 - fraction)
    np.add.at(weights, (rows, upper), fraction)
    return weights
