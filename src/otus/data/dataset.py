"""A data set in memory: images, categories and labels, independent of the format that they were read from.

Shape shorthand: M images, N objects in all of them. Objects are columns over the whole set, ordered by image, so a
million of them are a handful of arrays; :meth:`Dataset.instances` cuts out one image's. Nothing here decodes an image
until it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, UInt8

from otus.data.sample import Sample
from otus.errors import ShapeError
from otus.structures import (
    IGNORE,
    Categories,
    Instances,
    Objects,
    PanopticMap,
    Segment,
    Segmentations,
    SemanticMap,
)
from otus.structures import oriented as oriented_boxes

if TYPE_CHECKING:
    from otus.data.images import TargetSize


@dataclass(frozen=True, eq=False)
class Images:
    """The M images of a data set.

    Parameters
    ----------
    root
        The folder that ``files`` are relative to.
    files
        M paths with forward slashes; they are the images' keys too.
    sizes_hw
        (M, 2) height and width as shown, i.e. after EXIF orientation.
    ids
        What the source file calls each: COCO's numbers, else the file's stem.
    """

    root: Path
    files: tuple[str, ...]
    sizes_hw: Int[np.ndarray, "m 2"]
    ids: tuple[int | str, ...]

    def __post_init__(self) -> None:
        sizes = np.asarray(self.sizes_hw, dtype=np.int64).reshape(-1, 2)
        object.__setattr__(self, "sizes_hw", sizes)
        if not len(self.files) == len(sizes) == len(self.ids):
            raise ShapeError(f"images: {len(self.files)} files, {len(sizes)} sizes and {len(self.ids)} ids")

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / self.files[index]

    def size_hw(self, index: int) -> tuple[int, int]:
        """Return the height and width of one image."""
        return int(self.sizes_hw[index, 0]), int(self.sizes_hw[index, 1])


@dataclass(frozen=True, eq=False)
class SemanticFiles:
    """Label images with the category of every pixel.

    Parameters
    ----------
    files
        M paths, None for an image without one.
    categories
        What the labels mean (background is a category here, where the source has it).
    lookup
        (256,) the label of each value of the file, 255 for pixels to be ignored.
    void_values
        The values that the source says are of no category; others that ``lookup`` ignores are unknown to it.
    colours
        The colour of each value, where the label images are of colours (default: they are of values).
    """

    files: tuple[Path | None, ...]
    categories: Categories
    lookup: Int[np.ndarray, "256"]
    void_values: tuple[int, ...] = (IGNORE,)
    colours: tuple[tuple[int, int, int], ...] = ()

    def values(self, index: int, size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w"] | None:
        """Return the values of the label image of an image of ``size_hw``, None if there is none.

        Raises
        ------
        ImageError
            If it cannot be read, has another size, or a colour that is none of ``colours``.
        """
        from otus.data.images import read_colour_labels, read_label_image

        file = self.files[index]
        if file is None:
            return None
        if self.colours:
            return read_colour_labels(file, self.colours, expected_size_hw=size_hw)
        return read_label_image(file, expected_size_hw=size_hw)


@dataclass(frozen=True, eq=False)
class PanopticFiles:
    """COCO panoptic PNGs: a pixel's segment id is R + 256 G + 256^2 B.

    ``files`` and ``segments`` have one entry an image, None and () for an image without.
    """

    files: tuple[Path | None, ...]
    segments: tuple[tuple[Segment, ...], ...]
    categories: Categories


@dataclass(frozen=True)
class UnreadField:
    """A field of the source that no column holds, e.g. ``annotations[].caption``.

    ``count`` is how many values it has there, ``example`` the first of them as text.
    """

    field: str
    count: int
    example: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, categories and labels. ``dataset[i]`` is a :class:`Sample`; nothing is decoded before.

    Parameters
    ----------
    source
        The file or folder that it was read from.
    format, split
        The format's name, and the part (``train``, ``val`` …) where the source has parts.
    images, categories, objects
        See there. ``objects`` is None for a set without boxes (classification, semantic segmentation alone).
    semantic, panoptic
        Maps of pixels, where the source has them.
    image_labels
        (M,) the category of each image, for classification.
    unread
        What else the source says.
    """

    source: Path
    format: str
    images: Images
    categories: Categories
    objects: Objects | None = None
    split: str | None = None
    semantic: SemanticFiles | None = None
    panoptic: PanopticFiles | None = None
    image_labels: Int[np.ndarray, "m"] | None = None
    unread: tuple[UnreadField, ...] = ()

    def __post_init__(self) -> None:
        if self.objects is not None and len(self.objects):
            low, high = self.objects.labels.min(), self.objects.labels.max()
            if low < 0 or high >= len(self.categories):
                raise ShapeError(f"{self.source}: labels {low}..{high} for {len(self.categories)} categories")
            if self.objects.image_index[0] < 0 or self.objects.image_index[-1] >= len(self.images):
                raise ShapeError(f"{self.source}: objects of images outside 0..{len(self.images) - 1}")

    def __repr__(self) -> str:
        objects = "" if self.objects is None else f", {len(self.objects)} objects"
        split = "" if self.split is None else f", split {self.split}"
        what = f"{len(self)} images{objects}, {len(self.categories)} categories"
        return f"{type(self).__name__}({str(self.source)!r}, {self.format}{split}, {what})"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample: the decoded image with all of its labels."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return Sample(
            image=self.image(index),
            key=self.images.files[index],
            instances=None if self.objects is None else self.instances(index),
            semantic=self.semantic_map(index),
            panoptic=self.panoptic_map(index),
            label=None if self.image_labels is None else int(self.image_labels[index]),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def image(self, index: int, *, target_size: "TargetSize | None" = None) -> np.ndarray:
        """Read an image as uint8 (H, W, 3) RGB, checked against the size that its labels were made for.

        ``target_size`` as in :func:`~otus.data.images.read_reduced_image`.
        """
        from otus.data.images import read_reduced_image

        path, size_hw = self.images.path(index), self.images.size_hw(index)
        return read_reduced_image(path, target_size, expected_size_hw=size_hw)[0]

    def input(self, index: int, *, target_size: "TargetSize | None" = None) -> Sample:
        """Return one image with what a system may look at, and no labels; ``target_size`` as of :meth:`image`."""
        return Sample(self.image(index, target_size=target_size), self.images.files[index])

    @cached_property
    def _boundaries(self) -> Int[np.ndarray, "m_plus_1"]:
        assert self.objects is not None
        return np.searchsorted(self.objects.image_index, np.arange(len(self) + 1))

    def instances(self, index: int) -> Instances:
        """Return the objects of one image."""
        size_hw = self.images.size_hw(index)
        objects = self.objects
        if objects is None:
            return Instances.empty(size_hw, self.categories)
        here = slice(int(self._boundaries[index]), int(self._boundaries[index + 1]))
        rows = range(here.start, here.stop)

        def cut(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[here]

        def cut_masks(outlines: Segmentations | None) -> Any:
            return None if outlines is None else outlines.masks(rows, size_hw)

        corners = cut(objects.corners_xy)
        named = {name: column[here] for name, column in objects.columns.items()}
        return Instances(
            boxes_xyxy=objects.boxes_xyxy[here],
            labels=objects.labels[here],
            size_hw=size_hw,
            categories=self.categories,
            scores=cut(objects.scores),
            masks=cut_masks(objects.segmentations),
            keypoints=cut(objects.keypoints),
            oriented_boxes_xywhr=None if corners is None else oriented_boxes.from_corners(corners),
            cuboids=cut(objects.cuboids),
            amodal_boxes_xyxy=cut(objects.amodal_boxes_xyxy),
            amodal_masks=cut_masks(objects.amodal_segmentations),
            columns={
                **named,
                "ids": objects.ids[here],
                "areas": objects.areas[here],
                "is_crowd": objects.is_crowd[here],
            },
        )

    def image_numbers(self) -> Int[np.ndarray, "m"]:
        """The ids of the images where they are numbers, else their indices: file names may be the same in two folders."""
        numbered = all(isinstance(one, int) for one in self.images.ids)
        return np.array(self.images.ids if numbered else range(len(self)), dtype=np.int64)

    def semantic_map(self, index: int) -> SemanticMap | None:
        """Return the semantic map of one image, None if there is none."""
        values = None if self.semantic is None else self.semantic.values(index, self.images.size_hw(index))
        if self.semantic is None or values is None:
            return None
        return SemanticMap(self.semantic.lookup.astype(np.uint8)[values], self.semantic.categories)

    def panoptic_map(self, index: int) -> PanopticMap | None:
        """Return the panoptic map of one image, None if there is none."""
        file = self.panoptic.files[index] if self.panoptic else None
        if self.panoptic is None or file is None:
            return None
        from otus.data.images import read_image

        colours = read_image(file, expected_size_hw=self.images.size_hw(index)).astype(np.int64)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        return PanopticMap(ids, self.panoptic.segments[index], self.panoptic.categories)

    def select(self, indices: Sequence[int] | np.ndarray) -> "Dataset":
        """Return the subset of the given images, in that order."""
        chosen = np.arange(len(self))[np.asarray(indices) if len(indices) else []].tolist()
        images = Images(
            root=self.images.root,
            files=tuple(self.images.files[i] for i in chosen),
            sizes_hw=self.images.sizes_hw[chosen],
            ids=tuple(self.images.ids[i] for i in chosen),
        )
        objects = self.objects
        if objects is not None:
            spans = [np.arange(self._boundaries[i], self._boundaries[i + 1]) for i in chosen]
            rows = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
            place = np.repeat(np.arange(len(chosen)), [len(span) for span in spans])
            objects = replace(
                replace(objects, image_index=np.zeros(len(objects), np.int64)).take(rows), image_index=place
            )
        semantic, panoptic = self.semantic, self.panoptic
        if semantic is not None:
            semantic = replace(semantic, files=tuple(semantic.files[i] for i in chosen))
        if panoptic is not None:
            panoptic = replace(
                panoptic,
                files=tuple(panoptic.files[i] for i in chosen),
                segments=tuple(panoptic.segments[i] for i in chosen),
            )
        labels = None if self.image_labels is None else self.image_labels[chosen]
        return replace(self, images=images, objects=objects, semantic=semantic, panoptic=panoptic, image_labels=labels)
