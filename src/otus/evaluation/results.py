"""A model's results as the metrics want them. Torch is not imported here."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from otus.structures import Categories, Instances, Objects, Segmentations, oriented


def as_objects(found: Mapping[int, Instances], *, categories: Categories) -> Objects:
    """Predictions by index of the image as columns.

    Parameters
    ----------
    found
        With scores.
    categories
        Of the data set. Predictions of a category that it has not are left out.
    """
    several = [(index, _relabelled(found[index], categories)) for index in sorted(found)]
    several = [(index, instances) for index, instances in several if len(instances)]
    if not several:
        return Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    all_instances = [instances for _, instances in several]
    masks = [instances.masks for instances in all_instances]
    keypoints = [instances.keypoints for instances in all_instances]
    turned = [instances.oriented_boxes_xywhr for instances in all_instances]
    return Objects.build(
        image_index=np.repeat([index for index, _ in several], [len(instances) for instances in all_instances]),
        labels=np.concatenate([instances.labels for instances in all_instances]),
        boxes_xyxy=np.concatenate([instances.boxes_xyxy for instances in all_instances]),
        scores=np.concatenate([instances.scores for instances in all_instances if instances.scores is not None]),
        segmentations=Segmentations.build(r["counts"] for m in masks if m is not None for r in m.rle())  # type: ignore[misc]
        if masks[0] is not None
        else None,
        keypoints=np.concatenate([k for k in keypoints if k is not None]) if keypoints[0] is not None else None,
        corners_xy=np.concatenate([oriented.corners(t) for t in turned if t is not None])
        if turned[0] is not None
        else None,
    )


def _relabelled(instances: Instances, categories: Categories) -> Instances:
    """With labels as another list of categories has them."""
    own = instances.categories
    if own is None or own.names == categories.names:
        return instances
    lookup = np.array([categories.names.index(name) if name in categories.names else -1 for name in own])
    known = instances[lookup[instances.labels] >= 0]
    return replace(known, labels=lookup[known.labels], categories=categories)
