"""Semantic maps made from other labels: from panoptic maps, from segmentations of objects, or from several data sets.

Maps are made on access. From segmentations: small objects are drawn over large ones, the box of an object without a
segmentation is ignored, and pixels without an object are ``background``, a category put first unless the objects have
it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from jaxtyping import Int

from otus.data.dataset import Dataset, SemanticFiles
from otus.errors import DataError
from otus.structures import IGNORE, Categories, Instances, SemanticMap
from otus.structures.boxes import area

BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class SemanticViews(Dataset):
    """A data set whose semantic maps are made from the labels of other data sets; its ``semantic.files`` are None.

    Parameters
    ----------
    parts
        The other data sets.
    origins
        (M, 2) for each image the index of its data set in ``parts``, and its index there.
    """

    parts: tuple[Dataset, ...] = field(kw_only=True)
    origins: Int[np.ndarray, "m 2"] = field(kw_only=True)

    def semantic_map(self, index: int) -> SemanticMap | None:
        """Return the semantic map of one image, None if there is none."""
        part, source_index = self.origins[index].tolist()
        semantic = _semantic_map(self.parts[part], source_index)
        assert self.semantic is not None
        return None if semantic is None else semantic.relabelled(self.semantic.categories)

    def select(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Return the subset of the given images, in that order."""
        images = np.asarray(indices, dtype=np.int64) if len(indices) == 0 else np.arange(len(self))[np.asarray(indices)]
        return replace(super().select(indices), origins=self.origins[images])  # type: ignore[call-arg]


def has_semantic_maps(dataset: Dataset) -> bool:
    """Return whether a data set has semantic maps, or panoptic maps or segmentations of objects to make them from."""
    has_segmentations = dataset.objects is not None and bool(dataset.objects.has_mask.any())
    return dataset.semantic is not None or dataset.panoptic is not None or has_segmentations


def semantic_categories(dataset: Dataset) -> Categories:
    """Return the categories of the semantic maps of a data set.

    Raises
    ------
    DataError
        If there are more than 255.
    """
    categories = dataset.categories
    if dataset.semantic is not None:
        return dataset.semantic.categories
    if dataset.panoptic is not None:
        categories = dataset.panoptic.categories
    elif dataset.objects is not None and BACKGROUND not in categories:
        background_id = 0 if 0 not in categories.ids else min(categories.ids) - 1
        ids, is_thing = (background_id, *categories.ids), (False, *categories.is_thing)
        categories = Categories((BACKGROUND, *categories), ids=ids, is_thing=is_thing)
    if len(categories) > IGNORE:
        problem = f"has {len(categories)} categories with the background, semantic maps can have {IGNORE}"
        raise DataError(problem, file=dataset.source, remedy="leave some out, or merge them")
    return categories


def with_semantic_maps(dataset: Dataset) -> Dataset:
    """Replace a data set's panoptic maps or segmentations by semantic maps made from them; keep maps that it has."""
    if dataset.semantic is not None or not has_semantic_maps(dataset):
        return dataset
    origins = np.stack([np.zeros(len(dataset), np.int64), np.arange(len(dataset))], axis=1)
    images = replace(dataset, objects=None, panoptic=None)
    return semantic_views(images, (dataset,), origins, semantic_categories(dataset))


def semantic_views(
    dataset: Dataset, parts: Sequence[Dataset], origins: Int[np.ndarray, "m 2"], categories: Categories
) -> SemanticViews:
    """Give a data set semantic maps made from the labels of ``parts``; parameters as in :class:`SemanticViews`."""
    lookup = np.full(IGNORE + 1, IGNORE)
    lookup[: len(categories)] = np.arange(len(categories))
    values = {attribute.name: getattr(dataset, attribute.name) for attribute in fields(Dataset)}
    values["semantic"] = SemanticFiles((None,) * len(dataset), categories, lookup)
    return SemanticViews(**values, parts=tuple(parts), origins=origins)


def _semantic_map(dataset: Dataset, index: int) -> SemanticMap | None:
    if dataset.semantic is not None:
        return dataset.semantic_map(index)
    if dataset.panoptic is not None:
        panoptic = dataset.panoptic_map(index)
        return None if panoptic is None else panoptic.semantic()
    if not has_semantic_maps(dataset):
        return None
    return render_semantic_map(dataset.instances(index), semantic_categories(dataset))


def render_semantic_map(instances: Instances, categories: Categories) -> SemanticMap:
    """Draw the masks of objects on background, the largest first; the boxes of objects without a mask become ignored.

    Parameters
    ----------
    instances
        Objects of one image.
    categories
        Categories of the map: those of the objects, matched by name, and ``background``.
    """
    labels = np.full(instances.size_hw, categories.index(BACKGROUND), dtype=np.uint8)
    if not len(instances):
        return SemanticMap(labels, categories)
    assert instances.categories is not None
    pixels = np.zeros(len(instances)) if instances.masks is None else instances.masks.area()
    sizes = np.where(pixels > 0, pixels, area(instances.boxes_xyxy))
    for row in np.argsort(-sizes, kind="stable").tolist():
        if instances.masks is not None and pixels[row] > 0:
            labels[instances.masks[row].dense()[0]] = categories.index(instances.categories[int(instances.labels[row])])
        else:
            x1, y1, x2, y2 = instances.boxes_xyxy[row].clip(min=0)
            labels[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = IGNORE
    return SemanticMap(labels, categories)
