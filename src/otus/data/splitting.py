"""Split off validation images, and detect images that two data sets share."""

import hashlib
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset
from otus.errors import UsageError


def train_val_split(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Split a data set into training and validation; the latter has the given fraction of the images.

    Images are sorted by the hash of their file names, so the split does not depend on the order in which they are
    listed. Images of the same name in several folders are adjacent in this order: they may show the same scene from
    several cameras.

    Raises
    ------
    UsageError
        If the fraction is not between 0 and 1, or there is only one image.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"val: expected a data set or a fraction between 0 and 1, got {fraction}")
    if len(dataset) < 2:
        raise UsageError(
            f"{dataset.source}: expected at least two images to split off validation images, got {len(dataset)}"
        )
    order = np.array(sorted(range(len(dataset)), key=lambda index: _hash_key(dataset.images.files[index])))
    count = min(max(1, round(len(dataset) * fraction)), len(dataset) - 1)
    return dataset.select(np.sort(order[count:])), dataset.select(np.sort(order[:count]))


def shared_images(first: Dataset, second: Dataset) -> list[str]:
    """Return the image files of the second data set whose content also occurs in the first, under any name."""
    by_size: dict[int, set[Path]] = defaultdict(set)
    for index in range(len(first)):
        path = first.images.path(index)
        by_size[_size(path)].add(path)

    @cache  # a file is read once, and only if another has its size
    def digests_of_size(size: int) -> set[str]:
        return {_digest(path) for path in by_size[size]}

    shared = []
    for index, file in enumerate(second.images.files):
        path = second.images.path(index)
        size = _size(path)
        if size in by_size and (path in by_size[size] or _digest(path) in digests_of_size(size)):
            shared.append(file)
    return shared


def fingerprint(dataset: Dataset, *, sizes: bool = True) -> str:
    """Return a digest of a data set's content: file names, categories and labels, and optionally image sizes in bytes."""
    digest = hashlib.sha256()
    for index, file in enumerate(dataset.images.files):
        size = _size(dataset.images.path(index)) if sizes else ""
        digest.update(f"{file} {size}\n".encode("utf-8", "surrogateescape"))
    digest.update(repr((dataset.categories, dataset.split)).encode())
    if dataset.image_labels is not None:
        digest.update(np.ascontiguousarray(dataset.image_labels).tobytes())
    for maps in (dataset.semantic, dataset.panoptic):
        if maps is not None:
            digest.update(repr(replace(maps, files=())).encode())
            for map_file in maps.files:
                digest.update((_digest(map_file) if map_file else "-").encode("utf-8", "surrogateescape"))
    objects = dataset.objects
    if objects is not None:
        for array in (objects.image_index, objects.labels, objects.boxes_xyxy, objects.is_crowd, objects.keypoints):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        segmentations = objects.segmentations
        if segmentations is not None:
            digest.update(
                segmentations.counts_bytes.tobytes() + np.ascontiguousarray(segmentations.points_xy).tobytes()
            )
    return digest.hexdigest()[:16]


def _hash_key(file: str) -> tuple[bytes, bytes]:
    """Return the sort key of the split: the hash of the file name, then of the path."""
    name_hash, path_hash = (
        hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in (file.rsplit("/", 1)[-1], file)
    )
    return name_hash, path_hash


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest() if path.exists() else str(path)
