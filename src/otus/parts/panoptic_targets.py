"""What a system learns from the panoptic map of a tensor sample: its segments as objects."""

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
        raise ShapeError(f"sample {sample.get('key', '')}: expected a panoptic map to learn, got {sorted(sample)}")
    wrong = [segment for segment in sample["segments"] if not 0 <= segment.label < category_count]
    if wrong:
        raise ShapeError(
            f"sample {sample.get('key', '')}: expected labels from 0 to {category_count - 1}, got {wrong[0].label} of "
            f"segment {wrong[0].id}"
        )
    return sample["panoptic"].as_subclass(Tensor)


def segments_as_objects(sample: TensorSample, ids: Tensor, labels: Mapping[int, int]) -> TensorSample:
    """Return the segments of some categories as the objects of a sample, with masks and the boxes around these.

    Parameters
    ----------
    ids
        The segment ids of the sample.
    labels
        By the label of a segment that of its object; other segments are left out.
    """
    chosen = [segment for segment in sample["segments"] if segment.label in labels]
    masks = ids == torch.tensor([segment.id for segment in chosen], dtype=ids.dtype, device=ids.device)[:, None, None]
    seen = masks.flatten(start_dim=1).any(dim=1)  # augmentation may have cut off the others
    masks, chosen = masks[seen], [segment for segment, is_seen in zip(chosen, seen.tolist(), strict=True) if is_seen]
    boxes = masks_to_boxes(masks)
    boxes[:, 2:] += 1  # pixel i covers [i, i + 1)
    return {
        "key": sample.get("key", ""),
        "boxes": boxes,
        "labels": torch.tensor([labels[segment.label] for segment in chosen], dtype=torch.int64),
        "is_crowd": torch.tensor([segment.is_crowd for segment in chosen], dtype=torch.bool),
        "masks": tv_tensors.Mask(masks),
    }
