"""Semantic maps of data sets whose labels say them otherwise: panoptic maps, outlines of objects, several data sets in one.

Maps are made when they are asked for. Of outlines: the small lie over the large, a box without an outline is ignored, and
what no object covers is ``background``, a category before those of the objects unless they have it.
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
    """A data set whose semantic maps are made of the labels of others; ``semantic.files`` are None.

    Parameters
    ----------
    parts
        The other data sets.
    places
        (M, 2) which of them each image is of, and its index there.
    """

    parts: tuple[Dataset, ...] = field(kw_only=True)
    places: Int[np.ndarray, "m 2"] = field(kw_only=True)

    def semantic_map(self, index: int) -> SemanticMap | None:
        """Return the semantic map of one image, None if there is none."""
        part, place = self.places[index].tolist()
        found = _map_of(self.parts[part], place)
        assert self.semantic is not None
        return None if found is None else found.relabelled(self.semantic.categories)

    def select(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Return the subset of the given images, in that order."""
        chosen = np.asarray(indices, dtype=np.int64) if len(indices) == 0 else np.arange(len(self))[np.asarray(indices)]
        return replace(super().select(indices), places=self.places[chosen])  # type: ignore[call-arg]


def has_semantic_maps(dataset: Dataset) -> bool:
    """Whether a data set has semantic maps, or panoptic maps or outlines of objects to make them of."""
    has_outlines = dataset.objects is not None and bool(dataset.objects.has_mask.any())
    return dataset.semantic is not None or dataset.panoptic is not None or has_outlines


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
        own_id = 0 if 0 not in categories.ids else min(categories.ids) - 1
        ids, is_thing = (own_id, *categories.ids), (False, *categories.is_thing)
        categories = Categories((BACKGROUND, *categories), ids=ids, is_thing=is_thing)
    if len(categories) > IGNORE:
        problem = f"has {len(categories)} categories with the background, more than the {IGNORE} of semantic maps"
        raise DataError(problem, file=dataset.source, remedy="leave some out, or join them")
    return categories


def with_semantic_maps(dataset: Dataset) -> Dataset:
    """Return a data set with semantic maps of its panoptic maps or outlines, without these; itself where it has its own."""
    if dataset.semantic is not None or not has_semantic_maps(dataset):
        return dataset
    places = np.stack([np.zeros(len(dataset), np.int64), np.arange(len(dataset))], axis=1)
    bare = replace(dataset, objects=None, panoptic=None)
    return semantic_views(bare, (dataset,), places, semantic_categories(dataset))


def semantic_views(
    dataset: Dataset, parts: Sequence[Dataset], places: Int[np.ndarray, "m 2"], categories: Categories
) -> SemanticViews:
    """Return a data set with semantic maps of the labels of ``parts``; arguments as of :class:`SemanticViews`."""
    lookup = np.full(IGNORE + 1, IGNORE)
    lookup[: len(categories)] = np.arange(len(categories))
    known = {one.name: getattr(dataset, one.name) for one in fields(Dataset)}
    known["semantic"] = SemanticFiles((None,) * len(dataset), categories, lookup)
    return SemanticViews(**known, parts=tuple(parts), places=places)


def _map_of(dataset: Dataset, index: int) -> SemanticMap | None:
    if dataset.semantic is not None:
        return dataset.semantic_map(index)
    if dataset.panoptic is not None:
        panoptic = dataset.panoptic_map(index)
        return None if panoptic is None else panoptic.semantic()
    if not has_semantic_maps(dataset):
        return None
    return render_semantic_map(dataset.instances(index), semantic_categories(dataset))


def render_semantic_map(instances: Instances, categories: Categories) -> SemanticMap:
    """Paint the masks of objects, the largest first, on background; boxes without a mask are ignored.

    Parameters
    ----------
    instances
        Objects of one image.
    categories
        Of the map, by name: those of the objects and ``background``.
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
