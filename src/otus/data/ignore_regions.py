"""Recognise ignore regions, areas that training and metrics skip, by the names of their categories."""

import re
from dataclasses import replace

import numpy as np

from otus.data.dataset import Dataset
from otus.metrics.detection.ignore_regions import COLUMN

# Of KITTI, VisDrone, UAVDT, LabelMe's __ignore__; compared as lower-case letters only.
_NAMES = frozenset(
    ("dontcare", "ignore", "ignored", "ignoreregion", "ignoreregions", "ignoredregion", "ignoredregions")
)


def with_ignore_regions(dataset: Dataset) -> Dataset:
    """Mark objects of ignore-region categories as crowds, with the column ``ignored``."""
    objects = dataset.objects
    names = [re.sub("[^a-z]", "", name.casefold()) for name in dataset.categories]
    labels = [label for label, name in enumerate(names) if name in _NAMES]
    if objects is None or not labels:
        return dataset
    is_region = np.isin(objects.labels, labels)
    is_ignored = np.asarray(objects.columns.get(COLUMN, np.zeros(len(objects)))) == 1
    if not (is_region & ~(is_ignored & objects.is_crowd)).any():
        return dataset
    columns = {**objects.columns, COLUMN: is_region | is_ignored}
    return replace(dataset, objects=replace(objects, is_crowd=objects.is_crowd | is_region, columns=columns))
