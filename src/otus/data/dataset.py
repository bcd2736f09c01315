"""A data set in memory: images, categories and labels, whatever format they were read from.

Shape shorthand: M images, N objects in all of them. Objects are columns over the whole set, ordered by image, so a
million of them are a handful of arrays; :meth:`Dataset.instances` returns those of one image. Images are decoded only
on access.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, UInt8

from otus.data.sample import Sample
from otus.errors import DataError, ShapeError
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
        M paths with forward slashes; also the keys of the images.
    sizes_hw
        (M, 2) height and width after EXIF orientation is applied.
    ids
        M ids of the source: COCO's image ids, else the file's stem.
    temporary
        The files, removed at exit, of images that the source itself contains, by their entry in ``files``.
    """

    root: Path
    files: tuple[str, ...]
    sizes_hw: Int[np.ndarray, "m 2"]
    ids: tuple[int | str, ...]
    temporary: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = np.asarray(self.sizes_hw, dtype=np.int64).reshape(-1, 2)
        object.__setattr__(self, "sizes_hw", sizes)
        if not len(self.files) == len(sizes) == len(self.ids):
            raise ShapeError(f"images: {len(self.files)} files, {len(sizes)} sizes and {len(self.ids)} ids")

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        file = self.files[index]
        return self.temporary.get(file) or self.root / file

    def size_hw(self, index: int) -> tuple[int, int]:
        """Return the height and width of one image."""
        return int(self.sizes_hw[index, 0]), int(self.sizes_hw[index, 1])


@dataclass(frozen=True, eq=False)
class SemanticFiles:
    """Label images with the category of every pixel.

    Parameters
    ----------
    files
        M paths, None for an image without label image.
    categories
        The categories that the labels index (including background, if the source has it).
    lookup
        (256,) the label of each pixel value of the files, 255 for values that are ignored.
    void_values
        The values that the source declares as void; further values that ``lookup`` ignores are undeclared.
    colours
        The RGB colour of each value, if the label images are RGB (default: they hold the values).
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

    ``files`` and ``segments`` have one entry per image: None and () for an image without map.
    """

    files: tuple[Path | None, ...]
    segments: tuple[tuple[Segment, ...], ...]
    categories: Categories


