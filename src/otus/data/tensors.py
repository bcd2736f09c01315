"""Convert a numpy :class:`~otus.data.sample.Sample` to torch tensors.

Shape shorthand: H x W the image, N objects, K keypoints, P proposals.

A *tensor sample* is a plain dict, because ``torchvision.transforms.v2`` transforms the values of dicts but not the
fields of dataclasses. A key is absent if its value is unknown.

=================  ============================  =====================================================================
of the image
``image``          Image float32 (3, H, W)       in [0, 1]
``key``            str                           the image's name in its data set
``label``          int64 ()                      class index of the whole image
``semantic``       Mask int64 (H, W)             class indices, 255: ignore
``panoptic``       Mask int64 (H, W)             segment ids, 0: no segment
``segments``       list of Segment               id and category of each segment
``proposals``      BoundingBoxes float32 (P, 4)  ``Sample.columns["proposals_xyxy"]``; ``region`` likewise
of the objects
``boxes``          BoundingBoxes float32 (N, 4)  xyxy
``labels``         int64 (N,)
``is_crowd``       bool (N,)
``areas``          float32 (N,)                  square pixels
``masks``          Mask bool (N, H, W)           all False for an object without a segmentation
``keypoints``      KeyPoints float32 (N, K, 2)
``visibility``     int64 (N, K)                  0 not labelled, 1 hidden, 2 visible
``flip_order``     int64 (N, K)                  permutation of the object's keypoints under a horizontal flip
``corners``        KeyPoints float32 (N, 4, 2)   of oriented boxes, NaN where an object has none
``amodal_boxes``   BoundingBoxes float32 (N, 4)
``amodal_masks``   Mask bool (N, H, W)
any other key      (N, ...)                      further numeric columns of the objects: ``ids``, ``difficult`` …
=================  ============================  =====================================================================

A further column that has the name of a key above, such as ``visibility``, is left out: a COCO file may name its own
fields as it likes.
"""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors

from otus.data.sample import Sample
from otus.structures import Instances, Masks, oriented
from otus.structures.boxes import area

TensorSample = dict[str, Any]

_IMAGE_KEYS = frozenset({"image", "key", "label", "semantic", "panoptic", "segments"})
_RESERVED_KEYS = _IMAGE_KEYS | {
    *("proposals", "region", "boxes", "labels", "is_crowd", "areas", "masks", "amodal_boxes", "amodal_masks"),
    *("keypoints", "visibility", "flip_order", "corners"),
}


def to_tensors(sample: Sample, *, boxes: Literal["modal", "amodal"] = "modal") -> TensorSample:
    """Convert a sample to a tensor sample (see the top of this file), sharing no memory with it.

    Parameters
    ----------
    boxes
        Which extent of the objects ``boxes`` and ``masks`` hold: ``modal``, the visible part (default), or ``amodal``,
        the whole object including occluded parts, where it is annotated.
    """
    return {
        "image": tv_tensors.Image(_tensor(sample.image.transpose(2, 0, 1)).float().div_(255)),
        **target_tensors(sample, boxes=boxes),
    }


def target_tensors(
    sample: Sample, *, boxes: Literal["modal", "amodal"] = "modal", masks_hw: tuple[int, int] | None = None
) -> TensorSample:
    """Convert everything in a sample except its image.

    Parameters
    ----------
    boxes
        As in :func:`to_tensors`.
    masks_hw
        Height and width to which masks and maps are resized by nearest neighbour (default: the image's). Saves memory:
        masks are not decoded at the size of a large image. Boxes, points and areas stay in the image's pixels.
    """
    tensors: TensorSample = {"key": sample.key}
    if sample.label is not None:
        tensors["label"] = torch.tensor(sample.label)
    if sample.semantic is not None:
        tensors["semantic"] = tv_tensors.Mask(_tensor(_nearest(sample.semantic.labels, masks_hw)).long())
    if sample.panoptic is not None:
        tensors["panoptic"] = tv_tensors.Mask(_tensor(_nearest(sample.panoptic.ids, masks_hw)).long())
        tensors["segments"] = list(sample.panoptic.segments)  # a tuple would come out of a DataLoader as a list
    for name, column in sample.columns.items():
        if name.endswith("_xyxy"):
            tensors[name.removesuffix("_xyxy")] = bounding_boxes(column, sample.size_hw)
    if sample.instances is not None:
        instances = amodal_view(sample.instances) if boxes == "amodal" else sample.instances
        tensors |= _object_tensors(instances, masks_hw or sample.size_hw)
    return tensors


def object_keys(tensors: TensorSample) -> list[str]:
    """Return the keys whose values have a row per object, in the order of the dict."""
    return [key for key in tensors if key not in _IMAGE_KEYS and not is_image_boxes(tensors, key)]


def is_image_boxes(tensors: TensorSample, key: str) -> bool:
    """Return whether a key holds boxes that are not the objects', such as ``proposals``."""
    return isinstance(tensors[key], tv_tensors.BoundingBoxes) and key not in ("boxes", "amodal_boxes")


