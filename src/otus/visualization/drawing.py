"""Draw predictions and ground truth on an image.

Shape shorthand: H x W the image, N objects, K keypoints. Line widths and font sizes depend on the size of the image, colours
on the category. To omit something, remove it from the result: ``draw(image, replace(result, masks=None))``.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from otus.errors import ShapeError
from otus.structures import IGNORE, Categories, Instances, PanopticMap, SemanticMap, oriented
from otus.visualization.palette import category_colours, colours_apart
from otus.visualization.text import Tag, legend, line_width, place_tags, text_size

_MAX_ANTIALIASED_SIDE = 2400  # longer side in pixels; in larger images aliasing is invisible, and supersampling costly
_MIN_OVERLAY_SIDE = 480  # longer side in pixels to which smaller images are enlarged, so that lines and text stay fine
_SMALL_FONT_SCALE = 0.75  # font size relative to the usual one, if there are many tags
_MIN_FONT_SIZE = 9  # of the smaller font, in pixels
_MIN_PLACED_TAGS = 0.8  # fraction of the tags that must find room for a style to be chosen
_SHADES = (0, 0.3, -0.25, 0.5, -0.4)  # of successive objects of a category: fraction towards white (> 0) or black (< 0)
ImageArray = UInt8[np.ndarray, "h w 3"]
Page = UInt8[np.ndarray, "rows columns 3"]
Colours = Mapping[str, UInt8[np.ndarray, "3"]]  # by name of the category


def draw(
    image: ImageArray,
    result: Instances,
    *,
    boxes: bool = True,
    labels: bool = True,
    opacity: float = 0.45,
    colours: Colours | None = None,
) -> ImageArray:
    """Draw objects on a copy of their image, at its size.

    Masks are filled and outlined. An object has its box, or its oriented box if it has one; amodal boxes are dashed, if they
    extend beyond the visible ones; crowds are dashed. Keypoints are dots connected by the category's skeleton, with a
    white centre if visible and a black one if occluded. Tags show category and score, as far as there is room; see
    :func:`overlay`.

    Parameters
    ----------
    image
        Not changed.
    result
        Objects of the image.
    boxes
        Whether to draw boxes.
    labels
        Whether to write category and score.
    opacity
        Opacity of masks, in [0, 1].
    colours
        Colours by category (default: those of :func:`~otus.visualization.palette.category_colours`).
    """
    return _draw(image, result, boxes=boxes, labels=labels, opacity=opacity, colours=colours)[0]


def overlay(image: ImageArray, result: Instances, *, colours: Colours | None = None) -> Page:
    """Draw objects on a copy of their image for viewing; a small image is enlarged by an integer factor first.

    Tags never hide much of an object. If there is no room for category and score of all objects, the font becomes smaller;
    if that does not suffice, only the highest-scoring object of each category shows its category, and the others their
    score or nothing. A legend below then lists colour and number of objects of each category.

    Parameters
    ----------
    image
        Not changed.
    result
        Objects of the image.
    colours
        See :func:`draw`.
    """
    _check(image, result.size_hw)
    factor = max(1, -(-_MIN_OVERLAY_SIDE // max(*result.size_hw, 1)))
    if factor > 1:
        size_hw = (image.shape[0] * factor, image.shape[1] * factor)
        image = np.asarray(Image.fromarray(image).resize(size_hw[::-1], Image.Resampling.LANCZOS))
        result = result.resized(size_hw)
    canvas, complete = _draw(image, result, boxes=True, labels=True, opacity=0.45, colours=colours)
    return canvas if complete else _with_legend(canvas, object_legend([result], colours=colours))


def object_legend(
    results: Sequence[Instances], *, counts: bool = True, colours: Colours | None = None
) -> list[tuple[str, UInt8[np.ndarray, "3"]]]:
    """Return entries for :func:`~otus.visualization.text.legend`: the categories of all objects, the most frequent
    first, with their colours and, if ``counts``, their numbers of objects."""
    numbers = Counter(name for result in results for name in _names(result))
    shades: dict[str, UInt8[np.ndarray, "3"]] = {}
    for result in results:
        shades |= zip(_names(result), _shades(result, colours), strict=True)
    return [
        (f"{name} × {number}" if counts and number > 1 else name, shades[name])
        for name, number in numbers.most_common()
    ]


def _draw(
    image: ImageArray, result: Instances, *, boxes: bool, labels: bool, opacity: float, colours: Colours | None
) -> tuple[ImageArray, bool]:
    """Return the image, and whether every object has a tag with its category and score."""
    _check(image, result.size_hw)
    order = np.argsort(-_areas(result), kind="stable")  # small objects on top of large ones
    result = result[order]
    canvas = image.copy()
    shades = _shades(result, colours)
    width = line_width(result.size_hw, result.boxes_xyxy)
    if result.masks is not None:
        for mask, colour in zip(result.masks, shades, strict=True):
            _fill(canvas, mask, colour, opacity=opacity, width=max(1, round(0.7 * width)))
    scale = 2 if max(result.size_hw) <= _MAX_ANTIALIASED_SIDE else 1
    # Supersampling: pixels are repeated, and averaged back afterwards, so that those not drawn on do not change.
    enlarged = Image.fromarray(canvas.repeat(scale, axis=0).repeat(scale, axis=1))
    pen = ImageDraw.Draw(enlarged)
    for i, colour in enumerate(shades if boxes else []):
        _draw_boxes(pen, result, i, tuple(colour.tolist()), scale=scale, width=width * scale)
    for i, colour in enumerate(shades):
        _draw_keypoints(pen, result, i, tuple(colour.tolist()), scale=scale, width=width * scale)
    tags, complete = _tags(result, enlarged.size, scale=scale) if labels else ([], False)
    for i, tag in tags:
        tag.draw(pen, shades[i])
    return np.asarray(enlarged.reduce(scale)), complete


def _tags(result: Instances, size: tuple[int, int], *, scale: int) -> tuple[list[tuple[int, Tag]], bool]:
    """Return the tags that find room, with the indices of their objects; and whether all objects have complete tags.

    Styles are tried from the most informative on; the first in which nearly all tags find room is chosen.
    """
    count = len(result)
    order = np.arange(count) if result.scores is None else np.argsort(-result.scores, kind="stable")
    first_of_category = np.zeros(count, dtype=bool)
    first_of_category[np.unique(result.labels[order], return_index=True)[1]] = True
    order = np.concatenate([order[first_of_category], order[~first_of_category]])
    is_named = np.sort(first_of_category)[::-1]
    boxes = np.array([_enclosing_box(result, int(i)) * scale for i in order]).reshape(-1, 4)
    corners = [_corners(result, int(i)) for i in order]
    rings = [None if points is None else points * scale for points in corners]
    full: list[str | None] = [_label(result, int(i)) for i in order]
    scores = [None if result.scores is None else f"{result.scores[i]:.2f}" for i in order]
    named_and_scores = [text if named else score for text, named, score in zip(full, is_named, scores, strict=True)]
    named_only = [text if named else None for text, named in zip(full, is_named, strict=True)]
    font_size = text_size(result.size_hw)
    small = max(_SMALL_FONT_SCALE * font_size, min(_MIN_FONT_SIZE, font_size))
    styles = ((full, font_size), (full, small), (named_and_scores, small), (named_only, small))
    for texts, height in styles:
        max_skipped = int((1 - _MIN_PLACED_TAGS) * sum(text is not None for text in texts))
        last = texts is named_only
        tags = place_tags(texts, boxes, size, height * scale, max_skipped=None if last else max_skipped, rings=rings)
        skipped = sum(text is not None and tag is None for text, tag in zip(texts, tags, strict=True))
        if last or skipped <= max_skipped:
            break
    placed = [(int(i), tag) for i, tag in zip(order, tags, strict=True) if tag is not None]
    return placed, texts is full and len(placed) == count


def draw_semantic(
    image: ImageArray,
    semantic: SemanticMap,
    *,
    opacity: float = 0.6,
    names: bool = True,
    colours: Colours | None = None,
) -> Page:
    """Draw the category of every pixel over the image, with a legend below unless ``names`` is False.

    The result is higher than the image by the legend. Ignored pixels are not changed. See :func:`draw` for ``colours``.
    """
    _check(image, semantic.size_hw)
    labelled = semantic.labels != IGNORE
    present = [int(label) for label in np.unique(semantic.labels[labelled])]
    shades = _colours_of(present, semantic.categories, colours)
    table = np.zeros((IGNORE + 1, 3))
    table[present] = np.array(list(shades.values())).reshape(-1, 3)
    canvas = _blend(image, table[semantic.labels], labelled, opacity)
    _draw_borders(canvas, semantic.labels)
    entries = [(semantic.categories[label], shades[label]) for label in present]
    return _with_legend(canvas, entries) if names else canvas


def draw_panoptic(
    image: ImageArray,
    panoptic: PanopticMap,
    *,
    opacity: float = 0.6,
    names: bool = True,
    colours: Colours | None = None,
) -> Page:
    """Draw panoptic segments over the image: colours by category, objects of the same category in different shades.

    The legend below counts the objects of each category; it is left out if ``names`` is False. See :func:`draw` for
    ``colours``.
    """
    _check(image, panoptic.size_hw)
    ids, index = np.unique(panoptic.ids, return_inverse=True)
    segments = sorted((segment for segment in panoptic.segments if segment.id in ids), key=lambda segment: segment.id)
    counts = Counter(segment.label for segment in segments)
    shades = _colours_of(sorted(counts), panoptic.categories, colours)
    table = np.zeros((len(ids), 3))
    numbers: Counter[int] = Counter()
    for segment in segments:
        shade = _SHADES[numbers[segment.label] % len(_SHADES)] if panoptic.categories.is_thing[segment.label] else 0
        numbers[segment.label] += 1
        colour = shades[segment.label].astype(np.float64)
        table[np.searchsorted(ids, segment.id)] = colour + abs(shade) * ((255 if shade > 0 else 0) - colour)
    canvas = _blend(image, table[index.reshape(panoptic.ids.shape)], panoptic.ids > 0, opacity)
    _draw_borders(canvas, panoptic.ids)
    entries = []
    for label, colour in shades.items():
        countable = panoptic.categories.is_thing[label] and counts[label] > 1
        entries.append((panoptic.categories[label] + (f" × {counts[label]}" if countable else ""), colour))
    return _with_legend(canvas, entries) if names else canvas


def _colours_of(
    labels: list[int], categories: Categories, colours: Colours | None
) -> Mapping[int, UInt8[np.ndarray, "3"]]:
    if colours is None:
        return colours_apart(labels, len(categories))
    return {label: colours[categories[label]] for label in labels}


def _check(image: np.ndarray, size_hw: tuple[int, int]) -> None:
    if image.dtype != np.uint8 or image.shape != (*size_hw, 3):
        raise ShapeError(f"draw: expected an image uint8 {(*size_hw, 3)}, got {image.dtype} {image.shape}")


def _shades(result: Instances, colours: Colours | None) -> UInt8[np.ndarray, "n 3"]:
    """Return the colour of each object."""
    if colours is None or result.categories is None:
        return category_colours(_count(result))[result.labels]
    return np.array([colours[name] for name in _names(result)], dtype=np.uint8).reshape(-1, 3)


def _names(result: Instances) -> list[str]:
    """Return the category name of each object."""
    categories = result.categories
    return [str(label) if categories is None else categories[label] for label in result.labels.tolist()]


def _count(result: Instances) -> int:
    if result.categories is not None:
        return len(result.categories)
    return int(result.labels.max(initial=-1)) + 1


def _areas(result: Instances) -> Float[np.ndarray, "n"]:
    sides = result.boxes_xyxy[:, 2:] - result.boxes_xyxy[:, :2]
    return np.nan_to_num(sides[:, 0] * sides[:, 1])


def _label(result: Instances, i: int) -> str:
    name = _names(result[i])[0]
    if result.scores is not None:
        return f"{name} {result.scores[i]:.2f}"
    return f"{name} (crowd)" if result.column("is_crowd", False)[i] else name


def _corners(result: Instances, i: int) -> Float[np.ndarray, "4 2"] | None:
    """Return the corners of an object's oriented box; None if it has none."""
    boxes = result.oriented_boxes_xywhr
    if boxes is None or not np.isfinite(boxes[i]).all():
        return None
    return oriented.corners(boxes[i : i + 1])[0]


