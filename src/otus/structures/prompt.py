"""Prompts (what a person marks on an image) and the masks predicted for them: one interface for all promptable methods.

Shape shorthand: N points, P points of a stroke, M candidate masks, H x W the image.

Labels are 0 for background and 1 for the object; several objects are numbered 1, 2 …
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus.errors import DataError, ShapeError
from otus.structures.masks import Masks, run_lengths

BACKGROUND = 0
"""Label of background."""
UNMARKED = -1
"""Label of pixels without a mark."""
MAX_OBJECTS = 254
"""Highest number of an object."""


@dataclass(frozen=True, eq=False)
class Stroke:
    """One brush stroke.

    Parameters
    ----------
    points_xy
        (P, 2) vertices of the line that the brush follows, x, y in pixels.
    label
        0 for background, else the number of the object.
    width
        Width of the brush in pixels.
    """

    points_xy: Float[np.ndarray, "p 2"]
    label: int
    width: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "points_xy", _as_points("stroke", self.points_xy))
        _check_labels("stroke", np.array([self.label]))
        if not len(self.points_xy):
            raise ShapeError("stroke: expected at least one point, got none")
        if not 0 < self.width < math.inf:
            raise ShapeError(f"stroke: expected a positive width in pixels, got {self.width}")


@dataclass(frozen=True, eq=False)
class Prompt:
    """Points, strokes, scribbles, a box, a mask and a text that mark objects in an image; all are optional.

    Which of them are supported depends on the method.

    Parameters
    ----------
    points_xy
        (N, 2) x, y in pixels; a point lies in pixel (floor(y), floor(x)).
    point_labels
        (N,) 0 for background, else the number of the object.
    strokes
        Brush strokes.
    scribbles
        Label image (H, W) of the image's size: -1 for unmarked, 0 for background, else the number of the object.
    box_xyxy
        A box around the object.
    mask
        (H, W) a mask to refine, e.g. that of the previous prompt or the previous frame.
    text
        A description in words.

    Raises
    ------
    ShapeError
        If a shape, label or coordinate is invalid.

    Examples
    --------
    >>> prompt = Prompt(points_xy=[[250, 180], [20, 20]], point_labels=[1, 0])
    >>> prompt.to_json()
    {'points': [[250.0, 180.0, 1], [20.0, 20.0, 0]]}
    >>> Prompt.from_json(prompt.to_json()).num_objects
    1
    """

    points_xy: Float[np.ndarray, "n 2"] | Sequence[Sequence[float]] = ()
    point_labels: Int[np.ndarray, "n"] | Sequence[int] = ()
    strokes: Sequence[Stroke] = ()
    scribbles: Int[np.ndarray, "h w"] | None = None
    box_xyxy: Float[np.ndarray, "4"] | Sequence[float] | None = None
    mask: Bool[np.ndarray, "h w"] | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        points, labels = _as_points("points", self.points_xy), np.asarray(self.point_labels)
        if labels.shape != (len(points),):
            raise ShapeError(f"point_labels: expected {len(points)} labels, one per point, got shape {labels.shape}")
        _check_labels("point_labels", labels)
        object.__setattr__(self, "points_xy", points)
        object.__setattr__(self, "point_labels", labels.astype(np.int64))
        object.__setattr__(self, "strokes", tuple(self.strokes))
        if self.scribbles is not None:
            scribbles = np.asarray(self.scribbles)
            if scribbles.ndim != 2 or scribbles.dtype.kind not in "iu":
                raise ShapeError(f"scribbles: expected integers (H, W), got {scribbles.dtype} {scribbles.shape}")
            _check_labels("scribbles", scribbles[scribbles != UNMARKED])
            object.__setattr__(self, "scribbles", scribbles.astype(np.int16))
        if self.box_xyxy is not None:
            box = np.asarray(self.box_xyxy, dtype=np.float64)
            if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] <= box[:2]).any():
                raise ShapeError(f"box_xyxy: expected x1, y1, x2, y2 with x1 < x2 and y1 < y2, got {box.tolist()}")
            object.__setattr__(self, "box_xyxy", box)
        if self.mask is not None:
            mask = np.asarray(self.mask)
            if mask.ndim != 2 or mask.dtype.kind not in "biu":
                raise ShapeError(f"mask: expected bool or integers (H, W), got {mask.dtype} {mask.shape}")
            object.__setattr__(self, "mask", mask.astype(bool))

    @property
    def num_objects(self) -> int:
        """The highest number of a marked object; at least 1 with a box, mask or text, 0 if no object is marked."""
        labels = [int(self.point_labels.max(initial=0)), *(stroke.label for stroke in self.strokes)]  # type: ignore[union-attr]
        if self.scribbles is not None:
            labels.append(int(self.scribbles.max(initial=0)))
        has_unnumbered = any(part is not None for part in (self.box_xyxy, self.mask, self.text))
        return max(*labels, int(has_unnumbered))

    def seeds(self, size_hw: tuple[int, int], *, point_radius: float = 0.0) -> Int[np.ndarray, "h w"]:
        """Rasterise points, strokes and scribbles to a label image (H, W), -1 for unmarked pixels.

        Parameters
        ----------
        size_hw
            Height and width of the image.
        point_radius
            Radius of the disc that a point marks, in pixels; where discs overlap, the nearest point's label is taken. Pixels
            with another mark keep its label.

        Raises
        ------
        ShapeError
            If the prompt does not fit the image (see :meth:`check_size`), or a pixel has two labels.
        """
        self.check_size(size_hw)
        seeds = np.full(size_hw, UNMARKED, np.int16) if self.scribbles is None else np.array(self.scribbles, np.int16)
        for stroke in self.strokes:
            marked = _stroke_mask(stroke, size_hw)
            _check_conflict(seeds, marked, stroke.label)
            seeds[marked] = stroke.label
        points, labels = np.asarray(self.points_xy), np.asarray(self.point_labels)
        columns, rows = np.floor(points).astype(np.int64).T if len(points) else np.zeros((2, 0), np.int64)
        for row, column, label in zip(rows, columns, labels, strict=True):
            marked = np.zeros(size_hw, bool)
            marked[row, column] = True
            _check_conflict(seeds, marked, label)
            seeds[row, column] = label
        if len(points) and point_radius > 0:
            _mark_discs(seeds, rows, columns, labels, point_radius)
        return seeds

    def check_size(self, size_hw: tuple[int, int]) -> None:
        """Check that the prompt fits an image.

        Raises
        ------
        ShapeError
            If a point or stroke lies outside the image, the box does not overlap it, or scribbles or mask have another size.
        """
        height, width = size_hw
        for name, plane in (("scribbles", self.scribbles), ("mask", self.mask)):
            if plane is not None and plane.shape != (height, width):
                got = f"{plane.shape[1]}x{plane.shape[0]}"
                raise ShapeError(f"{name}: expected the size of the image, {width}x{height}, got {got}")
        marks = [("points", self.points_xy), *(("strokes", stroke.points_xy) for stroke in self.strokes)]
        for name, points_xy in marks:
            points = np.asarray(points_xy)
            outside = (points < 0).any(axis=1) | (points >= [width, height]).any(axis=1)
            if outside.any():
                x, y = points[outside][0]
                raise ShapeError(f"{name}: ({x:g}, {y:g}) lies outside the image of {width}x{height} pixels")
        if self.box_xyxy is not None:
            x1, y1, x2, y2 = self.box_xyxy
            if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
                box = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
                raise ShapeError(f"box_xyxy: {box} lies outside the image of {width}x{height} pixels")

    def to_json(self) -> dict[str, Any]:
        """Return the prompt as a JSON object of the parts that are set; scribbles and mask as COCO's compressed RLE."""
        document: dict[str, Any] = {}
        if len(self.points_xy):
            pairs = zip(np.asarray(self.points_xy).tolist(), np.asarray(self.point_labels).tolist(), strict=True)
            document["points"] = [[*point, label] for point, label in pairs]
        if self.strokes:
            document["strokes"] = [
                {"label": stroke.label, "width": stroke.width, "points": stroke.points_xy.tolist()}
                for stroke in self.strokes
            ]
        if self.scribbles is not None:
            labels = [int(label) for label in np.unique(self.scribbles) if label != UNMARKED]
            # The last mask, of the unmarked pixels, is not stored; without labels there would be nothing to stack.
            masks = Masks.from_dense(np.stack([self.scribbles == label for label in (*labels, UNMARKED)]))
            document["scribbles"] = {
                "size": list(self.scribbles.shape),
                "counts": {str(label): _counts(rle) for label, rle in zip(labels, masks.rle(), strict=False)},
            }
        if self.box_xyxy is not None:
            document["box_xyxy"] = np.asarray(self.box_xyxy).tolist()
        if self.mask is not None:
            counts = _counts(Masks.from_dense(self.mask[None]).rle()[0])
            document["mask"] = {"size": list(self.mask.shape), "counts": counts}
        if self.text is not None:
            document["text"] = self.text
        return document

    @classmethod
    def from_json(cls, document: Any, *, where: str = "prompt") -> Self:
        """Return the prompt of a JSON object as written by :meth:`to_json`; ``where`` names it in error messages.

        Raises
        ------
        DataError
            If a field is unknown or its value is invalid.
        """
        known = ("points", "strokes", "scribbles", "box_xyxy", "mask", "text")
        if not isinstance(document, Mapping):
            raise DataError(f"expected an object with {', '.join(known)}, got {document!r:.80}", where=where)
        unknown = sorted(set(document) - set(known))
        if unknown:
            raise DataError(f"unknown field {unknown[0]!r}", where=where, remedy=f"known fields: {', '.join(known)}")
        field = ""
        try:
            parts: dict[str, Any] = {}
            for field in (name for name in known if name in document):
                parts |= _PART_READERS[field](document[field])
            return cls(**parts)
        except (ShapeError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise DataError(
                f"expected {_EXPECTED[field]} ({error})", where=f"{where}.{field}", kind="bad_prompt"
            ) from error


@dataclass(frozen=True, eq=False)
class MaskCandidates:
    """The masks that a promptable method predicts for a prompt.

    Parameters
    ----------
    masks
        M masks of the image's size. Among the candidates for one object, the best comes first.
    scores
        (M,) predicted quality of each mask, in [0, 1].
    objects
        (M,) number of each mask's object.
    low_resolution_logits
        (M, h, w) mask logits, which a learned method takes as input with the next prompt (default: none).
    """

    masks: Masks
    scores: Float[np.ndarray, "m"]
    objects: Int[np.ndarray, "m"]
    low_resolution_logits: Float[np.ndarray, "m h w"] | None = None

    def __post_init__(self) -> None:
        for name in ("scores", "objects", "low_resolution_logits"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.masks):
                raise ShapeError(f"{name}: expected one per mask, {len(self.masks)}, got {len(values)}")

    def __len__(self) -> int:
        return len(self.masks)

    def best(self, number: int = 1) -> Bool[np.ndarray, "h w"]:
        """Return the best mask of an object, (H, W); an empty mask if it has none."""
        indices = np.flatnonzero(self.objects == number)
        return self.masks[indices[0]].dense()[0] if len(indices) else np.zeros(self.masks.size_hw, dtype=bool)

    def numbered(self, number: int) -> "MaskCandidates":
        """Return the masks as those of the object with this number."""
        return replace(self, objects=np.full(len(self), number))

    @classmethod
    def concatenate(cls, parts: Sequence["MaskCandidates"], size_hw: tuple[int, int]) -> "MaskCandidates":
        """Return the masks of all parts, in order; their logits are left out if there are several parts."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            Masks.concatenate([part.masks for part in parts], size_hw),
            np.concatenate([np.zeros(0), *(part.scores for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.objects for part in parts)]),
        )

    def best_of_each(self) -> "MaskCandidates":
        """Return the best mask of each object."""
        first = np.sort(np.unique(self.objects, return_index=True)[1])
        logits = None if self.low_resolution_logits is None else self.low_resolution_logits[first]
        return MaskCandidates(self.masks[first], self.scores[first], self.objects[first], logits)


EmbeddingT = TypeVar("EmbeddingT")


class PromptableMethod(Protocol[EmbeddingT]):
    """A method that predicts masks for prompts: ``embed`` runs once per image, ``segment`` once per prompt."""

    name: str

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> EmbeddingT:
        """Compute what depends on the image alone, e.g. its features."""
        ...

    def segment(self, embedding: EmbeddingT, prompt: Prompt) -> MaskCandidates:
        """Return the masks for a prompt. The result does not depend on earlier prompts."""
        ...


def _as_points(name: str, values: Any) -> Float[np.ndarray, "n 2"]:
    points = np.asarray(values, dtype=np.float64)
    points = points.reshape(0, 2) if points.size == 0 else points
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ShapeError(f"{name}: expected finite x, y of shape (N, 2), got {points.tolist()!s:.80}")
    return points


def _check_labels(name: str, labels: np.ndarray) -> None:
    if labels.size and (labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > MAX_OBJECTS):
        invalid = labels[(labels < 0) | (labels > MAX_OBJECTS)]
        got = invalid.flat[0] if len(invalid) else labels.dtype
        raise ShapeError(f"{name}: expected 0 (background) or the number of an object, 1 to {MAX_OBJECTS}, got {got}")


def _check_conflict(seeds: Int[np.ndarray, "h w"], marked: Bool[np.ndarray, "h w"], label: int) -> None:
    conflict = marked & (seeds != UNMARKED) & (seeds != label)
    if conflict.any():
        row, column = np.argwhere(conflict)[0]
        labels = f"{_describe_label(seeds[row, column])} and as {_describe_label(label)}"
        raise ShapeError(f"pixel ({column}, {row}) is marked as {labels}; remove one of them")


def _describe_label(label: int) -> str:
    return "background" if label == BACKGROUND else f"object {label}"


def _stroke_mask(stroke: Stroke, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels whose centre is within half the width of a stroke's line, and those that contain a point of it.

    Points are sampled at most half a pixel apart in x and y, so that a thin stroke has no gaps.
    """
    marked = np.zeros(size_hw, dtype=bool)
    points, radius = stroke.points_xy, stroke.width / 2
    for start, end in zip(points, points[1:] if len(points) > 1 else points, strict=False):
        segment = end - start
        samples = start + np.linspace(0, 1, 2 * math.ceil(np.abs(segment).max()) + 1)[:, None] * segment
        low = np.maximum(np.floor(samples.min(axis=0) - radius).astype(int), 0)
        high = np.minimum(np.ceil(samples.max(axis=0) + radius).astype(int) + 1, size_hw[::-1])
        rows, columns = np.mgrid[low[1] : high[1], low[0] : high[0]]
        offset = np.stack([columns, rows], axis=-1) + 0.5 - start
        fraction = np.clip(offset @ segment / max(float(segment @ segment), 1e-9), 0, 1)  # of the nearest point
        near = np.square(offset - fraction[..., None] * segment).sum(axis=-1) <= radius**2
        marked[low[1] : high[1], low[0] : high[0]] |= near
        pixels = np.floor(samples).astype(int)
        inside = ((pixels >= 0) & (pixels < size_hw[::-1])).all(axis=1)  # start + segment may round up to the border
        marked[tuple(pixels[inside].T[::-1])] = True
    return marked


def _mark_discs(seeds: np.ndarray, rows: np.ndarray, columns: np.ndarray, labels: np.ndarray, radius: float) -> None:
    """Mark the discs around points in ``seeds``, each pixel with the nearest point's label; marked pixels are kept."""
    nearest = np.full(seeds.shape, np.inf)
    disc = np.full(seeds.shape, UNMARKED, seeds.dtype)
    extent = math.floor(radius)
    for row, column, label in zip(rows.tolist(), columns.tolist(), labels.tolist(), strict=True):
        top, bottom = max(row - extent, 0), min(row + extent + 1, seeds.shape[0])
        left, right = max(column - extent, 0), min(column + extent + 1, seeds.shape[1])
        window = slice(top, bottom), slice(left, right)
        y, x = np.ogrid[window]
        distance = np.hypot(y - row, x - column)
        closer = (distance <= radius) & (distance < nearest[window])
        nearest[window][closer] = distance[closer]
        disc[window][closer] = label
    free = seeds == UNMARKED
    seeds[free] = disc[free]


def _counts(rle: Mapping[str, Any]) -> str:
    return rle["counts"].decode("ascii")


def _read_mask(value: Any) -> Bool[np.ndarray, "h w"]:
    height, width = _size(value)
    runs = run_lengths(value["counts"].encode("ascii"))
    if (runs < 0).any() or runs.sum() != height * width:  # decoding would write out of bounds
        raise ShapeError(f"run lengths add up to {runs.sum()}, expected {height * width}")
    return Masks.from_rle([value["counts"]], (height, width)).dense()[0]


def _size(value: Any) -> tuple[int, int]:
    height, width = value["size"]
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ShapeError(f"size: expected a height and a width, got {value['size']}")
    return height, width


def _read_points(value: Any) -> dict[str, Any]:
    triples = [(x, y, label) for x, y, label in value]
    if any(not isinstance(label, int) or isinstance(label, bool) for *_, label in triples):
        raise ShapeError("labels must be integers")
    return {"points_xy": [(x, y) for x, y, _ in triples], "point_labels": [label for *_, label in triples]}


def _read_strokes(value: Any) -> dict[str, Any]:
    strokes = []
    for stroke in value:
        if unknown := set(stroke) - {"label", "width", "points"}:
            raise ShapeError(f"unknown field {min(unknown)!r} of a stroke")
        width = {"width": float(stroke["width"])} if "width" in stroke else {}
        strokes.append(Stroke(stroke["points"], stroke["label"], **width))
    return {"strokes": strokes}


def _read_scribbles(value: Any) -> dict[str, Any]:
    scribbles = np.full(_size(value), UNMARKED, np.int16)
    for label, counts in value["counts"].items():
        scribbles[_read_mask({"size": value["size"], "counts": counts})] = int(label)
    return {"scribbles": scribbles}


def _read_text(value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        raise ShapeError(f"got {value!r:.40}")
    return {"text": value}


_PART_READERS = {
    "points": _read_points,
    "strokes": _read_strokes,
    "scribbles": _read_scribbles,
    "box_xyxy": lambda value: {"box_xyxy": value},
    "mask": lambda value: {"mask": _read_mask(value)},
    "text": _read_text,
}
_EXPECTED = {
    "": "a prompt",
    "points": "a list of [x, y, label]",
    "strokes": 'a list of {"label": number, "width": pixels, "points": [[x, y], …]}',
    "scribbles": '{"size": [height, width], "counts": {"label": run lengths}}',
    "box_xyxy": "[x1, y1, x2, y2]",
    "mask": '{"size": [height, width], "counts": run lengths}',
    "text": "a string",
}