def bounding_boxes(boxes_xyxy: Any, size_hw: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Return boxes (N, 4) xyxy as torchvision's float32 ``BoundingBoxes``."""
    data = torch.as_tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4).clone()
    return tv_tensors.BoundingBoxes(data, format="XYXY", canvas_size=size_hw)


def sample_generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """Return a generator seeded by seed, epoch and sample index, independent of worker and order of samples."""
    state = np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def amodal_view(instances: Instances) -> Instances:
    """Return the objects with their modal boxes and masks replaced by the amodal, where those are annotated."""
    changes: dict[str, Any] = {"amodal_boxes_xyxy": None, "amodal_masks": None}
    amodal_boxes = instances.amodal_boxes_xyxy
    if amodal_boxes is not None:
        annotated = np.isfinite(amodal_boxes).all(axis=1)[:, None]
        changes["boxes_xyxy"] = np.where(annotated, amodal_boxes, instances.boxes_xyxy)
    if instances.amodal_masks is not None and len(instances):
        masks = instances.amodal_masks.rle()
        if instances.masks is not None:
            pairs = zip(masks, instances.masks.rle(), instances.amodal_masks.area(), strict=True)
            masks = [amodal if pixels else visible for amodal, visible, pixels in pairs]
        changes["masks"] = Masks.from_rle([rle["counts"] for rle in masks], instances.size_hw)  # type: ignore[misc]
    if "areas" in instances.columns:
        changes["columns"] = {name: column for name, column in instances.columns.items() if name != "areas"}
    return replace(instances, **changes)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))  # a copy: the source may be read-only


def _areas(instances: Instances) -> np.ndarray:
    if "areas" in instances.columns:
        return instances.columns["areas"]
    box_areas = area(instances.boxes_xyxy)
    if instances.masks is None:
        return box_areas
    mask_areas = instances.masks.area()
    return np.where(mask_areas > 0, mask_areas, box_areas)


def _nearest(values: np.ndarray, size_hw: tuple[int, int] | None) -> np.ndarray:
    """Resize a map by nearest neighbour, as :meth:`Masks.resized` does."""
    if size_hw is None or size_hw == values.shape:
        return values
    rows, columns = (np.arange(new) * old // new for new, old in zip(size_hw, values.shape, strict=True))
    return values[rows[:, None], columns]


def _masks(masks: Masks | None, count: int, size_hw: tuple[int, int]) -> tv_tensors.Mask | None:
    if masks is None:
        # Readers give None for an image without objects; all samples of a batch must have the same keys.
        return tv_tensors.Mask(torch.zeros(0, *size_hw, dtype=torch.bool)) if count == 0 else None
    resized = masks if tuple(masks.size_hw) == size_hw else masks.resized(size_hw)
    dense = resized.dense()
    is_shared = resized is masks and masks.form == "dense"
    return tv_tensors.Mask(torch.from_numpy(dense.copy() if is_shared else dense))


def _flip_order(instances: Instances, num_keypoints: int) -> Tensor:
    """Return the (N, K) permutations of keypoints by category; points without a name stay in their place."""
    order = np.tile(np.arange(num_keypoints), (len(instances), 1))
    if instances.categories is not None:
        for name, keypoints in instances.categories.keypoints:
            if len(keypoints) <= num_keypoints:  # no object has keypoints of a category with more
                rows = instances.labels == instances.categories.index(name)
                order[rows, : len(keypoints)] = keypoints.flip_order()
    return _tensor(order)


def _object_tensors(instances: Instances, masks_hw: tuple[int, int]) -> TensorSample:
    size_hw = instances.size_hw
    tensors: TensorSample = {
        "boxes": bounding_boxes(instances.boxes_xyxy, size_hw),
        "labels": _tensor(instances.labels),
        "is_crowd": _tensor(instances.column("is_crowd", False)).bool(),
        "areas": _tensor(_areas(instances)).float(),
        "masks": _masks(instances.masks, len(instances), masks_hw),
    }
    if instances.keypoints is not None:
        points = _tensor(instances.keypoints)
        tensors["keypoints"] = tv_tensors.KeyPoints(points[..., :2].float(), canvas_size=size_hw)
        tensors["visibility"] = points[..., 2].long()
        tensors["flip_order"] = _flip_order(instances, points.shape[1])
    if instances.oriented_boxes_xywhr is not None:
        corners = _tensor(oriented.corners(instances.oriented_boxes_xywhr)).float()
        tensors["corners"] = tv_tensors.KeyPoints(corners, canvas_size=size_hw)
    if instances.amodal_boxes_xyxy is not None:
        tensors["amodal_boxes"] = bounding_boxes(instances.amodal_boxes_xyxy, size_hw)
    if instances.amodal_masks is not None:
        tensors["amodal_masks"] = _masks(instances.amodal_masks, len(instances), masks_hw)
    for name, column in instances.columns.items():
        if name not in _RESERVED_KEYS and np.asarray(column).dtype.kind in "biuf":
            tensors[name] = _tensor(column)
    return {key: value for key, value in tensors.items() if value is not None}
