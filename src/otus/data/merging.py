"""Merge data sets: images are concatenated, categories matched by name.

Shape shorthand: M images, N objects.
"""

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from otus.data.dataset import Dataset, Images, PanopticFiles
from otus.data.semantic_views import has_semantic_maps, semantic_categories, semantic_views, with_semantic_maps
from otus.errors import DataError
from otus.structures import IGNORE, Categories, Objects, Segment, Segmentations


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """Merge data sets into one with new ids.

    Objects are merged if all data sets have them; fields that only some have (segmentations, keypoints, further
    columns) are filled with NaN, 0 or no segmentation for the others. Semantic maps are merged if one data set has
    them, or if not all have objects; those of the others are made from their panoptic maps or segmentations. Panoptic
    maps are merged if all have them, else dropped, as image labels are.

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
    has_maps = [has_semantic_maps(dataset) for dataset in datasets]
    have_objects = all(dataset.objects is not None for dataset in datasets)
    if not have_objects and not all(has_maps):
        without_objects = next(dataset for dataset in datasets if dataset.objects is None)
        raise DataError("has no objects, the other data sets have", file=without_objects.source, remedy="leave it out")
    semantic_lists = [semantic_categories(dataset) for dataset, has in zip(datasets, has_maps, strict=True) if has]
    categories = merge_categories([dataset.categories for dataset in datasets] if have_objects else semantic_lists)
    root = Path(os.path.commonpath([dataset.images.root.absolute() for dataset in datasets]))
    sources = [(dataset.images, file) for dataset in datasets for file in dataset.images.files]
    files = [os.path.relpath(images.root.absolute() / file, root).replace(os.sep, "/") for images, file in sources]
    temporary = {
        merged_file: images.temporary[file]
        for merged_file, (images, file) in zip(files, sources, strict=True)
        if file in images.temporary
    }
    merged = Dataset(
        source=root,
        format="merged",
        images=Images(
            root=root,
            files=tuple(files),
            sizes_hw=np.concatenate([dataset.images.sizes_hw for dataset in datasets]),
            ids=tuple(range(1, len(files) + 1)),
            temporary=temporary,
        ),
        categories=categories,
        objects=_merge_objects(datasets, categories) if have_objects else None,
        panoptic=_merge_panoptic(datasets),
    )
    if have_objects and all(dataset.semantic is None for dataset in datasets):
        return merged
    indices = [(part, index) for part, dataset in enumerate(datasets) for index in range(len(dataset))]
    return semantic_views(merged, datasets, np.array(indices, np.int64), merge_categories(semantic_lists))


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
        name: supercategory
        for categories in reversed(parts)
        for name, supercategory in zip(categories, categories.supercategories, strict=False)
        if supercategory
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
    """Map the labels of a data set to another list of categories, which must include all that are in use.

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
            remedy="leave them out, or add a data set with these categories",
        )
    lookup = _lookup(dataset.categories, categories)
    objects = None if dataset.objects is None else replace(dataset.objects, labels=lookup[dataset.objects.labels])
    image_labels = None if dataset.image_labels is None else lookup[dataset.image_labels]
    return replace(dataset, categories=categories, objects=objects, image_labels=image_labels)


def merge_into_one_category(dataset: Dataset, categories: Categories) -> Dataset:
    """Give all objects the category of a list of one."""
    assert dataset.objects is not None
    objects = replace(dataset.objects, labels=np.zeros_like(dataset.objects.labels))
    return replace(dataset, categories=categories, objects=objects)


def remap_semantic_categories(dataset: Dataset, categories: Categories) -> Dataset:
    """Map the semantic labels of a data set to another list of categories; pixels of other categories are ignored.

    Without semantic maps, they are made from its panoptic maps or segmentations
    (:func:`~otus.data.semantic_views.with_semantic_maps`).
    """
    dataset = with_semantic_maps(dataset)
    semantic = dataset.semantic
    if semantic is None or semantic.categories.names == categories.names:
        return dataset
    new_labels = np.array([categories.index(name) if name in categories else IGNORE for name in semantic.categories])
    valid = semantic.lookup != IGNORE
    lookup = np.full(len(valid), IGNORE, dtype=semantic.lookup.dtype)
    lookup[valid] = new_labels[semantic.lookup[valid]]
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
            remedy="leave them out, or add a data set with these categories",
        )

    def relabel(segment: Segment) -> Segment:
        return replace(segment, label=int(lookup[segment.label]))

    segments = tuple(tuple(map(relabel, of_image)) for of_image in panoptic.segments)
    return replace(dataset, panoptic=replace(panoptic, categories=categories, segments=segments))


def _lookup(source: Categories, target: Categories) -> np.ndarray:
    return np.array([target.names.index(name) if name in target.names else -1 for name in source], dtype=np.int64)


def _merge_objects(datasets: Sequence[Dataset], categories: Categories) -> Objects:
    parts = [dataset.objects for dataset in datasets if dataset.objects is not None]
    first_images = np.cumsum([0, *(len(dataset) for dataset in datasets)])
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    merged: dict[str, Any] = {
        "image_index": np.concatenate(
            [part.image_index + first for part, first in zip(parts, first_images, strict=False)]
        ),
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


def _merge_panoptic(datasets: Sequence[Dataset]) -> PanopticFiles | None:
    parts = [dataset.panoptic for dataset in datasets if dataset.panoptic is not None]
    if len(parts) < len(datasets):
        return None
    categories = merge_categories([part.categories for part in parts])
    remapped = [remap_panoptic_categories(dataset, categories).panoptic for dataset in datasets]
    return PanopticFiles(
        tuple(file for part in parts for file in part.files),
        tuple(segments for part in remapped if part is not None for segments in part.segments),
        categories,
    )


def _join(parts: Sequence[Objects], values: Sequence[Any]) -> Any:
    """Concatenate a column over data sets, with NaN, 0 or no segmentation where it is missing; None if all lack it."""
    example = next((value for value in values if value is not None), None)
    if example is None:
        return None
    if isinstance(example, Segmentations):
        return Segmentations.build(
            None if value is None else value.segmentation(i)
            for part, value in zip(parts, values, strict=True)
            for i in range(len(part))
        )
    filled = [_fill(example, len(part)) if value is None else value for part, value in zip(parts, values, strict=True)]
    shapes = {value.shape[1:] for value in filled}
    if len(shapes) > 1:
        raise DataError(f"the data sets have columns of different shapes: {shapes} (keypoints of different numbers?)")
    return np.concatenate(filled)


def _fill(example: np.ndarray, count: int) -> np.ndarray:
    """Return a column of fill values: 0 for keypoints (not labelled) and integers, NaN for other floats."""
    is_keypoints = example.ndim == 3 and example.shape[1:] != (4, 2)
    value = np.nan if example.dtype.kind == "f" and not is_keypoints else np.zeros((), example.dtype)
    return np.full((count, *example.shape[1:]), value, dtype=example.dtype)
