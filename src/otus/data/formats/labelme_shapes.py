"""Decode the shapes of a LabelMe file and group them into objects."""

import atexit
import base64
import binascii
import shutil
import tempfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from otus.data.formats.polygons import polygon_area
from otus.data.formats.text_files import Int64, Number, read_json_bytes
from otus.data.formats.unread_fields import UnreadFields
from otus.errors import DataError, Report
from otus.structures import Masks

# Allowed numbers of points: a rectangle has two opposite corners, or all four in files of X-AnyLabeling.
_POINT_COUNTS = {
    "rectangle": (2, 4),
    "oriented_rectangle": (4,),
    "rotation": (4,),  # oriented rectangle of X-AnyLabeling
    "circle": (2,),
    "mask": (2,),
    "point": (1,),
}
_POLYGON_TYPES = ("polygon", "quadrilateral")
OBJECT_SHAPES = frozenset((*_POLYGON_TYPES, *_POINT_COUNTS)) - {"point"}
_CIRCLE_POINTS = 64
_AXIS_ALIGNED_PX = 0.01


class Shape(msgspec.Struct):
    label: str
    points: list[tuple[Number, Number]]
    shape_type: str = "polygon"
    group_id: Int64 | None = None
    flags: dict[str, bool] | None = None
    mask: str | None = None
    score: float | None = None
    difficult: bool | str | None = None  # X-AnyLabeling's; some programs write "false"


class LabelMeFile(msgspec.Struct, rename={"image": "imagePath", "height": "imageHeight", "width": "imageWidth"}):
    shapes: list[msgspec.Raw]
    image: str
    height: Int64 | None = None
    width: Int64 | None = None
    keypoint_names: dict[str, list[str]] | None = None


_READ_FIELDS = frozenset(("version", *(field.encode_name for field in msgspec.structs.fields(LabelMeFile))))
_READ_SHAPE_FIELDS = frozenset(Shape.__struct_fields__)


@dataclass
class LabelMeObject:
    """An object; its box is its rectangle if it has one, else the bounding box of its other shapes."""

    label: str
    box_xyxy: Float[np.ndarray, "4"]
    area: float
    segmentation: bytes | list[np.ndarray] | None
    corners_xy: Float[np.ndarray, "4 2"] | None
    keypoints: dict[str, tuple[float, float, float]]
    flags: dict[str, bool]
    score: float


@dataclass
class _Group:
    """An object while its shapes are collected."""

    label: str | None = None
    rings: list[np.ndarray] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    box: np.ndarray | None = None
    corners: np.ndarray | None = None
    keypoints: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    score: float = np.nan


def decode_file(file: Path, unread: UnreadFields | None = None) -> LabelMeFile:
    """Decode a LabelMe file; its shapes stay raw, to be validated individually."""
    text = read_json_bytes(file)
    try:
        content = msgspec.json.decode(text, type=LabelMeFile)
        if unread is not None:
            unread.note_raw("", msgspec.json.decode(text, type=dict[str, msgspec.Raw]), known=_READ_FIELDS)
        return content
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DataError(f"expected a LabelMe file, but {error}", file=file, remedy="restore or remove it") from None


class _Embedded(msgspec.Struct):
    imageData: str | None = None  # noqa: N815, LabelMe's name


class EmbeddedImages:
    """Images embedded in LabelMe files, written to a temporary folder that is removed at exit."""

    _folder: Path | None = None

    def image_of(self, file: Path, suffix: str) -> Path | None:
        """Write the ``imageData`` of a file to a temporary image and return its path; None if there is none."""
        try:
            data = msgspec.json.decode(read_json_bytes(file), type=_Embedded).imageData
            content = base64.b64decode(data or "", validate=True)
        except (msgspec.MsgspecError, ValueError) as error:
            problem, remedy = f"expected an image in base64, but {error}", "restore the image beside the file"
            raise DataError(problem, file=file, where="imageData", remedy=remedy) from None
        if not content:
            return None
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="otus-labelme-"))
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        image = self._folder / f"{file.stem}{suffix or '.png'}"
        image.write_bytes(content)
        return image


def decode_shape(raw: msgspec.Raw) -> Shape:
    """Decode a shape; raise ValueError if it is invalid."""
    try:
        return msgspec.json.decode(raw, type=Shape)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def group_shapes(
    content: LabelMeFile, size_hw: tuple[int, int], file: Path, report: Report, unread: UnreadFields
) -> list[LabelMeObject]:
    """Return the objects of a file: each group of shapes, and each shape without a group."""
    groups: dict[int | str, _Group] = {}
    for index, raw in enumerate(content.shapes):
        where = f"shapes[{index}]"
        try:
            shape = decode_shape(raw)
            key = where if shape.group_id is None else shape.group_id
            group = groups.get(key) or _Group()
            _add(group, shape, size_hw)
            groups[key] = group
            unread.note_raw(
                "shapes[].", msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), known=_READ_SHAPE_FIELDS
            )
        except ValueError as error:
            report(DataError(str(error), file=file, where=where, remedy="correct or redraw the shape"))
    objects = []
    for key, group in groups.items():
        if group.label is None:
            problem = "a point without a polygon, rectangle or mask of the same group_id"
            where = key if isinstance(key, str) else f"group_id {key}"
            report(DataError(problem, file=file, where=where, remedy="group it with its object"))
        else:
            objects.append(_finish(group, group.label))
    return objects


