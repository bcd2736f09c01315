"""What a person marks on an image, and the masks that come back: one interface for every promptable method.

Shape shorthand: N points, P points of a stroke, M candidate masks, H x W the image.

Labels say what is marked: 0 is background, 1 an object, and where several objects are asked for at once 1, 2 … their
numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from otus.errors import DataError, ShapeError
from otus.structures.masks import Masks, run_lengths

BACKGROUND = 0
UNMARKED = -1
MAX_OBJECTS = 254


@dataclass(frozen=True, eq=False)
class Stroke:
    """One stroke of a brush.

    Parameters
    ----------
    points_xy
        (P, 2) the line that the brush follows, in pixels.
    label
        0 for background, else the number of the object.
    width
        Of the brush, in pixels.
    """

    points_xy: Float[np.ndarray, "p 2"]
    label: int
    width: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "points_xy", _points("stroke", self.points_xy))
        _check_labels("stroke", np.array([self.label]))
        if not len(self.points_xy):
            raise ShapeError("stroke: expected at least one point, got none")
        if not 0 < self.width < math.inf:
            raise ShapeError(f"stroke: expected a width over 0 pixels, got {self.width}")


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is marked on an image. Each part may be left out, and a method says which it can use.

    Parameters
    ----------
    points_xy
        (N, 2) x, y in pixels; a point lies in pixel (floor(y), floor(x)).
    point_labels
        (N,) 0 for background, else the number of the object.
    strokes
        Strokes of a brush.
    scribbles
        Label image (H, W) of the image's own size: -1 where nothing is marked, 0 for background, else the number of the
        object.
    box_xyxy
        A box around the object.
    mask
        (H, W) a mask to start from, e.g. that of the prompt before or of the frame before.
    text
        A description.

    Raises
    ------
    ShapeError
        Shapes, labels or coordinates that cannot be.

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
        points, labels = _points("points", self.points_xy), np.asarray(self.point_labels)
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
            if mask.ndim != 2:
                raise ShapeError(f"mask: expected shape (H, W), got {mask.shape}")
            object.__setattr__(self, "mask", mask.astype(bool))

    @property
    def num_objects(self) -> int:
        """The highest number of an object that is marked; 1 where there is only a box, mask or text, else 0."""
        labels = [int(self.point_labels.max(initial=0)), *(stroke.label for stroke in self.strokes)]  # type: ignore[union-attr]
        if self.scribbles is not None:
            labels.append(int(self.scribbles.max(initial=0)))
        only = any(part is not None for part in (self.box_xyxy, self.mask, self.text))
        return max(*labels, int(only))

    def seeds(self, size_hw: tuple[int, int], *, point_radius: float = 0.0) -> Int[np.ndarray, "h w"]:
        """Return the label image of all points, strokes and scribbles: -1 where nothing is marked.

        Parameters
        ----------
        size_hw
            Of the image.
        point_radius
            Pixels that a point marks around it. Where such discs of two labels meet, each pixel is that of the nearer point.

        Raises
        ------
        ShapeError
            A point or stroke outside the image, scribbles or a mask of another size, or a pixel marked as two things.
        """
        self.check_size(size_hw)
        seeds = np.full(size_hw, UNMARKED, np.int16) if self.scribbles is None else np.array(self.scribbles, np.int16)
        for stroke in self.strokes:
            marked = _brushed(stroke, size_hw)
            _check_clash(seeds, marked, stroke.label)
            seeds[marked] = stroke.label
        points, labels = np.asarray(self.points_xy), np.asarray(self.point_labels)
        columns, rows = np.floor(points).astype(np.int64).T if len(points) else np.zeros((2, 0), np.int64)
        for row, column, label in zip(rows, columns, labels, strict=True):
            marked = np.zeros(size_hw, bool)
            marked[row, column] = True
            _check_clash(seeds, marked, label)
            seeds[row, column] = label
        if len(points) and point_radius > 0:
            _spread_points(seeds, rows, columns, labels, point_radius)
        return seeds

    def check_size(self, size_hw: tuple[int, int]) -> None:
        """ShapeError unless everything that is marked lies on an image of that size."""
        height, width = size_hw
        for name, plane in (("scribbles", self.scribbles), ("mask", self.mask)):
            if plane is not None and plane.shape != (height, width):
                got = f"{plane.shape[1]}x{plane.shape[0]}"
                raise ShapeError(f"{name}: expected the size of the image, {width}x{height}, got {got}")
        lines = [("points", self.points_xy), *(("strokes", stroke.points_xy) for stroke in self.strokes)]
        for name, line in lines:
            points = np.asarray(line)
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
        """Return the prompt as one JSON object; parts that are not there are left out, label images are run lengths."""
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
            planes = Masks.from_dense(np.stack([self.scribbles == label for label in (*labels, UNMARKED)]))
            document["scribbles"] = {
                "size": list(self.scribbles.shape),
                "counts": {str(label): _counts(one) for label, one in zip(labels, planes.rle(), strict=False)},
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
        """Return the prompt of a JSON object; ``where`` says in messages which it is.

        Raises
        ------
        DataError
            Fields that are unknown, or whose values cannot be.
        """
        known = ("points", "strokes", "scribbles", "box_xyxy", "mask", "text")
        if not isinstance(document, Mapping):
            raise DataError(f"expected an object with {', '.join(known)}, got {document!r:.80}", where=where)
        unknown = sorted(set(document) - set(known))
        if unknown:
            raise DataError(f"unknown field {unknown[0]!r}", where=where, remedy=f"known are {', '.join(known)}")
        reading = ""
        try:
            parts: dict[str, Any] = {}
            for reading in (name for name in known if name in document):
                parts |= _PART_READERS[reading](document[reading])
            return cls(**parts)
        except (ShapeError, TypeError, ValueError, KeyError, AttributeError, UnicodeError) as error:
            shape = _EXPECTED[reading]
            raise DataError(f"expected {shape} ({error})", where=f"{where}.{reading}", kind="bad_prompt") from error


@dataclass(frozen=True, eq=False)
class MaskCandidates:
    """What a promptable method answers.

    Parameters
    ----------
    masks
        M masks in the frame of the image. Of several candidates for one object the best comes first.
    scores
        (M,) how good the method takes each to be, 0 to 1.
    objects
        (M,) the number of the object of each.
    low_resolution_logits
        (M, h, w) what a learned method takes to refine a mask, beside its next prompt.
    """

    masks: Masks
    scores: Float[np.ndarray, "m"]
    objects: Int[np.ndarray, "m"]
    low_resolution_logits: Float[np.ndarray, "m h w"] | None = None

    def __post_init__(self) -> None:
        for name in ("scores", "objects", "low_resolution_logits"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.masks):
                raise ShapeError(f"{name}: expected one per mask, {len(self.masks)}, got {len(column)}")

    def __len__(self) -> int:
        return len(self.masks)

    def best(self, number: int = 1) -> Bool[np.ndarray, "h w"]:
        """Return the first mask of an object; an empty one where it has none."""
        of_object = np.flatnonzero(self.objects == number)
        return self.masks[of_object[0]].dense()[0] if len(of_object) else np.zeros(self.masks.size_hw, dtype=bool)

    def best_of_each(self) -> "MaskCandidates":
        """Return the first mask of each object alone."""
        first = np.sort(np.unique(self.objects, return_index=True)[1])
        logits = None if self.low_resolution_logits is None else self.low_resolution_logits[first]
        return MaskCandidates(self.masks[first], self.scores[first], self.objects[first], logits)


EmbeddingT = TypeVar("EmbeddingT")


class PromptableMethod(Protocol[EmbeddingT]):
    """Anything that makes masks of prompts: the work on the image once, then a prompt after another."""

    name: str

    def embed(self, image: UInt8[np.ndarray, "h w 3"]) -> EmbeddingT:
        """Return what the method needs to know of an image, whatever is marked on it."""
        ...

    def segment(self, embedding: EmbeddingT, prompt: Prompt) -> MaskCandidates:
        """Return the masks for a prompt. It does not depend on prompts before, though their work may be used."""
        ...


def _points(name: str, values: Any) -> Float[np.ndarray, "n 2"]:
    points = np.asarray(values, dtype=np.float64)
    points = points.reshape(0, 2) if points.size == 0 else points
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ShapeError(f"{name}: expected finite x, y of shape (N, 2), got {points.tolist()!s:.80}")
    return points


def _check_labels(name: str, labels: np.ndarray) -> None:
    if labels.size and (labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > MAX_OBJECTS):
        strange = labels[(labels < 0) | (labels > MAX_OBJECTS)]
        got = strange.flat[0] if len(strange) else labels.dtype
        raise ShapeError(f"{name}: expected 0 (background) or the number of an object, 1 to {MAX_OBJECTS}, got {got}")


def _check_clash(seeds: Int[np.ndarray, "h w"], marked: Bool[np.ndarray, "h w"], label: int) -> None:
    clash = marked & (seeds != UNMARKED) & (seeds != label)
    if clash.any():
        row, column = np.argwhere(clash)[0]
        here = seeds[row, column]
        raise ShapeError(
            f"pixel ({column}, {row}) is marked as {_said(here)} and as {_said(label)}; take one of them out"
        )


def _said(label: int) -> str:
    return "background" if label == BACKGROUND else f"object {label}"


def _brushed(stroke: Stroke, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels whose centre is within half the width of a stroke, and those that its line passes."""
    marked = np.zeros(size_hw, dtype=bool)
    points, radius = stroke.points_xy, stroke.width / 2
    for start, end in zip(points, points[1:] if len(points) > 1 else points, strict=False):
        line = start + np.linspace(0, 1, 2 * math.ceil(np.abs(end - start).max()) + 1)[:, None] * (end - start)
        low = np.maximum(np.floor(line.min(axis=0) - radius).astype(int), 0)
        high = np.minimum(np.ceil(line.max(axis=0) + radius).astype(int) + 1, size_hw[::-1])
        rows, columns = np.mgrid[low[1] : high[1], low[0] : high[0]]
        offset = np.stack([columns, rows], axis=-1) + 0.5 - start
        step = end - start
        along = np.clip(offset @ step / max(float(step @ step), 1e-9), 0, 1)
        near = np.square(offset - along[..., None] * step).sum(axis=-1) <= radius**2
        marked[low[1] : high[1], low[0] : high[0]] |= near
        marked[tuple(np.floor(line).astype(int).T[::-1])] = True
    return marked


