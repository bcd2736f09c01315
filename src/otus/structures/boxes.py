"""Axis-aligned boxes.

Shape shorthand: N, M boxes. A box is ``xyxy`` in absolute continuous pixels everywhere inside Otus: pixel i covers [i,
i + 1), so a box's width is x2 - x1, never + 1. Other formats (:class:`BoxFormat`) are converted when read or written.
"""

from enum import Enum

import numpy as np
from jaxtyping import Float

from otus.errors import ShapeError


class BoxFormat(Enum):
    """Meaning of the four numbers of a box."""

    XYXY = "xyxy"
    """Left, top, right, bottom: Otus and torchvision."""
    XYWH = "xywh"
    """Left, top, width, height: COCO."""
    CXCYWH = "cxcywh"
    """Centre x, y, width, height: DETR and YOLO, which divide by the image's size."""
    VOC = "voc"
    """Left, top, right, bottom as 1-based inclusive pixels: Pascal VOC. Pixel 1 is [0, 1) here."""


def as_boxes(boxes: object) -> Float[np.ndarray, "n 4"]:
    """Return boxes as an (N, 4) array, float32 or float64 as given, else float64; ``[]`` gives (0, 4).

    Raises
    ------
    ShapeError
        If it is not (N, 4).
    """
    array = np.asarray(boxes)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ShapeError(f"boxes: expected shape (N, 4), got {array.shape}")
    return array


def convert(boxes: object, source: BoxFormat, target: BoxFormat) -> Float[np.ndarray, "n 4"]:
    """Convert boxes (N, 4) to another format; returns a new array.

    >>> convert([[10, 20, 30, 40]], BoxFormat.XYWH, BoxFormat.XYXY).tolist()
    [[10.0, 20.0, 40.0, 60.0]]
    """
    a, b, c, d = as_boxes(boxes).T
    match source:
        case BoxFormat.XYXY:
            x1, y1, x2, y2 = a, b, c, d
        case BoxFormat.XYWH:
            x1, y1, x2, y2 = a, b, a + c, b + d
        case BoxFormat.CXCYWH:
            x1, y1, x2, y2 = a - c / 2, b - d / 2, a + c / 2, b + d / 2
        case BoxFormat.VOC:
            x1, y1, x2, y2 = a - 1, b - 1, c, d
    match target:
        case BoxFormat.XYXY:
            columns = x1, y1, x2, y2
        case BoxFormat.XYWH:
            columns = x1, y1, x2 - x1, y2 - y1
        case BoxFormat.CXCYWH:
            columns = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        case BoxFormat.VOC:
            columns = x1 + 1, y1 + 1, x2, y2
    return np.stack(columns, axis=1)


def clip(boxes_xyxy: Float[np.ndarray, "n 4"], size_hw: tuple[int, int]) -> Float[np.ndarray, "n 4"]:
    """Clip boxes to an image of ``size_hw``; a box outside of it becomes one without area."""
    height, width = size_hw
    limit = np.array([width, height, width, height], dtype=boxes_xyxy.dtype)
    return np.clip(boxes_xyxy, 0, limit)


def area(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n"]:
    """Return areas in square pixels, 0 where x2 < x1 or y2 < y1."""
    width = np.maximum(boxes_xyxy[:, 2] - boxes_xyxy[:, 0], 0)
    return width * np.maximum(boxes_xyxy[:, 3] - boxes_xyxy[:, 1], 0)


def written_sizes_wh(boxes_xyxy: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 2"]:
    """Return widths and heights for xywh files: rounded to 9 decimals where x1 + width still gives exactly x2.

    ``(x + w) - x`` is rarely ``w`` to the last bit, and an IoU of exactly 0.5 must stay exactly 0.5.

    >>> float(0.3 + 0.6 - 0.3), written_sizes_wh(as_boxes([[0.3, 0, 0.3 + 0.6, 1]])).tolist()
    (0.5999999999999999, [[0.6, 1.0]])
    """
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    size = high - low
    rounded = np.round(size, 9)
    return np.where(low + rounded == high, rounded, size)


def _pairwise_intersection(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.maximum(bottom_right - top_left, 0), axis=2)


def pairwise_iou(a_xyxy: Float[np.ndarray, "n 4"], b_xyxy: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Return the IoU (Jaccard index) of every box of ``a`` with every box of ``b``, in [0, 1]; 0 if the union is empty.

    >>> pairwise_iou(as_boxes([[0, 0, 2, 2]]), as_boxes([[1, 0, 3, 2]])).round(4).tolist()
    [[0.3333]]
    """
    intersection = _pairwise_intersection(a_xyxy, b_xyxy)
    union = area(a_xyxy)[:, None] + area(b_xyxy)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def pairwise_giou(a_xyxy: Float[np.ndarray, "n 4"], b_xyxy: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Return the generalised IoU, in [-1, 1]: IoU - (hull - union) / hull, where hull is the enclosing box.

    Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, algorithm 1.
    """
    intersection = _pairwise_intersection(a_xyxy, b_xyxy)
    union = area(a_xyxy)[:, None] + area(b_xyxy)[None, :] - intersection
    top_left = np.minimum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    bottom_right = np.maximum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    hull = np.prod(bottom_right - top_left, axis=2)
    iou = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou - np.divide(hull - union, hull, out=np.zeros_like(hull), where=hull > 0)