def _add(group: _Group, shape: Shape, size_hw: tuple[int, int]) -> None:
    """Add a shape to an object; if the shape is invalid, raise ValueError and leave the object unchanged."""
    kind = shape.shape_type
    if kind not in ("point", *OBJECT_SHAPES):
        raise ValueError(f"shape_type {kind!r} is not supported: expected a polygon, rectangle, circle, mask or point")
    points = np.array(shape.points, dtype=np.float64).reshape(-1, 2)
    if len(points) not in _POINT_COUNTS[kind] if kind in _POINT_COUNTS else len(points) < 3:
        expected = " or ".join(map(str, _POINT_COUNTS.get(kind, ("3", "more"))))
        raise ValueError(f"expected {expected} points of a {kind}, got {points.tolist()}")
    flags = dict(shape.flags or {})
    if shape.difficult is not None:
        flags.setdefault("difficult", shape.difficult in (True, "true"))
    is_oriented = kind in ("oriented_rectangle", "rotation") or (kind == "rectangle" and not _is_upright(points))
    if kind == "polygon" and len(points) == 4:
        is_oriented = flags.pop("oriented_box", False)
    if kind == "point":
        group.keypoints[shape.label] = (*points[0].tolist(), 1.0 if flags.get("occluded") else 2.0)
        return
    if group.label not in (None, shape.label):
        raise ValueError(
            f"expected {group.label!r} like other shapes of group_id {shape.group_id}, got {shape.label!r}"
        )
    if shape.score is not None and not 0 <= shape.score <= 1:
        raise ValueError(f"expected a score in 0..1, got {shape.score}")
    if kind == "mask":
        group.masks.append(_mask(shape, points, size_hw))
    elif is_oriented:
        if group.corners is not None:
            raise ValueError(f"a second oriented rectangle of group_id {shape.group_id}")
        group.corners = points
    elif kind == "rectangle":
        if group.box is not None:
            raise ValueError(f"a second rectangle of group_id {shape.group_id}")
        group.box = np.concatenate([points.min(axis=0), points.max(axis=0)])
    elif kind == "circle":
        angles = np.arange(_CIRCLE_POINTS) * (2 * np.pi / _CIRCLE_POINTS)
        radius = float(np.linalg.norm(points[1] - points[0]))
        group.rings.append(points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    else:
        group.rings.append(points)
    group.label = shape.label
    group.flags.update(flags)
    if shape.score is not None:
        group.score = shape.score


def _is_upright(points: Float[np.ndarray, "p 2"]) -> bool:
    """Return whether two or four corners, in any order, are those of an axis-aligned box."""
    low, high = points.min(axis=0), points.max(axis=0)
    return len(points) == 2 or bool((np.minimum(points - low, high - points) <= _AXIS_ALIGNED_PX).all())


def _mask(shape: Shape, points: np.ndarray, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Return the mask at the size of the image; raise ValueError if it does not fit its rectangle or the image."""
    (left, top), (right, bottom) = points.round().tolist()
    if not (0 <= left <= right < size_hw[1] and 0 <= top <= bottom < size_hw[0]):
        raise ValueError(f"expected a rectangle inside the image of {size_hw[1]} x {size_hw[0]}, got {points.tolist()}")
    x1, y1, x2, y2 = int(left), int(top), int(right), int(bottom)
    try:
        with Image.open(BytesIO(base64.b64decode(shape.mask or "", validate=True)), formats=("PNG",)) as image:
            # Check the size before decoding: a small file may state a huge one.
            fits = image.size == (x2 - x1 + 1, y2 - y1 + 1)
            values = np.array(image.convert("L") if fits else []) > 0
            size = image.size
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a PNG in base64, but {error}") from None
    if not fits:
        raise ValueError(
            f"expected a mask of {x2 - x1 + 1} x {y2 - y1 + 1} as its points state, got {size[0]} x {size[1]}"
        )
    mask = np.zeros(size_hw, dtype=bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = values
    return mask


def encode_mask(mask: Bool[np.ndarray, "h w"]) -> str:
    """Return a mask as PNG in base64."""
    file = BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def enclosing_box(rings: list[np.ndarray], mask: Bool[np.ndarray, "h w"] | None) -> Float[np.ndarray, "4"]:
    """Return the bounding box of polygons and a mask; at least one of them must be given."""
    points = np.concatenate([*rings, *([] if mask is None else [_pixel_corners(mask)])])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _pixel_corners(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "2 2"]:
    return Masks.from_dense(mask[None]).boxes_xyxy().reshape(2, 2)


def _finish(group: _Group, label: str) -> LabelMeObject:
    mask = None
    segmentation: bytes | list[np.ndarray] | None = group.rings or None
    if group.masks:
        polygon_masks = Masks.from_polygons([group.rings] if group.rings else [], size_hw=group.masks[0].shape)
        mask = np.logical_or.reduce([*group.masks, *polygon_masks])
        segmentation = Masks.from_dense(mask[None]).rle()[0]["counts"]  # type: ignore[assignment]
    rings = group.rings if group.corners is None else [*group.rings, group.corners]
    box = enclosing_box(rings, mask) if group.box is None else group.box
    if mask is not None:
        area = float(mask.sum())
    elif rings:
        area = sum(polygon_area(ring) for ring in group.rings or rings)
    else:
        area = float((box[2] - box[0]) * (box[3] - box[1]))
    return LabelMeObject(label, box, area, segmentation, group.corners, group.keypoints, group.flags, group.score)
