"""The panoptic merge: combine instances and a semantic map so that each pixel belongs to at most one segment.

Papers: "Panoptic Segmentation" (Kirillov, He, Girshick, Rother, Dollár, CVPR 2019, arXiv:1801.00868), section 6, and
"Panoptic Feature Pyramid Networks" (Kirillov, Girshick, He, Dollár, CVPR 2019, arXiv:1901.02446), section 3. The rule:

1. Instances are processed by decreasing score; each gets those pixels of its mask that are still free.
2. An instance is left out if more than ``overlap_threshold`` of its mask belongs to earlier instances.
3. Remaining pixels get their semantic category if it is stuff, one segment per category. Stuff are the categories that no
   instance can have, without ``background``; pixels of other semantic categories are void.
4. A stuff segment smaller than ``stuff_area_limit`` is left out; its pixels are void.

Departure: the limit is a fraction of the image instead of a number of pixels, so that the result does not depend on the
size of the image. The default is Detectron2's 4096 pixels, relative to an image of 640 x 480.

Torch is not imported here: any instances and any semantic map can be merged.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from otus.errors import ShapeError, UsageError
from otus.structures import IGNORE, Categories, Instances, PanopticMap, Segment, SemanticMap, SemanticScores

OVERLAP_THRESHOLD = 0.5
STUFF_AREA_LIMIT = 4096 / (640 * 480)
_BACKGROUND = "background"


@dataclass(frozen=True, eq=False)
class PanopticMerge:
    """The record of a merge of N instances and a semantic map of K categories, for explanations.

    Parameters
    ----------
    panoptic
        Result of the merge.
    mask_pixels, hidden_pixels
        (N,) number of pixels of each instance's mask, and how many of them belong to instances of higher scores.
    instance_ids
        (N,) segment id of each instance, 0 if it is left out.
    free_pixels
        (K,) number of pixels of each semantic category that belong to no instance.
    stuff_ids
        (K,) segment id of each semantic category, 0 if it has no segment.
    """

    panoptic: PanopticMap
    mask_pixels: Int[np.ndarray, "n"]
    hidden_pixels: Int[np.ndarray, "n"]
    instance_ids: Int[np.ndarray, "n"]
    free_pixels: Int[np.ndarray, "k"]
    stuff_ids: Int[np.ndarray, "k"]


@dataclass(frozen=True, eq=False)
class PanopticOutputs:
    """The instances and semantic scores that a network predicts for an image, to be merged at any size.

    Parameters
    ----------
    instances
        The things.
    semantic
        Scores of the stuff categories; pixels of categories that are not in ``categories`` are no stuff.
    categories
        Categories of the panoptic map.
    labels
        Labels of the segments that are reported (default: all).
    """

    instances: Instances
    semantic: SemanticScores
    categories: Categories
    labels: Collection[int] | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image that the network was applied to."""
        return self.instances.size_hw

    def at(self, size_hw: tuple[int, int]) -> tuple[Instances, SemanticMap]:
        """Return the instances and the semantic map for the same image at another size."""
        return self.instances.resized(size_hw), self.semantic.resized(size_hw)

    def resized(self, size_hw: tuple[int, int]) -> PanopticMap:
        """Return the panoptic map of the same image at another size."""
        merged = merge_panoptic(*self.at(size_hw), categories=self.categories)
        return merged if self.labels is None else merged.select(self.labels)


def merge_panoptic(
    instances: Instances,
    semantic: SemanticMap,
    *,
    categories: Categories | None = None,
    overlap_threshold: float = OVERLAP_THRESHOLD,
    stuff_area_limit: float = STUFF_AREA_LIMIT,
) -> PanopticMap:
    """Merge instances and a semantic map of one image; categories are matched by name.

    Parameters
    ----------
    instances
        Instances with masks and categories, already filtered by a score threshold. Without scores, earlier ones come first.
    semantic
        Semantic map of the same size.
    categories
        Categories of the panoptic map; pixels of other categories belong to no segment (default:
        :func:`panoptic_categories` of the two).
    overlap_threshold
        Maximum fraction of an instance's mask that instances of higher scores may cover.
    stuff_area_limit
        Minimum area of a stuff segment, as a fraction of the image.

    Returns
    -------
    PanopticMap
        Instances are segments 1, 2, …, with their scores; stuff follows.

    Raises
    ------
    ShapeError
        If the sizes differ.
    UsageError
        If the instances have no masks or no categories, or a limit is not in [0, 1].

    Examples
    --------
    >>> from otus.structures import Masks
    >>> masks = Masks.from_dense(np.array([[[1, 1, 0, 0]], [[0, 1, 1, 0]]]))
    >>> owls = Instances(masks.boxes_xyxy(), [0, 0], (1, 4), Categories(("owl",)), scores=[0.9, 0.8], masks=masks)
    >>> merge_panoptic(owls, SemanticMap(np.array([[0, 0, 0, 0]]), Categories(("sky",)))).ids.tolist()
    [[1, 1, 2, 3]]
    """
    merge = record_merge(
        instances,
        semantic,
        categories=categories,
        overlap_threshold=overlap_threshold,
        stuff_area_limit=stuff_area_limit,
    )
    return merge.panoptic


