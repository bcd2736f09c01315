"""Derive the ground truth of each task from one image's labels.

Classification: which categories are present. Semantic segmentation: the category of every pixel. Object detection: a box
and a category per object. Instance segmentation: a mask per object as well. Panoptic segmentation: a category for every
pixel, and an id for every object.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from otus.data.sample import Sample
from otus.structures import IGNORE, Categories, Instances, Masks, PanopticMap, Segment, SemanticMap


@dataclass(frozen=True, eq=False)
class TaskTruths:
    """Ground truth of one image for each task; None where it cannot be derived from the labels.

    ``origins`` says for each task ``labelled``, what its ground truth is derived from, or why there is none.
    """

    sample: Sample
    classification: tuple[str, ...] | None
    semantic: SemanticMap | None
    detection: Instances | None
    instance: Instances | None
    panoptic: PanopticMap | None
    origins: dict[str, str]

    def document(self) -> dict[str, Any]:
        """Return the members of the JSON document: for each task, its origin and its content."""
        facts: dict[str, dict[str, Any]] = {task: {"origin": origin} for task, origin in self.origins.items()}
        if self.classification is not None:
            facts["classification"]["categories"] = list(self.classification)
        if self.semantic is not None:
            facts["semantic"]["pixels"] = _pixels(self.semantic)
            facts["semantic"]["ignored_pixels"] = int((self.semantic.labels == IGNORE).sum())
        for task, objects in (("detection", self.detection), ("instance", self.instance)):
            if objects is not None:
                names = _names(objects)
                facts[task] |= {"objects": len(objects), "per_category": dict(Counter(names))}
        if self.instance is not None and self.instance.masks is not None:
            areas = self.instance.masks.area()
            facts["instance"]["pixels"] = [
                {"category": name, "pixels": int(area)} for name, area in zip(_names(self.instance), areas, strict=True)
            ]
        if self.panoptic is not None:
            things, categories = self.panoptic.categories.is_thing, self.panoptic.categories
            counts = Counter(self.panoptic.ids.ravel().tolist())
            facts["panoptic"]["segments"] = [
                {"category": categories[segment.label], "thing": things[segment.label], "pixels": counts[segment.id]}
                for segment in self.panoptic.segments
            ]
        return facts


def derive_truths(sample: Sample, categories: Categories) -> TaskTruths:
    """Return the ground truth of an image for each task, derived from other labels where it is not labelled.

    Parameters
    ----------
    sample
        The image and its labels.
    categories
        The categories that ``sample.label`` indexes.
    """
    origins: dict[str, str] = {}
    objects = sample.instances
    if objects is not None:
        origins["detection"] = "labelled"
    elif sample.panoptic is not None:
        objects, origins["detection"] = (
            _objects_of(sample.panoptic),
            "derived: bounding boxes of the panoptic map's objects",
        )
    else:
        origins["detection"] = "not known: no objects are labelled"
    has_masks = objects is not None and (objects.masks is not None or len(objects) == 0)
    if has_masks:
        origins["instance"] = "labelled" if sample.instances is not None else "derived: the panoptic map's objects"
    else:
        origins["instance"] = "not known: " + ("the objects have boxes only" if objects else "no objects are labelled")
    semantic = _semantic(sample, objects if has_masks else None, origins)
    panoptic = _panoptic(sample, objects if has_masks else None, origins)
    return TaskTruths(
        sample=sample,
        classification=_classification(sample, categories, objects, semantic, origins),
        semantic=semantic,
        detection=None if objects is None else replace(objects, masks=None, amodal_masks=None, keypoints=None),
        instance=objects if has_masks else None,
        panoptic=panoptic,
        origins={task: origins[task] for task in ("classification", "semantic", "detection", "instance", "panoptic")},
    )


def _names(objects: Instances) -> list[str]:
    categories = objects.categories
    return [str(label) if categories is None else categories[label] for label in objects.labels.tolist()]


def _pixels(semantic: SemanticMap) -> dict[str, int]:
    labels, counts = np.unique(semantic.labels, return_counts=True)
    present = zip(labels.tolist(), counts.tolist(), strict=True)
    return {semantic.categories[label]: count for label, count in present if label != IGNORE}


def _largest_first(objects: Instances) -> Iterator[tuple[int, np.ndarray]]:
    """Yield indices and dense masks by descending area, so that small objects are painted over large ones."""
    if objects.masks is not None:
        for i in np.argsort(-objects.masks.area(), kind="stable").tolist():
            yield i, objects.masks[i].dense()[0]


def _objects_of(panoptic: PanopticMap) -> Instances:
    things = [segment for segment in panoptic.segments if panoptic.categories.is_thing[segment.label]]
    dense = np.array([panoptic.mask_of(segment.id) for segment in things], dtype=bool).reshape(-1, *panoptic.size_hw)
    masks = Masks.from_dense(dense)
    return Instances(
        masks.boxes_xyxy(),
        np.array([segment.label for segment in things], dtype=np.int64),
        panoptic.size_hw,
        panoptic.categories,
        masks=masks,
        columns={"is_crowd": np.array([segment.is_crowd for segment in things], dtype=bool)},
    )


def _semantic(sample: Sample, objects: Instances | None, origins: dict[str, str]) -> SemanticMap | None:
    if sample.semantic is not None:
        origins["semantic"] = "labelled"
        return sample.semantic
    if sample.panoptic is not None:
        origins["semantic"] = "derived: the panoptic map without object ids"
        return sample.panoptic.semantic()
    if objects is None or objects.categories is None:
        origins["semantic"] = "not known: no pixels are labelled"
        return None
    if len(objects.categories) > IGNORE:
        origins["semantic"] = f"not known: {len(objects.categories)} categories are too many for one map"
        return None
    origins["semantic"] = "derived: the objects' masks; other pixels are ignored"
    labels = np.full(objects.size_hw, IGNORE, dtype=np.int64)
    for i, mask in _largest_first(objects):
        labels[mask] = objects.labels[i]
    return SemanticMap(labels, objects.categories)


def _panoptic(sample: Sample, objects: Instances | None, origins: dict[str, str]) -> PanopticMap | None:
    if sample.panoptic is not None:
        origins["panoptic"] = "labelled"
        return sample.panoptic
    if objects is None or objects.categories is None:
        origins["panoptic"] = "not known: needs the objects' masks"
        return None
    things, stuff = objects.categories, sample.semantic
    grounds = [] if stuff is None else [name for name in stuff.categories if name not in things.names]
    categories = Categories((*things.names, *grounds), is_thing=(*things.is_thing, *(False for _ in grounds)))
    ids = np.zeros(objects.size_hw, dtype=np.int64)
    segments = []
    for number, name in enumerate(grounds, start=len(objects) + 1):
        assert stuff is not None
        here = stuff.mask_of(name)
        if here.any():
            ids[here] = number
            segments.append(Segment(number, categories.index(name)))
    for i, mask in _largest_first(objects):
        ids[mask] = i + 1
    thing_segments = [
        Segment(i + 1, int(objects.labels[i]), bool(objects.column("is_crowd", False)[i]))
        for i in np.flatnonzero(np.isin(np.arange(len(objects)) + 1, ids)).tolist()
    ]
    origins["panoptic"] = "derived: the objects' masks" + (
        " over the semantic map" if grounds else "; stuff is not labelled"
    )
    return PanopticMap(ids, (*thing_segments, *segments), categories)


def _classification(
    sample: Sample,
    categories: Categories,
    objects: Instances | None,
    semantic: SemanticMap | None,
    origins: dict[str, str],
) -> tuple[str, ...] | None:
    if sample.label is not None:
        origins["classification"] = "labelled"
        return (categories[sample.label],)
    if objects is not None:
        origins["classification"] = "derived: the categories of the objects"
        return tuple(sorted(set(_names(objects))))
    if semantic is not None:
        origins["classification"] = "derived: the categories of the pixels"
        return tuple(_pixels(semantic))
    origins["classification"] = "not known"
    return None