@dataclass(frozen=True)
class UnreadField:
    """A field of the source that no column holds, e.g. ``annotations[].caption``.

    ``count`` is the number of its values in the source, ``example`` the first of them as text.
    """

    field: str
    count: int
    example: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, categories and labels. ``dataset[i]`` is a :class:`Sample`, decoded on access.

    Parameters
    ----------
    source
        The file or folder that it was read from.
    format, split
        Name of the format; name of the split (``train``, ``val`` …), None if the source has no splits.
    images, categories, objects
        The images, categories and objects; ``objects`` is None without boxes (classification, semantic segmentation).
    semantic, panoptic
        Semantic and panoptic maps, if the source has them.
    image_labels
        (M,) class index of each image, for classification.
    unread
        Fields of the source that no column holds.
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
        """Return one sample: the decoded image with all its labels."""
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
        """Read an image as uint8 (H, W, 3) RGB; raise if its size is not the one that the labels state.

        ``target_size`` as in :func:`~otus.data.images.read_reduced_image`.
        """
        from otus.data.images import read_reduced_image

        path, size_hw = self.images.path(index), self.images.size_hw(index)
        return read_reduced_image(path, target_size, expected_size_hw=size_hw)[0]

    def input(self, index: int, *, target_size: "TargetSize | None" = None) -> Sample:
        """Return the sample of one image without labels, for prediction; ``target_size`` as in :meth:`image`."""
        return Sample(self.image(index, target_size=target_size), self.images.files[index])

    @cached_property
    def _first_rows(self) -> Int[np.ndarray, "m_plus_1"]:
        assert self.objects is not None
        return np.searchsorted(self.objects.image_index, np.arange(len(self) + 1))

    def instances(self, index: int) -> Instances:
        """Return the objects of one image."""
        size_hw = self.images.size_hw(index)
        objects = self.objects
        if objects is None:
            return Instances.empty(size_hw, self.categories)
        rows = slice(int(self._first_rows[index]), int(self._first_rows[index + 1]))

        def slice_column(column: np.ndarray | None) -> np.ndarray | None:
            return None if column is None else column[rows]

        def slice_masks(segmentations: Segmentations | None) -> Any:
            return None if segmentations is None else segmentations.masks(range(rows.start, rows.stop), size_hw)

        corners = slice_column(objects.corners_xy)
        named = {name: column[rows] for name, column in objects.columns.items()}
        return Instances(
            boxes_xyxy=objects.boxes_xyxy[rows],
            labels=objects.labels[rows],
            size_hw=size_hw,
            categories=self.categories,
            scores=slice_column(objects.scores),
            masks=slice_masks(objects.segmentations),
            keypoints=slice_column(objects.keypoints),
            oriented_boxes_xywhr=None if corners is None else oriented_boxes.from_corners(corners),
            cuboids=slice_column(objects.cuboids),
            amodal_boxes_xyxy=slice_column(objects.amodal_boxes_xyxy),
            amodal_masks=slice_masks(objects.amodal_segmentations),
            columns={
                **named,
                "ids": objects.ids[rows],
                "areas": objects.areas[rows],
                "is_crowd": objects.is_crowd[rows],
            },
        )

    def image_numbers(self) -> Int[np.ndarray, "m"]:
        """Return the image ids if all are integers, else the indices of the images (file stems need not be unique)."""
        are_integers = all(isinstance(image_id, int) for image_id in self.images.ids)
        return np.array(self.images.ids if are_integers else range(len(self)), dtype=np.int64)

    def semantic_map(self, index: int) -> SemanticMap | None:
        """Return the semantic map of one image, None if there is none."""
        values = None if self.semantic is None else self.semantic.values(index, self.images.size_hw(index))
        if self.semantic is None or values is None:
            return None
        return SemanticMap(self.semantic.lookup.astype(np.uint8)[values], self.semantic.categories)

    def panoptic_map(self, index: int) -> PanopticMap | None:
        """Return the panoptic map of one image, None if there is none.

        Raises
        ------
        DataError
            If its file cannot be read or has another size, or its pixels have ids that no segment has.
        """
        file = self.panoptic.files[index] if self.panoptic else None
        if self.panoptic is None or file is None:
            return None
        from otus.data.images import read_image

        colours = read_image(file, expected_size_hw=self.images.size_hw(index)).astype(np.int64)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        try:
            return PanopticMap(ids, self.panoptic.segments[index], self.panoptic.categories)
        except ShapeError as error:
            problem = str(error).removeprefix("panoptic map: ")
            remedy = "add them to segments_info of the JSON file, or correct the pixels"
            raise DataError(problem, file=file, remedy=remedy, kind="wrong_map") from None

    def select(self, indices: Sequence[int] | np.ndarray) -> "Dataset":
        """Return the subset of the given images, in that order."""
        indices = np.arange(len(self))[np.asarray(indices) if len(indices) else []].tolist()
        images = replace(
            self.images,
            files=tuple(self.images.files[i] for i in indices),
            sizes_hw=self.images.sizes_hw[indices],
            ids=tuple(self.images.ids[i] for i in indices),
        )
        objects = self.objects
        if objects is not None:
            spans = [np.arange(self._first_rows[i], self._first_rows[i + 1]) for i in indices]
            rows = np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)
            image_index = np.repeat(np.arange(len(indices)), [len(span) for span in spans])
            objects = replace(
                replace(objects, image_index=np.zeros(len(objects), np.int64)).take(rows), image_index=image_index
            )
        semantic, panoptic = self.semantic, self.panoptic
        if semantic is not None:
            semantic = replace(semantic, files=tuple(semantic.files[i] for i in indices))
        if panoptic is not None:
            panoptic = replace(
                panoptic,
                files=tuple(panoptic.files[i] for i in indices),
                segments=tuple(panoptic.segments[i] for i in indices),
            )
        labels = None if self.image_labels is None else self.image_labels[indices]
        return replace(self, images=images, objects=objects, semantic=semantic, panoptic=panoptic, image_labels=labels)
