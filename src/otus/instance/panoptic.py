"""The panoptic merge: instances and a semantic map into one map in which each pixel belongs to one segment at most.

Papers: "Panoptic Segmentation" (Kirillov, He, Girshick, Rother, Dollár, CVPR 2019, arXiv:1801.00868), section 6, and
"Panoptic Feature Pyramid Networks" (Kirillov, Girshick, He, Dollár, CVPR 2019, arXiv:1901.02446), section 3. The rule:

1. Instances are laid down in the order of their scores, the highest first; each takes the pixels of its mask that are free.
2. An instance of whose mask more than ``overlap_threshold`` is taken already is left out.
3. The pixels that are left take their semantic category where it is stuff, one segment a category. Stuff is what no
   instance can be; what the semantic map says of things does not count, and ``background`` is no stuff: these pixels are
   void.
4. A stuff segment smaller than ``stuff_area_limit`` is left out; its pixels are void.

Departure: the limit is a share of the image and not a number of pixels, so that an image's answer does not depend on its
size. The default is Detectron2's 4096 pixels of an image of 640 x 480.

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
    """The record of a merge, from which an explanation is read.

    Parameters
    ----------
    panoptic
        What the merge gives.
    mask_pixels, hidden_pixels
        (N,) pixels of each instance's mask, and how many of them instances of higher scores had taken.
    instance_ids
        (N,) segment of each instance, 0 where it is left out.
    free_pixels
        (K,) pixels of each category of the semantic map that no instance took.
    stuff_ids
        (K,) segment of each category, 0 where it is none.
    """

    panoptic: PanopticMap
    mask_pixels: Int[np.ndarray, "n"]
    hidden_pixels: Int[np.ndarray, "n"]
    instance_ids: Int[np.ndarray, "n"]
    free_pixels: Int[np.ndarray, "k"]
    stuff_ids: Int[np.ndarray, "k"]


@dataclass(frozen=True, eq=False)
class PanopticOutputs:
    """The two answers of one network for an image, to be merged at the size that is asked for.

    Parameters
    ----------
    instances
        The things.
    semantic
        The stuff; scores of categories that are not in ``categories`` are of what is no stuff.
    categories
        Of the panoptic map.
    labels
        Of the segments that are reported (default: all).
    """

    instances: Instances
    semantic: SemanticScores
    categories: Categories
    labels: Collection[int] | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image that was looked at."""
        return self.instances.size_hw

    def at(self, size_hw: tuple[int, int]) -> tuple[Instances, SemanticMap]:
        """Return the two answers for the same image at another size."""
        return self.instances.resized(size_hw), self.semantic.resized(size_hw)

    def resized(self, size_hw: tuple[int, int]) -> PanopticMap:
        """Return the merge for the same image at another size."""
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
        With masks and categories, those to be believed: above a score threshold. Without scores their order counts.
    semantic
        Of the same size.
    categories
        What the segments' labels shall mean; pixels of a category that is not among them belong to no segment (default:
        :func:`panoptic_categories` of the two).
    overlap_threshold
        The largest share of an instance's mask that instances of higher scores may hide.
    stuff_area_limit
        The smallest stuff segment, as a share of the image.

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
    >>> found = Instances(masks.boxes_xyxy(), [0, 0], (1, 4), Categories(("owl",)), scores=[0.9, 0.8], masks=masks)
    >>> merge_panoptic(found, SemanticMap(np.array([[0, 0, 0, 0]]), Categories(("sky",)))).ids.tolist()
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
    """Return the record of :func:`merge_panoptic`, whose arguments these are."""
    for name, value in (("overlap_threshold", overlap_threshold), ("stuff_area_limit", stuff_area_limit)):
        if not 0 <= value <= 1:
            raise UsageError(f"{name}: expected 0 to 1, got {value:g}")
    things = instances.categories
    if things is None:
        raise UsageError("panoptic merge: the instances have no categories to be matched by name")
    if instances.masks is None and len(instances):
        raise UsageError("panoptic merge: the instances have boxes and no masks; take those of a model with masks")
    if instances.size_hw != semantic.size_hw:
        raise ShapeError(
            f"panoptic merge: expected a semantic map of the instances' size {instances.size_hw}, got "
            f"{semantic.size_hw}; .resized(size_hw) of one of them makes it so"
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
        mask_pixels[i], free_pixels = np.count_nonzero(mask), np.count_nonzero(free)
        hidden_pixels[i] = mask_pixels[i] - free_pixels
        if name not in categories or not free_pixels or hidden_pixels[i] > overlap_threshold * mask_pixels[i]:
            continue
        score = None if scores is None else float(scores[i])
        segments.append(Segment(len(segments) + 1, categories.index(name), score=score))
        window[free] = instance_ids[i] = segments[-1].id

    free = ids == 0
    labels = semantic.labels[free]
    free_of_label = np.bincount(labels, minlength=IGNORE + 1)
    id_of_label = np.zeros(IGNORE + 1, dtype=ids.dtype)
    for label, name in enumerate(semantic.categories):
        is_stuff = name in categories and name not in things and name != _BACKGROUND
        if is_stuff and free_of_label[label] and free_of_label[label] >= stuff_area_limit * ids.size:
            segments.append(Segment(len(segments) + 1, categories.index(name)))
            id_of_label[label] = segments[-1].id
    ids[free] = id_of_label[labels]
    count = len(semantic.categories)
    return PanopticMerge(
        panoptic=PanopticMap(ids, tuple(segments), categories),
        mask_pixels=mask_pixels,
        hidden_pixels=hidden_pixels,
        instance_ids=instance_ids,
        free_pixels=free_of_label[:count],
        stuff_ids=id_of_label[:count],
    )


def panoptic_categories(things: Categories, semantic: Categories) -> Categories:
    """Return what instances can be, as things, and after it the stuff of a semantic map: what no instance can be."""
    stuff = [name for name in semantic if name not in things and name != _BACKGROUND]
    return Categories((*things, *stuff), is_thing=(*(True for _ in things), *(False for _ in stuff)))
