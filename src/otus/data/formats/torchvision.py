"""Objects as the dicts of torchvision's detectors, and back.

https://docs.pytorch.org/vision/stable/models.html#object-detection-instance-segmentation-and-person-keypoint-detection:
``boxes`` (N, 4) float32 xyxy, ``labels`` (N,) int64, ``scores`` (N,), ``masks``, ``keypoints`` (N, K, 3), in pixels.
torchvision reserves label 0 for background; labels of Otus start at 0, without background.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otus.errors import ShapeError
from otus.structures import Categories, Instances, Masks

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = {"area": "areas", "iscrowd": "is_crowd"}  # names in torchvision's reference targets, and in Otus


def to_torchvision(instances: Instances, *, class_indices: Sequence[int] | None = None) -> dict[str, "Tensor"]:
    """Return the objects as a dict of tensors: a target of torchvision's detectors, or a prediction if they have scores.

    Parameters
    ----------
    instances
        N objects. Masks become uint8 (N, H, W); the columns ``is_crowd`` and ``areas`` become ``iscrowd`` and ``area``,
        keypoint scores ``keypoints_scores``.
    class_indices
        torchvision's label of each category (default: 1, 2, …, since 0 is background). For COCO's 91 classes:
        ``categories.ids``.

    Raises
    ------
    ShapeError
        If a label has no class index.
    """
    import torch

    arrays: dict[str, Any] = {
        "boxes": instances.boxes_xyxy.astype(np.float32),
        "labels": _to_class_indices(instances.labels, class_indices),
    }
    if instances.scores is not None:
        arrays["scores"] = instances.scores.astype(np.float32)
    if instances.masks is not None:
        arrays["masks"] = instances.masks.dense().astype(np.uint8)
    if instances.keypoints is not None:
        arrays["keypoints"] = instances.keypoints.astype(np.float32)
    if instances.keypoint_scores is not None:
        arrays["keypoints_scores"] = instances.keypoint_scores.astype(np.float32)
    if "areas" in instances.columns:
        arrays["area"] = instances.columns["areas"].astype(np.float32)
    if "is_crowd" in instances.columns:
        arrays["iscrowd"] = instances.columns["is_crowd"].astype(np.int64)
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def from_torchvision(
    output: Mapping[str, Any],
    *,
    size_hw: tuple[int, int],
    categories: Categories | None = None,
    class_indices: Sequence[int] | None = None,
    mask_threshold: float = 0.5,
) -> Instances:
    """Return a target or prediction of torchvision's detectors as instances.

    Parameters
    ----------
    output
        A dict of tensors or arrays, with ``boxes`` and ``labels``; the other keys are optional.
    size_hw
        Height and width of the image.
    categories
        Names of the labels, without background.
    class_indices
        As in :func:`to_torchvision`.
    mask_threshold
        Minimum probability of a pixel of a predicted mask.

    Raises
    ------
    ShapeError
        If ``boxes`` or ``labels`` are missing, a label is background or not in ``class_indices``, or shapes do not
        match.
    """
    missing = [name for name in ("boxes", "labels") if name not in output]
    if missing:
        raise ShapeError(f"output: expected boxes and labels, got {', '.join(map(str, output)) or 'an empty dict'}")
    arrays = {name: _array(value) for name, value in output.items()}
    masks = arrays.get("masks")
    if masks is not None:
        masks = masks[:, 0] if masks.ndim == 4 else masks  # a detector returns (N, 1, H, W)
        masks = masks >= mask_threshold if masks.dtype.kind == "f" else masks != 0
    return Instances(
        arrays["boxes"],
        _to_labels(arrays["labels"], class_indices),
        size_hw,
        categories,
        scores=arrays.get("scores"),
        masks=None if masks is None else Masks.from_dense(masks),
        keypoints=arrays.get("keypoints"),
        keypoint_scores=arrays.get("keypoints_scores"),
        columns={ours: arrays[theirs] for theirs, ours in _COLUMNS.items() if theirs in arrays},
    )


def _to_class_indices(labels: np.ndarray, class_indices: Sequence[int] | None) -> np.ndarray:
    if class_indices is None:
        return labels + 1
    if len(labels) and labels.max() >= len(class_indices):
        raise ShapeError(
            f"class_indices: expected one per category, up to label {labels.max()}, got {len(class_indices)}"
        )
    return np.array(class_indices, dtype=np.int64)[labels] if len(labels) else labels


def _to_labels(indices: np.ndarray, class_indices: Sequence[int] | None) -> np.ndarray:
    if class_indices is None:
        labels = indices.astype(np.int64) - 1
    else:
        label_of = {index: label for label, index in enumerate(class_indices)}
        labels = np.array([label_of.get(index, -1) for index in indices.tolist()], dtype=np.int64)
    if (labels < 0).any():
        invalid = sorted(set(indices[labels < 0].tolist()))
        raise ShapeError(
            f"labels: {invalid} are background or not in class_indices; remove those objects, or pass class_indices"
        )
    return labels


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
