"""Parse the lines of YOLO label files; see :mod:`otus.data.formats.yolo` for their types."""

import numpy as np
from jaxtyping import Bool, Float, Int

from otus.data.formats.text_files import LabelLine, parse_numbers
from otus.errors import Report
from otus.structures import BoxFormat, Categories, Objects, SegmentationKind, Segmentations
from otus.structures.boxes import convert

_BOX_WORDS, _FOUR_POINTS_WORDS = 5, (9, 10)  # with the category, and perhaps a confidence
_MAX_FRACTION = 2.0  # numbers outside -1..2 are pixels, not fractions


def parse_objects(
    lines: list[LabelLine],
    sizes_hw: Int[np.ndarray, "m 2"],
    categories: Categories,
    keypoint_shape: tuple[int, int] | None,
    report: Report,
    *,
    are_oriented: bool,
) -> Objects:
    """Parse label lines to objects; invalid lines are reported and left out.

    ``keypoint_shape`` is data.yaml's ``kpt_shape``: the number of keypoints, and 2 or 3 numbers for each. With
    ``are_oriented``, lines of four points are oriented boxes (see :func:`have_four_points`), else polygons.
    """
    keypoint_count = None if keypoint_shape is None else 4 + keypoint_shape[0] * keypoint_shape[1]
    valid_lines = []
    for line in lines:
        if _line_type(len(line.words) - 1, keypoint_count) is None:
            expected = (
                f"{keypoint_count} numbers" if keypoint_count else "4 numbers, or pairs of at least three points,"
            )
            report(line.fault(f"expected a category, {expected} and perhaps a confidence, got {len(line.words)} words"))
        else:
            valid_lines.append(line)
    valid_lines, values = parse_numbers(valid_lines, slice(None), report)
    if faults := _faults(valid_lines, values, keypoint_count, categories):
        for index in sorted(faults):
            report(valid_lines[index].fault(*faults[index]))
        valid_lines, values = parse_numbers(
            [line for i, line in enumerate(valid_lines) if i not in faults], slice(None), report
        )
    return _assemble(valid_lines, values, sizes_hw, keypoint_shape, are_oriented)


def have_four_points(lines: list[LabelLine]) -> bool:
    """Return whether all lines long enough for a box have four points: then they are oriented boxes, not polygons."""
    return all(len(line.words) in _FOUR_POINTS_WORDS for line in lines if len(line.words) >= _BOX_WORDS)


def is_representable(fractions: list[np.ndarray]) -> Bool[np.ndarray, "n"]:
    """Return which objects :func:`parse_objects` can read back, by the range of their normalised coordinates."""
    return np.array(
        [
            bool(((coordinates >= 1 - _MAX_FRACTION) & (coordinates <= _MAX_FRACTION)).all())
            for coordinates in fractions
        ],
        dtype=bool,
    )


def _line_type(count: int, keypoint_count: int | None) -> tuple[str, bool] | None:
    """Return the type of a line by its number count, and whether the last number is a score."""
    if count in (4, 5):
        return "box", count == 5
    if keypoint_count is not None:
        return ("points", count > keypoint_count) if count in (keypoint_count, keypoint_count + 1) else None
    return ("polygon", count % 2 == 1) if count >= 6 else None


class _Columns:
    """The numbers of all lines, and the type of each line."""

    def __init__(self, lines: list[LabelLine], values: np.ndarray, keypoint_count: int | None) -> None:
        types = [_line_type(len(line.words) - 1, keypoint_count) for line in lines]
        counts = np.array([len(line.words) for line in lines], dtype=np.int64)
        self.values = values
        self.ends = np.cumsum(counts)
        self.starts = self.ends - counts
        self.labels = values[self.starts]
        self.has_score = np.array([bool(line_type and line_type[1]) for line_type in types], dtype=bool)
        self.is_polygon = np.array([bool(line_type and line_type[0] == "polygon") for line_type in types], dtype=bool)
        self.has_keypoints = np.array([bool(line_type and line_type[0] == "points") for line_type in types], dtype=bool)
        self.coordinates = counts - 1 - self.has_score

    def gather(self, rows: np.ndarray, first: int, count: int) -> Float[np.ndarray, "n count"]:
        return self.values[self.starts[rows][:, None] + np.arange(first, first + count)]


