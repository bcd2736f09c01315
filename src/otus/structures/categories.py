"""The categories of a data set or a model: what the numbers in ``labels`` mean."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from otus.errors import ShapeError, did_you_mean

# Standard deviations of people who label the same keypoint, relative to the object's size (cocodataset.org, keypoints).
# Divided by 10 as COCO's own code does, so that OKS agrees with it to the last bit.
COCO_PERSON_SIGMAS = tuple(
    tenfold / 10
    for tenfold in (.26, .25, .25, .35, .35, .79, .79, .72, .72, .62, .62, 1.07, 1.07, .87, .87, .89, .89)
)  # fmt: skip

COCO_IDS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33, 34, 35,
    36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65,
    67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90,
)  # fmt: skip
"""COCO's ids of its 80 categories; the ids missing from 1..90 were never labelled."""


@dataclass(frozen=True)
class KeypointNames:
    """Names and conventions of the K keypoints of a category.

    Parameters
    ----------
    names
        K names, e.g. ``left_eye``.
    skeleton
        Pairs of indices from 0 that are joined by a line in drawings.
    flip_pairs
        Pairs of indices from 0 that are swapped when the image is flipped (default: names that differ only in left and
        right).
    sigmas
        K constants of object keypoint similarity (default: COCO's for 17 keypoints, else 1 / K).
    """

    names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...] = ()
    flip_pairs: tuple[tuple[int, int], ...] = ()
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        for a, b in (*self.skeleton, *self.flip_pairs):
            if not (0 <= a < count and 0 <= b < count):
                raise ShapeError(f"keypoints: pair ({a}, {b}) names a keypoint outside 0..{count - 1}")
        if not self.flip_pairs:
            index = {name: i for i, name in enumerate(self.names)}
            mirrored = (
                (i, index.get(name.replace("left", "right"))) for i, name in enumerate(self.names) if "left" in name
            )
            object.__setattr__(self, "flip_pairs", tuple((i, j) for i, j in mirrored if j is not None))
        if not self.sigmas:
            object.__setattr__(self, "sigmas", COCO_PERSON_SIGMAS if count == 17 else (1 / count,) * count)
        if len(self.sigmas) != count:
            raise ShapeError(f"keypoints: expected {count} sigmas, one per name, got {len(self.sigmas)}")

    def __len__(self) -> int:
        return len(self.names)

    def flip_order(self) -> list[int]:
        """Return the K indices that reorder the keypoints of a flipped image."""
        order = list(range(len(self.names)))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return order


@dataclass(frozen=True)
class Categories(Sequence[str]):
    """Names of the categories, in the order of their labels 0, 1, 2 …; background is not one of them.

    Parameters
    ----------
    names
        C names, all different.
    ids
        C ids of the source file, e.g. COCO's 1 to 90 with gaps (default: the labels 0..C-1).
    is_thing
        C flags: True for things, False for stuff such as sky (default: all things).
    keypoints
        (category name, keypoints) of the categories with keypoints.
    supercategories
        C names of supercategories, or () for none.

    Examples
    --------
    >>> categories = Categories(("cat", "dog"), ids=(17, 18))
    >>> categories.index("dog"), categories.label_of_id(17), len(categories)
    (1, 0, 2)
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()
    is_thing: tuple[bool, ...] = ()
    keypoints: tuple[tuple[str, KeypointNames], ...] = ()
    supercategories: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        if not self.ids:
            object.__setattr__(self, "ids", tuple(range(len(self.names))))
        if not self.is_thing:
            object.__setattr__(self, "is_thing", (True,) * len(self.names))
        for field, values in (("names", self.names), ("ids", self.ids)):
            duplicates = sorted(str(value) for value, count in Counter(values).items() if count > 1)
            if duplicates:
                raise ShapeError(f"categories: {field} must differ, but {', '.join(duplicates)} occurs more than once")
        for field, length in (("ids", len(self.ids)), ("is_thing", len(self.is_thing))):
            if length != len(self.names):
                raise ShapeError(f"categories: expected {len(self.names)} {field}, one per name, got {length}")
        if self.supercategories and len(self.supercategories) != len(self.names):
            raise ShapeError(f"categories: expected {len(self.names)} supercategories, got {len(self.supercategories)}")
        known = set(self.names)
        for name, _ in self.keypoints:
            if name not in known:
                raise ShapeError(f"categories: keypoints are given for {name!r}, which is not one of {self.names}")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, label):  # type: ignore[no-untyped-def]
        return self.names[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def index(self, name: str, *bounds: int) -> int:
        """Return the label of a name; raise a ShapeError that lists the names if there is no such category."""
        try:
            return self.names.index(name, *bounds)
        except ValueError:
            known = ", ".join(self.names)
            raise ShapeError(f"category {name!r} is not one of: {known}{did_you_mean(name, self.names)}") from None

    def label_of_id(self, source_id: int) -> int:
        """Return the label of an id of the source file."""
        return self.ids.index(source_id)

    def keypoints_of(self, name: str) -> KeypointNames | None:
        """Return the keypoints of a category, None if it has none."""
        return dict(self.keypoints).get(name)

    @property
    def sigmas(self) -> Float[np.ndarray, "k"] | None:
        """(K,) sigmas of the first category with keypoints (data sets have one such category, or one scheme for all)."""
        return np.array(self.keypoints[0][1].sigmas) if self.keypoints else None
