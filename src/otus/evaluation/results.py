"""Convert a model's results to the columns that the metrics take. Torch is not imported here."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from otus.structures import Categories, Instances, Objects, Segmentations, oriented


def as_objects(results: Mapping[int, Instances], *, categories: Categories) -> Objects:
    """Return instances by image index as columns.

    Parameters
    ----------
    results
        Instances with scores.
    categories
        Categories of the data set; predictions of other categories are dropped.
    """
    pairs = [(index, _relabelled(results[index], categories)) for index in sorted(results)]
    pairs = [(index, instances) for index, instances in pairs if len(instances)]
    if not pairs:
        return Objects.build(image_index=[], labels=[], boxes_xyxy=[], scores=np.zeros(0))
    all_instances = [instances for _, instances in pairs]
    masks = [instances.masks for instances in all_instances]
    keypoints = [instances.keypoints for instances in all_instances]
    oriented_boxes = [instances.oriented_boxes_xywhr for instances in all_instances]
    return Objects.build(
        image_index=np.repeat([index for index, _ in pairs], [len(instances) for instances in all_instances]),
        labels=np.concatenate([instances.labels for instances in all_instances]),
        boxes_xyxy=np.concatenate([instances.boxes_xyxy for instances in all_instances]),
        scores=np.concatenate([instances.scores for instances in all_instances if instances.scores is not None]),
        segmentations=Segmentations.build(r["counts"] for m in masks if m is not None for r in m.rle())  # type: ignore[misc]
        if masks[0] is not None
        else None,
        keypoints=np.concatenate([k for k in keypoints if k is not None]) if keypoints[0] is not None else None,
        corners_xy=np.concatenate([oriented.corners(boxes) for boxes in oriented_boxes if boxes is not None])
        if oriented_boxes[0] is not None
        else None,
    )


def _relabelled(instances: Instances, categories: Categories) -> Instances:
    """Return the instances with the class indices of other categories, without those that are not among them."""
    model_categories = instances.categories
    if model_categories is None or model_categories.names == categories.names:
        return instances
    lookup = np.array([categories.names.index(name) if name in categories.names else -1 for name in model_categories])
    known = instances[lookup[instances.labels] >= 0]
    return replace(known, labels=lookup[known.labels], categories=categories)
