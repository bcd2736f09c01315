"""Keeping some images aside, and finding out that one forgot to."""

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np

from otus.data.dataset import Dataset
from otus.errors import UsageError


def train_val_split(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Two data sets: most of the images, and a share of them to keep aside, at least one each.

    The hash of its file's name decides on an image, not its place, so the same share of the same images is always the same.
    Images of one name in several folders stay together: they may show the same from several cameras.

    Raises
    ------
    UsageError
        If the share is not between 0 and 1, or there is but one image.
    """
    if not 0 < share < 1:
        raise UsageError(f"val: expected a data set or a share between 0 and 1, got {share}")
    if len(dataset) < 2:
        raise UsageError(f"{dataset.source}: expected at least two images to keep some aside, got {len(dataset)}")
    order = np.array(sorted(range(len(dataset)), key=lambda index: _hash_key(dataset.images.files[index])))
    count = min(max(1, round(len(dataset) * share)), len(dataset) - 1)
    return dataset.select(np.sort(order[count:])), dataset.select(np.sort(order[:count]))


def shared_images(first: Dataset, second: Dataset) -> list[str]:
    """Files of the second data set that are in the first as well, under whatever name, byte by byte the same."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for index in range(len(first)):
        path = first.images.path(index)
        by_size[_size(path)].append(path)
    shared = []
    for index, file in enumerate(second.images.files):
        path = second.images.path(index)
        candidates = by_size.get(_size(path), [])
        if path in candidates or (candidates and _digest(path) in {_digest(one) for one in candidates}):
            shared.append(file)
    return shared


def fingerprint(dataset: Dataset, *, sizes: bool = True) -> str:
    """A digest of what a data set says: names of its files, and their sizes in bytes if wanted, categories, and objects."""
    digest = hashlib.sha256()
    for index, file in enumerate(dataset.images.files):
        digest.update(f"{file} {_size(dataset.images.path(index)) if sizes else ''}\n".encode())
    digest.update(repr((dataset.categories, dataset.split)).encode())
    objects = dataset.objects
    if objects is not None:
        for array in (objects.image_index, objects.labels, objects.boxes_xyxy, objects.is_crowd, objects.keypoints):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        outlines = objects.segmentations
        if outlines is not None:
            digest.update(outlines.counts_bytes.tobytes() + np.ascontiguousarray(outlines.points_xy).tobytes())
    return digest.hexdigest()[:16]


def _hash_key(file: str) -> tuple[bytes, bytes]:
    """What images are ordered by to choose some: the hash of the file's name, then of its path."""
    own, whole = (
        hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in (file.rsplit("/", 1)[-1], file)
    )
    return own, whole


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes()).hexdigest() if path.exists() else str(path)
