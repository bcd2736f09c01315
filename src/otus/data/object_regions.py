"""Evaluate a classifier on objects: each object of a data set becomes a sample, its image with the box to classify."""

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from otus.data.dataset import Dataset
from otus.data.sample import Sample

if TYPE_CHECKING:
    from otus.data.images import TargetSize


@dataclass(frozen=True, eq=False)
class RegionDataset(Dataset):
    """A data set of M regions: ``image_labels`` are their labels, and ``Sample.columns["region_xyxy"]`` is the box."""

    regions_xyxy: Float[np.ndarray, "m 4"] = field(kw_only=True)

    def input(self, index: int, *, target_size: "TargetSize | None" = None) -> Sample:
        """Return the image of a region, and its box."""
        sample = super().input(index)  # not reduced: the box is in pixels of the full image
        return replace(sample, columns={"region_xyxy": self.regions_xyxy[index : index + 1]})


def objects_as_regions(dataset: Dataset) -> RegionDataset:
    """Return a data set with one sample per object, in order; crowds and boxes without area are left out."""
    objects = dataset.objects
    assert objects is not None
    boxes = objects.boxes_xyxy
    indices = np.flatnonzero(~objects.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    images = replace(dataset, objects=None, semantic=None, panoptic=None).select(objects.image_index[indices])
    values = {attribute.name: getattr(images, attribute.name) for attribute in fields(Dataset)}
    return RegionDataset(**{**values, "image_labels": objects.labels[indices]}, regions_xyxy=boxes[indices])