def _spread_points(seeds: np.ndarray, rows: np.ndarray, columns: np.ndarray, labels: np.ndarray, radius: float) -> None:
    """Mark the discs around points, each pixel as the nearest of them; what is marked otherwise stays."""
    nearest = np.full(seeds.shape, np.inf)
    disc = np.full(seeds.shape, UNMARKED, seeds.dtype)
    reach = math.floor(radius)
    for row, column, label in zip(rows.tolist(), columns.tolist(), labels.tolist(), strict=True):
        part = slice(max(row - reach, 0), row + reach + 1), slice(max(column - reach, 0), column + reach + 1)
        at = np.ogrid[part[0].start : min(part[0].stop, len(seeds)), part[1].start : min(part[1].stop, seeds.shape[1])]
        distance = np.hypot(at[0] - row, at[1] - column)
        closer = (distance <= radius) & (distance < nearest[part])
        nearest[part][closer] = distance[closer]
        disc[part][closer] = label
    free = seeds == UNMARKED
    seeds[free] = disc[free]


def _counts(rle: Mapping[str, Any]) -> str:
    return rle["counts"].decode("ascii")


def _read_mask(value: Any) -> Bool[np.ndarray, "h w"]:
    height, width = _size(value)
    runs = run_lengths(value["counts"].encode("ascii"))
    if (runs < 0).any() or runs.sum() != height * width:  # the codec would write where it must not
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
        raise ShapeError("labels are whole numbers")
    return {"points_xy": [one[:2] for one in triples], "point_labels": [one[2] for one in triples]}


def _read_strokes(value: Any) -> dict[str, Any]:
    strokes = []
    for one in value:
        if unknown := set(one) - {"label", "width", "points"}:
            raise ShapeError(f"unknown field {min(unknown)!r} of a stroke")
        width = {"width": float(one["width"])} if "width" in one else {}
        strokes.append(Stroke(one["points"], one["label"], **width))
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