def _enclosing_box(result: Instances, i: int) -> Float[np.ndarray, "4"]:
    corners = _corners(result, i)
    return result.boxes_xyxy[i] if corners is None else np.concatenate([corners.min(axis=0), corners.max(axis=0)])


def _fill(
    image: ImageArray, mask: Bool[np.ndarray, "h w"], colour: UInt8[np.ndarray, "3"], *, opacity: float, width: int
) -> None:
    """Fill a mask and draw a line along the inside of its border, in place."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = np.pad(mask[window], width)
    eroded = inside.copy()
    for step in range(1, width + 1):
        for axis in (0, 1):
            eroded &= np.roll(inside, step, axis) & np.roll(inside, -step, axis)
    unpadded = (slice(width, -width), slice(width, -width))
    inside, edge = inside[unpadded], (inside & ~eroded)[unpadded]
    region = image[window]
    region[inside] = (region[inside] * (1 - opacity) + opacity * colour).astype(np.uint8)
    region[edge] = colour


def _draw_boxes(
    pen: ImageDraw.ImageDraw, result: Instances, i: int, colour: tuple[int, ...], *, scale: int, width: float
) -> None:
    corners = _corners(result, i)
    outline = _rectangle(result.boxes_xyxy[i]) if corners is None else corners
    _line_around(pen, outline * scale, colour, width, dashed=bool(result.column("is_crowd", False)[i]))
    amodal = result.amodal_boxes_xyxy
    if amodal is not None and np.abs(amodal[i] - result.boxes_xyxy[i]).max() > 1:  # False for NaN, no amodal box
        _line_around(pen, _rectangle(amodal[i]) * scale, colour, width, dashed=True)


def _rectangle(box_xyxy: Float[np.ndarray, "4"]) -> Float[np.ndarray, "4 2"]:
    x1, y1, x2, y2 = box_xyxy
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def _line_around(
    pen: ImageDraw.ImageDraw, points: Float[np.ndarray, "p 2"], colour: tuple[int, ...], width: float, *, dashed: bool
) -> None:
    """Draw a closed line; where it runs along the border of the image, it is moved inside."""
    half = width / 2
    limit = np.array(pen.im.size) - half
    on_border = np.abs(points - np.clip(points, half, limit)) <= half
    points = np.where(on_border, np.clip(points, half, limit), points)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        for a, b in _dashes(start, end, 4 * width) if dashed else [(start, end)]:
            _stroke(pen, a, b, colour, width)


def _stroke(
    pen: ImageDraw.ImageDraw, start: np.ndarray, end: np.ndarray, colour: tuple[int, ...], width: float
) -> None:
    """Draw a straight line with square ends, so that two of them form a complete corner."""
    along = (end - start) / max(float(np.linalg.norm(end - start)), 1e-9) * width / 2
    across = np.array([-along[1], along[0]])
    quad = np.array([start - along - across, end + along - across, end + along + across, start - along + across])
    pen.polygon((quad - 0.5).ravel().tolist(), fill=colour)  # Pillow's coordinates are those of pixel centres


def _dashes(start: np.ndarray, end: np.ndarray, length: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ends of dashes of about ``length``, with gaps two thirds as long, from ``start`` to ``end``."""
    distance = float(np.linalg.norm(end - start))
    count = max(1, round((distance + length * 2 / 3) / (length * 5 / 3)))
    unit = 1 / (count * 5 / 3 - 2 / 3)
    for k in range(count):
        first = k * unit * 5 / 3
        yield start + first * (end - start), start + min(first + unit, 1.0) * (end - start)