def _faults(
    lines: list[LabelLine], values: np.ndarray, keypoint_count: int | None, categories: Categories
) -> dict[int, tuple[str, str]]:
    """Return problem and remedy of invalid lines, by line index."""
    faults: dict[int, tuple[str, str]] = {}
    columns = _Columns(lines, values, keypoint_count)
    labels = columns.labels
    for i in np.flatnonzero((labels % 1 != 0) | (labels < 0) | (labels >= len(categories))):
        faults[int(i)] = (
            f"expected a category 0..{len(categories) - 1}, got {lines[i].words[0]}",
            "correct the line or add the category to names",
        )
    in_line = np.ones(len(values), dtype=bool)
    in_line[columns.starts] = False
    far = in_line & ((values < 1 - _MAX_FRACTION) | (values > _MAX_FRACTION))
    for i in np.unique(np.searchsorted(columns.ends, np.flatnonzero(far), side="right")):
        faults[int(i)] = ("expected fractions of the image, 0 to 1", "divide pixels by its width and height")
    boxes = np.flatnonzero(~columns.is_polygon)
    for i in boxes[(columns.gather(boxes, 3, 2) < 0).any(axis=1)]:
        faults[int(i)] = ("width and height must not be negative", "correct the line")
    scores = values[columns.ends - 1]
    for i in np.flatnonzero(columns.has_score & ((scores < 0) | (scores > 1))):
        faults[int(i)] = (f"expected a confidence in 0..1, got {scores[i]}", "correct the line")
    valid = np.ones(len(lines), dtype=bool)
    valid[list(faults)] = False
    scored, unscored = valid & columns.has_score, valid & ~columns.has_score
    if scored.any() and scored.sum() < unscored.sum():  # a minority of lines with a score is an error
        for i in np.flatnonzero(scored):
            problem = f"has {len(lines[i].words) - 1} numbers: one is a confidence, which most lines do not have"
            faults[int(i)] = (problem, "remove the confidence, or add the missing number")
    elif scored.any():
        for i in np.flatnonzero(unscored):
            faults[int(i)] = ("has no confidence, other lines have", "add it to all lines or to none")
    return faults


def _assemble(
    lines: list[LabelLine],
    values: np.ndarray,
    sizes_hw: np.ndarray,
    keypoint_shape: tuple[int, int] | None,
    are_oriented: bool,
) -> Objects:
    columns = _Columns(lines, values, None if keypoint_shape is None else 4 + keypoint_shape[0] * keypoint_shape[1])
    image = np.array([line.image for line in lines], dtype=np.int64)
    size_wh = sizes_hw[image][:, ::-1].astype(np.float64)
    boxes = np.zeros((len(lines), 4))
    rows = np.flatnonzero(~columns.is_polygon)
    boxes[rows] = convert(columns.gather(rows, 1, 4) * np.tile(size_wh[rows], 2), BoxFormat.CXCYWH, BoxFormat.XYXY)

    rows = np.flatnonzero(columns.is_polygon)
    counts = columns.coordinates[rows]
    ends = np.cumsum(counts)
    positions = np.arange(counts.sum()) - np.repeat(ends - counts, counts) + np.repeat(columns.starts[rows] + 1, counts)
    points = _pixels(values[positions].reshape(-1, 2), np.repeat(size_wh[rows], counts // 2, axis=0))
    corners_xy = segmentations = None
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    if len(rows):
        first = (ends - counts) // 2
        boxes[rows] = np.concatenate([np.minimum.reduceat(points, first), np.maximum.reduceat(points, first)], axis=1)
        following = np.concatenate([points[1:], points[:1]])
        following[ends // 2 - 1] = points[first]
        cross = points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]
        areas[rows] = np.abs(np.add.reduceat(cross, first)) / 2
        if are_oriented:
            corners_xy = points.reshape(-1, 4, 2)
        else:
            segmentations = Segmentations(
                kinds=np.where(columns.is_polygon, SegmentationKind.POLYGONS, SegmentationKind.NONE).astype(np.uint8),
                rings=np.concatenate([[0], np.cumsum(columns.is_polygon)]),
                points=np.concatenate([[0], ends // 2]),
                points_xy=points,
                counts=np.zeros(len(lines) + 1, dtype=np.int64),
                counts_bytes=np.zeros(0, dtype=np.uint8),
            )
    return Objects.build(
        image_index=image,
        labels=columns.labels.astype(np.int64),
        boxes_xyxy=boxes,
        areas=areas,
        scores=values[columns.ends - 1] if columns.has_score.any() else None,
        segmentations=segmentations,
        corners_xy=corners_xy,
        keypoints=None if keypoint_shape is None else _keypoints(columns, keypoint_shape, size_wh),
    )


def _keypoints(columns: _Columns, keypoint_shape: tuple[int, int], size_wh: np.ndarray) -> Float[np.ndarray, "n k 3"]:
    """Return pixels and visibility; if the file has no visibility, a point at 0, 0 is unlabelled."""
    count, numbers_each = keypoint_shape
    rows = np.flatnonzero(columns.has_keypoints)
    keypoints = np.zeros((len(size_wh), count, 3))
    values = columns.gather(rows, 5, count * numbers_each).reshape(-1, count, numbers_each)
    keypoints[rows, :, :2] = _pixels(values[..., :2], size_wh[rows][:, None])
    keypoints[rows, :, 2] = values[..., 2] if numbers_each == 3 else 2.0 * values.any(axis=2)
    return keypoints


def _pixels(fractions: np.ndarray, size_wh: np.ndarray) -> np.ndarray:
    """Convert normalised coordinates to pixels; decimals of up to 9 digits survive the round trip exactly.

    Otherwise polygons of COCO would change pixels: some points are exactly on a pixel's border.
    """
    pixels = fractions * size_wh
    rounded = np.round(pixels, 9)
    return np.where(np.abs(rounded - pixels) <= 4 * np.spacing(np.abs(pixels)), rounded, pixels)