def record_merge(
    instances: Instances,
    semantic: SemanticMap,
    *,
    categories: Categories | None = None,
    overlap_threshold: float = OVERLAP_THRESHOLD,
    stuff_area_limit: float = STUFF_AREA_LIMIT,
) -> PanopticMerge:
    """Compute :func:`merge_panoptic` and return the record of the merge; parameters as there."""
    for name, value in (("overlap_threshold", overlap_threshold), ("stuff_area_limit", stuff_area_limit)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name}: expected 0 to 1, got {value:g}")
    things = instances.categories
    if things is None:
        raise UsageError("panoptic merge: expected instances with categories, which are matched by name, got none")
    if instances.masks is None and len(instances):
        raise UsageError(
            "panoptic merge: expected instances with masks, got boxes only; use a model that predicts masks"
        )
    if instances.size_hw != semantic.size_hw:
        raise ShapeError(
            f"panoptic merge: expected a semantic map of the instances' size {instances.size_hw}, got "
            f"{semantic.size_hw}; resize one of them by .resized(size_hw)"
        )
    categories = categories or panoptic_categories(things, semantic.categories)
    ids = np.zeros(semantic.size_hw, dtype=np.int32)
    segments: list[Segment] = []

    mask_pixels, hidden_pixels, instance_ids = np.zeros((3, len(instances)), dtype=np.int64)
    scores = instances.scores
    order = np.arange(len(instances)) if scores is None else np.argsort(-scores, kind="stable")
    parts = () if instances.masks is None else instances.masks[order].parts()
    for i, (top, left, mask) in zip(order, parts, strict=True):
        name = things[int(instances.labels[i])]
        window = ids[top : top + mask.shape[0], left : left + mask.shape[1]]
        free = mask & (window == 0)
        mask_pixels[i], num_free = np.count_nonzero(mask), np.count_nonzero(free)
        hidden_pixels[i] = mask_pixels[i] - num_free
        if name not in categories or not num_free or hidden_pixels[i] > overlap_threshold * mask_pixels[i]:
            continue
        score = None if scores is None else float(scores[i])
        segments.append(Segment(len(segments) + 1, categories.index(name), score=score))
        window[free] = instance_ids[i] = segments[-1].id

    free = ids == 0
    labels = semantic.labels[free]
    free_pixels_of_label = np.bincount(labels, minlength=IGNORE + 1)
    id_of_label = np.zeros(IGNORE + 1, dtype=ids.dtype)
    for label, name in enumerate(semantic.categories):
        is_stuff = name in categories and name not in things and name != _BACKGROUND
        if is_stuff and free_pixels_of_label[label] and free_pixels_of_label[label] >= stuff_area_limit * ids.size:
            segments.append(Segment(len(segments) + 1, categories.index(name)))
            id_of_label[label] = segments[-1].id
    ids[free] = id_of_label[labels]
    count = len(semantic.categories)
    return PanopticMerge(
        panoptic=PanopticMap(ids, tuple(segments), categories),
        mask_pixels=mask_pixels,
        hidden_pixels=hidden_pixels,
        instance_ids=instance_ids,
        free_pixels=free_pixels_of_label[:count],
        stuff_ids=id_of_label[:count],
    )


def panoptic_categories(things: Categories, semantic: Categories) -> Categories:
    """Return the categories of instances as things, followed by the other categories of a semantic map as stuff."""
    stuff = [name for name in semantic if name not in things and name != _BACKGROUND]
    return Categories((*things, *stuff), is_thing=(*(True for _ in things), *(False for _ in stuff)))
