"""Check that images can be read, and identify them by a digest of their file."""

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
_MAX_LISTED = 20


def check_images(
    datasets: Sequence[Dataset], *, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, str]]:
    """Decode every image and label map once; return, for each data set, the digest of each image by file name.

    JPEGs are decoded at a fraction of their size, which takes less time than an epoch does to read them.

    Parameters
    ----------
    datasets
        The data sets to check.
    progress
        Called after each image with the number of images checked so far, and of all images.

    Raises
    ------
    DataError
        If images or label maps are missing, truncated or not of the expected size; the message lists up to 20.
    """
    items = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    problems: list[DataError] = []
    digests: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, result in enumerate(pool.map(lambda item: _check_image(*item), items), start=1):
            if isinstance(result, DataError):
                problems.append(result)
            else:
                digests.append(result)
            if progress is not None:
                progress(done, len(items))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"  {problem}" for problem in problems[:_MAX_LISTED]]
        lines += [f"  … and {len(problems) - _MAX_LISTED} more"] if len(problems) > _MAX_LISTED else []
        raise DataError(
            "\n".join([f"{len(problems)} of {len(items)} images cannot be used:", *lines]), kind=problems[0].kind
        )
    remaining = iter(digests)
    return [{file: next(remaining) for file in dataset.images.files} for dataset in datasets]


def file_digest(path: Path) -> str:
    """Return the BLAKE2b digest of a file, :data:`DIGITS` hexadecimal digits; empty if it cannot be read."""
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=DIGITS // 2).hexdigest()
    except OSError:
        return ""


def count_training_images(training: Mapping[str, Any], dataset: Dataset) -> int:
    """Return how many images of a data set a model was trained on, by the image digests in its training record."""
    digits = training.get("image_digests", "")
    trained_on = {digits[start : start + DIGITS] for start in range(0, len(digits), DIGITS)}
    if not trained_on:
        return 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths = map(dataset.images.path, range(len(dataset)))
        return sum(digest in trained_on for digest in pool.map(file_digest, paths))


def _check_image(dataset: Dataset, index: int) -> str | DataError:
    """Return the digest of an image, or what is wrong with it or its label maps."""
    path = dataset.images.path(index)
    try:
        _, size_hw = read_thumbnail(path, side=SIDE)
        check_image_size(size_hw, dataset.images.size_hw(index), str(path))
        dataset.semantic_map(index)
        dataset.panoptic_map(index)
    except DataError as problem:
        return problem
    return file_digest(path)
