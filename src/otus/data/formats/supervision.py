"""Objects as supervision's ``Detections`` and ``KeyPoints``, and back (https://supervision.roboflow.com).

Both have ``xyxy`` boxes in pixels, labels from 0, and masks of the size of the image. ``Detections`` have no image size,
their category names are a column, and keypoints are a separate object.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from otus.errors import MissingExtraError, ShapeError
from otus.structures import Categories, Instances, Masks, oriented

if TYPE_CHECKING:
    from supervision import Detections, KeyPoints

_CLASS_NAMES = "class_name"
_CORNERS = "xyxyxyxy"
_VISIBILITY = "visibility"


def to_supervision(instances: Instances) -> "Detections":
    """Return the objects as ``supervision.Detections``.

    Parameters
    ----------
    instances
        N objects. Masks become dense, N x H x W bytes; oriented boxes their corners, as ``data["xyxyxyxy"]``; named columns
        go into ``data``, the names of the categories as ``data["class_name"]``. Keypoints: :func:`to_supervision_keypoints`.

    Raises
    ------
    MissingExtraError
        If supervision is not installed.
    """
    data = {name: np.asarray(column) for name, column in instances.columns.items()}
    if instances.oriented_boxes_xywhr is not None:
        data[_CORNERS] = oriented.corners(instances.oriented_boxes_xywhr)
    return _supervision().Detections(
        xyxy=instances.boxes_xyxy,
        mask=None if instances.masks is None else instances.masks.dense(),
        confidence=instances.scores,
        class_id=instances.labels,
        data=data | _category_names(instances),
    )


def from_supervision(
    detections: "Detections",
    *,
    size_hw: tuple[int, int],
    categories: Categories | None = None,
    keypoints: "KeyPoints | None" = None,
) -> Instances:
    """Return ``supervision.Detections`` as instances.

    Parameters
    ----------
    detections
        N objects. ``data["xyxyxyxy"]`` becomes oriented boxes, ``tracker_id`` and the other arrays of ``data`` named
        columns.
    size_hw
        Height and width of the image.
    categories
        Names of the labels. With them, ``data["class_name"]`` takes precedence over ``class_id``.
    keypoints
        Keypoints of the same N objects, in the same order.

    Raises
    ------
    ShapeError
        If there are neither class ids nor names, a name is not in ``categories``, or the number or size of masks or
        keypoints does not match.
    """
    count, data = len(detections), dict(detections.data)
    names = data.pop(_CLASS_NAMES, None) if categories is not None else None
    if names is not None and categories is not None:
        labels = [categories.index(str(name)) for name in names]
    elif detections.class_id is not None:
        labels = np.asarray(detections.class_id).tolist()
    elif count:
        raise ShapeError("detections: expected class_id or data['class_name'], got neither; set one of them")
    else:
        labels = []
    points, point_scores = (None, None) if keypoints is None else _keypoints(keypoints, count)
    corners = data.pop(_CORNERS, None)
    columns = {name: np.asarray(column) for name, column in data.items()}
    if detections.tracker_id is not None:
        columns["tracker_id"] = detections.tracker_id
    return Instances(
        detections.xyxy,
        np.array(labels, dtype=np.int64),
        size_hw,
        categories,
        scores=detections.confidence,
        masks=None if detections.mask is None else Masks.from_dense(np.asarray(detections.mask)),
        oriented_boxes_xywhr=None if corners is None else oriented.from_corners(np.asarray(corners)),
        columns=columns,
        keypoints=points,
        keypoint_scores=point_scores,
    )


def to_supervision_keypoints(instances: Instances) -> "KeyPoints":
    """Return the keypoints of the objects as ``supervision.KeyPoints``; visibility 1 and 2 count as visible.

    The visibility is stored in ``data["visibility"]``, where :func:`from_supervision` reads it.

    Raises
    ------
    ShapeError
        If the objects have no keypoints.
    MissingExtraError
        If supervision is not installed.
    """
    if instances.keypoints is None:
        raise ShapeError("instances: expected keypoints, got None; to_supervision converts boxes and masks")
    visibility = instances.keypoints[:, :, 2]
    return _supervision().KeyPoints(
        xy=instances.keypoints[:, :, :2].astype(np.float32),
        class_id=instances.labels,
        keypoint_confidence=_float32(instances.keypoint_scores),
        detection_confidence=_float32(instances.scores),
        visible=visibility > 0,
        data={_VISIBILITY: visibility.astype(np.int64), **_category_names(instances)},
    )


def _keypoints(keypoints: "KeyPoints", count: int) -> tuple[np.ndarray, np.ndarray | None]:
    if len(keypoints) != count:
        raise ShapeError(f"keypoints: expected those of {count} objects, as in detections, got {len(keypoints)}")
    visibility = keypoints.data.get(_VISIBILITY)
    if visibility is None:
        visible = keypoints.visible if keypoints.visible is not None else (keypoints.xy != 0).any(axis=-1)
        visibility = np.where(visible, 2, 0)
    points = np.concatenate([keypoints.xy, np.asarray(visibility)[..., None]], axis=-1)
    return points, keypoints.keypoint_confidence


def _category_names(instances: Instances) -> dict[str, np.ndarray]:
    if instances.categories is None:
        return {}
    names = [instances.categories[label] for label in instances.labels.tolist()]
    return {_CLASS_NAMES: np.array(names, dtype=str)}


def _float32(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.astype(np.float32)


def _supervision() -> Any:
    try:
        import supervision
    except ImportError:
        raise MissingExtraError("supervision", "supervision", "converting objects to supervision") from None
    return supervision
