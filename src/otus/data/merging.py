"""Merge data sets: images are concatenated, categories are matched by name.

Shape shorthand: M images, N objects.
"""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from otus.data.dataset import Dataset, Images
from otus.data.semantic_views import has_semantic_maps, semantic_categories, semantic_views, with_semantic_maps
from otus.errors import DataError
from otus.structures import IGNORE, Categories, Objects, Segment, Segmentations


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """Merge data sets into one with new ids.

    Fields that only some data sets have (segmentations, keypoints, further columns) are filled with NaN, 0 or no
    segmentation for the objects of the others. Objects are merged if all data sets have them. Semantic maps are merged if
    one has them, or not all have objects; those of the others are made of their panoptic maps or outlines. Panoptic maps
    and image labels are dropped.

    Raises
    ------
    DataError
        If a data set has neither objects nor maps where the others have them, a category has different keypoints in two
        data sets, or their numbers of keypoints differ.

    Examples
    --------
    >>> both = merge([otus.open_dataset("mine"), otus.open_dataset("yours")])  # doctest: +SKIP
    """
    if len(datasets) == 1:
        return datasets[0]
    have_maps = [has_semantic_maps(dataset) for dataset in datasets]
    have_objects = all(dataset.objects is not None for dataset in datasets)
    if not have_objects and not all(have_maps):
        bare = next(dataset for dataset in datasets if dataset.objects is None)
        raise DataError("has no objects to merge with others'", file=bare.source, remedy="leave it out")
    of_maps = [semantic_categories(dataset) for dataset, has in zip(datasets, have_maps, strict=True) if has]
    categories = merge_categories([dataset.categories for dataset in datasets] if have_objects else of_maps)
    root = Path(os.path.commonpath([dataset.images.root.absolute() for dataset in datasets]))
    files = [
        os.path.relpath(dataset.images.path(index).absolute(), root).replace(os.sep, "/")
        for dataset in datasets
        for index in range(len(dataset))
    ]
    merged = Dataset(
        source=root,
        format="merged",
        images=Images(
            root=root,
            files=tuple(files),
            sizes_hw=np.concatenate([dataset.images.sizes_hw for dataset in datasets]),
            ids=tuple(range(1, len(files) + 1)),
        ),
        categories=categories,
        objects=_merge_objects(datasets, categories) if have_objects else None,
    )
    if have_objects and all(dataset.semantic is None for dataset in datasets):
        return merged
    places = [(part, index) for part, dataset in enumerate(datasets) for index in range(len(dataset))]
    return semantic_views(merged, datasets, np.array(places, np.int64), merge_categories(of_maps))


def merge_categories(parts: Sequence[Categories]) -> Categories:
    """Return the union of categories by name, in order of first appearance, with ids from 1.

    Raises
    ------
    DataError
        If a category has different keypoints in two of them.
    """
    names = tuple(dict.fromkeys(name for categories in parts for name in categories))
    is_thing = {
        name: thing
        for categories in reversed(parts)
        for name, thing in zip(categories, categories.is_thing, strict=True)
    }
    supercategories = {
        name: group
        for categories in reversed(parts)
        for name, group in zip(categories, categories.supercategories, strict=False)
        if group
    }
    keypoints: dict[str, Any] = {}
    for categories in parts:
        for name, points in categories.keypoints:
            if keypoints.setdefault(name, points).names != points.names:
                raise DataError(
                    f"category {name!r}: two data sets have different keypoints, {', '.join(keypoints[name].names)} "
                    f"and {', '.join(points.names)}",
                    remedy="rename one of the categories",
                )
    return Categories(
        names,
        ids=tuple(range(1, len(names) + 1)),
        is_thing=tuple(is_thing[name] for name in names),
        keypoints=tuple(keypoints.items()),
        supercategories=tuple(supercategories.get(name, "") for name in names) if supercategories else (),
    )


def remap_categories(dataset: Dataset, categories: Categories) -> Dataset:
    """Map the labels of a data set to another list of categories, which must include all categories in use.

    Raises
    ------
    DataError
        If a label in use is of a category that is not in the list.
    """
    columns = [dataset.image_labels, None if dataset.objects is None else dataset.objects.labels]
    labels = [column for column in columns if column is not None]
    if dataset.categories.names == categories.names or not labels:
        return dataset
    used = [dataset.categories[label] for label in np.unique(np.concatenate(labels))]
    unknown = [name for name in used if name not in categories.names]
    if unknown:
        raise DataError(
            f"has {'images' if dataset.objects is None else 'objects'} of {', '.join(unknown)}, "
            f"expected only {', '.join(categories)}",
            file=dataset.source,
            remedy="leave them out, or add a data set that teaches them",
        )
    lookup = _lookup(dataset.categories, categories)
    objects = None if dataset.objects is None else replace(dataset.objects, labels=lookup[dataset.objects.labels])
    of_images = None if dataset.image_labels is None else lookup[dataset.image_labels]
    return replace(dataset, categories=categories, objects=objects, image_labels=of_images)


