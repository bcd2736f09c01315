"""Training targets from the panoptic map of a tensor sample: segment ids, and segments as objects."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from otus.data.tensors import TensorSample
from otus.errors import ShapeError


def panoptic_ids(sample: TensorSample, *, category_count: int) -> Tensor:
    """Return the segment ids of a sample, int64 (H, W).

    Raises
    ------
    ShapeError
        If it has no panoptic map, or a segment's label is not in 0..category_count - 1.
    """
    if "panoptic" not in sample or "segments" not in sample:
        raise ShapeError(
            f"sample {sample.get('key', '')}: expected a panoptic map and its segments, got {sorted(sample)}"
        )
    invalid = [segment for segment in sample["segments"] if not 0 <= segment.label < category_count]
    if invalid:
        raise ShapeError(
            f"sample {sample.get('key', '')}: expected labels from 0 to {category_count - 1}, got {invalid[0].label} of "
            f"segment {invalid[0].id}"
        )
    return sample["panoptic"].as_subclass(Tensor)


def segments_as_objects(sample: TensorSample, ids: Tensor, labels: Mapping[int, int]) -> TensorSample:
    """Return a sample whose objects are the segments of some categories, with masks and boxes around these.

    Parameters
    ----------
    sample
        A sample with ``segments``.
    ids
        Segment ids of the sample, int64 (H, W).
    labels
        Label of the object for each label of a segment; segments with other labels are left out.
    """
    segments = [segment for segment in sample["segments"] if segment.label in labels]
    masks = ids == torch.tensor([segment.id for segment in segments], dtype=ids.dtype, device=ids.device)[:, None, None]
    nonempty = masks.flatten(start_dim=1).any(dim=1)  # augmentation may have cropped others away
    masks = masks[nonempty]
    segments = [segment for segment, kept in zip(segments, nonempty.tolist(), strict=True) if kept]
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1  # pixel i covers [i, i + 1)
    return {
        "key": sample.get("key", ""),
        "boxes": boxes,
        "labels": torch.tensor([labels[segment.label] for segment in segments], dtype=torch.int64),
        "is_crowd": torch.tensor([segment.is_crowd for segment in segments], dtype=torch.bool),
        "masks": tv_tensors.Mask(masks),
    }
