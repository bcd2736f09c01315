"""Check that images can be read, and identify them by content."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from otus.data.checks.near_duplicates import SIDE
from otus.data.dataset import Dataset
from otus.data.images import check_image_size, read_thumbnail
from otus.errors import DataError

DIGITS = 12
"""Hexadecimal digits of an image's digest."""
_LISTED = 20


def check_images(
    datasets: Sequence[Dataset], *, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, str]]:
    """Decode every image and map once, and return the digest of each file by name, per data set.

    JPEGs are decoded at a fraction of their size, so this costs less than reading them for one epoch.

    Raises
    ------
    DataError
        If some are missing, cut off, or of another size than their labels were made for; all are listed.
    """
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    faults: list[DataError] = []
    digests: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, looked in enumerate(pool.map(lambda place: _look(*place), places), start=1):
            if isinstance(looked, DataError):
                faults.append(looked)
            else:
                digests.append(looked)
            if progress is not None:
                progress(done, len(places))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        lines = [f"  {fault}" for fault in faults[:_LISTED]]
        lines += [f"  … and {len(faults) - _LISTED} more"] if len(faults) > _LISTED else []
        raise DataError(
            "\n".join([f"{len(faults)} of {len(places)} images cannot be used:", *lines]), kind=faults[0].kind
        )
    remaining = iter(digests)
    return [{file: next(remaining) for file in dataset.images.files} for dataset in datasets]


def file_digest(path: Path) -> str:
    """Return the digest of a file, :data:`DIGITS` hexadecimal digits; empty if it is missing."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=DIGITS // 2).hexdigest()
    except OSError:
        return ""


def count_training_images(training: Mapping[str, Any], dataset: Dataset) -> int:
    """Return how many images of a data set a model was trained on, by the digests in its training record."""
    joined = training.get("image_digests", "")
    known = {joined[place : place + DIGITS] for place in range(0, len(joined), DIGITS)}
    if not known:
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sum(digest in known for digest in pool.map(file_digest, map(dataset.images.path, range(len(dataset)))))


def _look(dataset: Dataset, index: int) -> str | DataError:
    path = dataset.images.path(index)
    try:
        _, size_hw = read_thumbnail(path, side=SIDE)
        check_image_size(size_hw, dataset.images.size_hw(index), str(path))
        dataset.semantic_map(index), dataset.panoptic_map(index)
    except DataError as fault:
        return fault
    return file_digest(path)