def merge_into_one_category(dataset: Dataset, categories: Categories) -> Dataset:
    """Give all objects the only category of a list."""
    assert dataset.objects is not None
    objects = replace(dataset.objects, labels=np.zeros_like(dataset.objects.labels))
    return replace(dataset, categories=categories, objects=objects)


def remap_semantic_categories(dataset: Dataset, categories: Categories) -> Dataset:
    """Map the semantic labels of a data set to another list of categories; pixels of others become ignored.

    Where it has none, they are made of its panoptic maps or outlines (:func:`~otus.data.semantic_views.with_semantic_maps`).
    """
    dataset = with_semantic_maps(dataset)
    semantic = dataset.semantic
    if semantic is None or semantic.categories.names == categories.names:
        return dataset
    own = np.array([categories.index(name) if name in categories else IGNORE for name in semantic.categories])
    known = semantic.lookup != IGNORE
    lookup = np.full(len(known), IGNORE, dtype=semantic.lookup.dtype)
    lookup[known] = own[semantic.lookup[known]]
    return replace(dataset, semantic=replace(semantic, categories=categories, lookup=lookup))


def remap_panoptic_categories(dataset: Dataset, categories: Categories) -> Dataset:
    """Map the segments of a data set's panoptic maps to another list of categories, which must include all in use.

    Raises
    ------
    DataError
        If a segment is of a category that is not in the list.
    """
    panoptic = dataset.panoptic
    if panoptic is None or panoptic.categories.names == categories.names:
        return dataset
    lookup = _lookup(panoptic.categories, categories)
    used = sorted({segment.label for segments in panoptic.segments for segment in segments})
    unknown = [panoptic.categories[label] for label in used if lookup[label] < 0]
    if unknown:
        raise DataError(
            f"has segments of {', '.join(unknown)}, expected only {', '.join(categories)}",
            file=dataset.source,
            remedy="leave them out, or add a data set that teaches them",
        )

    def moved(segment: Segment) -> Segment:
        return replace(segment, label=int(lookup[segment.label]))

    segments = tuple(tuple(map(moved, several)) for several in panoptic.segments)
    return replace(dataset, panoptic=replace(panoptic, categories=categories, segments=segments))


def _lookup(own: Categories, joined: Categories) -> np.ndarray:
    return np.array([joined.names.index(name) if name in joined.names else -1 for name in own], dtype=np.int64)


def _merge_objects(datasets: Sequence[Dataset], categories: Categories) -> Objects:
    parts = [dataset.objects for dataset in datasets if dataset.objects is not None]
    firsts = np.cumsum([0, *(len(dataset) for dataset in datasets)])
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    merged: dict[str, Any] = {
        "image_index": np.concatenate([part.image_index + first for part, first in zip(parts, firsts, strict=False)]),
        "labels": np.concatenate(
            [
                _lookup(dataset.categories, categories)[part.labels]
                for dataset, part in zip(datasets, parts, strict=True)
            ]
        ),
        "ids": np.arange(1, sum(len(part) for part in parts) + 1),
        "columns": {name: _join(parts, [part.columns.get(name) for part in parts]) for name in columns},
    }
    for field in fields(Objects):
        if field.name not in merged:
            merged[field.name] = _join(parts, [getattr(part, field.name) for part in parts])
    return Objects(**merged)


def _join(parts: Sequence[Objects], values: Sequence[Any]) -> Any:
    """Concatenate a column over data sets, with NaN, 0 or no segmentation where it is missing; None if all lack it."""
    known = next((value for value in values if value is not None), None)
    if known is None:
        return None
    if isinstance(known, Segmentations):
        return Segmentations.build(
            None if value is None else value.outline(i)
            for part, value in zip(parts, values, strict=True)
            for i in range(len(part))
        )
    filled = [_unknown(known, len(part)) if value is None else value for part, value in zip(parts, values, strict=True)]
    shapes = {value.shape[1:] for value in filled}
    if len(shapes) > 1:
        raise DataError(f"the data sets have columns of different shapes: {shapes} (keypoints of different numbers?)")
    return np.concatenate(filled)


def _unknown(like: np.ndarray, count: int) -> np.ndarray:
    """Return the fill value of a column: 0 for keypoints (not labelled) and integers, NaN for other floats."""
    is_keypoints = like.ndim == 3 and like.shape[1:] != (4, 2)
    value = np.nan if like.dtype.kind == "f" and not is_keypoints else np.zeros((), like.dtype)
    return np.full((count, *like.shape[1:]), value, dtype=like.dtype)
