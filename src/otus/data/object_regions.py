"""Each object of a data set as an image of its own, of which one region is looked at: how a classifier is judged by
objects."""

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
    """A data set of regions: ``image_labels`` are theirs, and samples carry the box as ``Sample.columns["region_xyxy"]``."""

    regions_xyxy: Float[np.ndarray, "m 4"] = field(kw_only=True)

    def input(self, index: int, *, target_size: "TargetSize | None" = None) -> Sample:
        """The image of a region, and its box."""
        sample = super().input(index)  # at its own size, in which the box is
        return replace(sample, columns={"region_xyxy": self.regions_xyxy[index : index + 1]})


def objects_as_regions(dataset: Dataset) -> RegionDataset:
    """Return one image per object of a data set, in their order; crowds and boxes without area are left out."""
    objects = dataset.objects
    assert objects is not None
    boxes = objects.boxes_xyxy
    chosen = np.flatnonzero(~objects.is_crowd & (boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    bare = replace(dataset, objects=None, semantic=None, panoptic=None).select(objects.image_index[chosen])
    known = {one.name: getattr(bare, one.name) for one in fields(Dataset)}
    return RegionDataset(**{**known, "image_labels": objects.labels[chosen]}, regions_xyxy=boxes[chosen])