def _draw_keypoints(
    pen: ImageDraw.ImageDraw, result: Instances, i: int, colour: tuple[int, ...], *, scale: int, width: float
) -> None:
    if result.keypoints is None:
        return
    points, visibility = result.keypoints[i, :, :2] * scale, result.keypoints[i, :, 2]
    names = None if result.categories is None else result.categories.keypoints_of(result.categories[result.labels[i]])
    for a, b in names.skeleton if names is not None else ():
        if visibility[a] > 0 and visibility[b] > 0:
            _stroke(pen, points[a], points[b], (0, 0, 0), 2 * width)  # an outline, to stand out from the object's mask
            _stroke(pen, points[a], points[b], colour, 1.2 * width)
    radius = 1.8 * width
    for (x, y), point_visibility in zip(points, visibility, strict=True):
        if point_visibility > 0:
            fill = (255, 255, 255) if point_visibility > 1 else (0, 0, 0)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=colour, width=round(width))


def _blend(image: ImageArray, colours: np.ndarray, mask: Bool[np.ndarray, "h w"], opacity: float) -> ImageArray:
    blended = image * (1 - opacity) + opacity * colours
    return np.where(mask[..., None], blended.round().astype(np.uint8), image)


def _draw_borders(image: ImageArray, values: np.ndarray) -> None:
    """Draw white lines, in place, where neighbouring pixels have different values."""
    border = np.zeros(values.shape, dtype=bool)
    border[:, :-1] |= values[:, :-1] != values[:, 1:]
    border[:-1] |= values[:-1] != values[1:]
    image[border] = 255


def _with_legend(image: ImageArray, entries: list[tuple[str, np.ndarray]]) -> Page:
    size_hw = (image.shape[0], image.shape[1])
    return np.concatenate([image, legend(entries, size_hw[1], text_size(size_hw))])
