"""The interface of a data set format, and the functions that writers share.

A format is one module with some of:

- ``find(path) -> list[Layout]``: the data sets of this format at a path, from file names and first bytes only;
- ``read(layout, *, report) -> Dataset``: reads a data set. ``report`` is called with a :class:`~otus.errors.DataError` for
  each invalid record: by default it raises the first, ``otus doctor`` collects them. If it returns, the record is skipped;
- ``write(datasets, folder, *, images) -> list[ConversionLoss]``: writes a data set, or its splits (:func:`as_splits`), and
  returns what the format could not hold, object by object.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from otus.data.dataset import Dataset
from otus.errors import DataError

ImageMode = Literal["copy", "link", "none"]
"""Whether a writer copies the images, links to them (hard links, else symbolic), or does neither."""


@dataclass(frozen=True)
class Layout:
    """A data set found at a path, not read yet.

    ``source`` is the file or folder to read, ``split`` the name of its split, if any. A ``secondary`` layout has other
    labels of the same images; it is left out by default, see :func:`otus.data.open.choose_layouts`.
    """

    format: str
    source: Path
    split: str | None = None
    secondary: bool = False


@dataclass(frozen=True)
class ConversionLoss:
    """Information that a target format cannot hold.

    ``kind`` groups losses (``holes``, ``parts``, ``crowd``, ``keypoints``, ``score`` …). ``object_id`` is the id of the
    annotation, None for a loss of the whole image; ``image`` is empty for a loss of the whole data set.
    """

    kind: str
    image: str
    object_id: int | None
    message: str


def as_splits(datasets: Dataset | Sequence[Dataset]) -> list[Dataset]:
    """Return one data set, or its splits, as a list, checked for unique split names and equal categories.

    Raises
    ------
    DataError
        If split names are missing or repeated, or categories differ.
    """
    splits = [datasets] if isinstance(datasets, Dataset) else list(datasets)
    names = [dataset.split for dataset in splits]
    if len(splits) > 1 and (None in names or len(set(names)) < len(names)):
        raise DataError(f"expected unique split names, got {names}", remedy="write the splits one by one")
    if any(dataset.categories.names != splits[0].categories.names for dataset in splits):
        raise DataError(
            "the splits have different lists of categories", remedy="see otus.data.merging.remap_categories"
        )
    return splits


def split_file_name(dataset: Dataset) -> str:
    """Return a split's name for use in file names: ``/`` becomes ``_``; empty without a split."""
    return (dataset.split or "").replace("/", "_")


def split_name_losses(dataset: Dataset, name: str | None) -> list[ConversionLoss]:
    """Return the loss of a data set's split name, if the target format stores another ``name`` or none."""
    if dataset.split in (None, name):
        return []
    outcome = f"becomes {name!r}" if name else "is not stored"
    return [ConversionLoss("split", "", None, f"the name of the split {dataset.split!r}, which {outcome}")]


def duplicate_image_error(dataset: Dataset, index: int) -> DataError:
    """Return the error for an image in two splits, which the target format cannot hold."""
    remedy = "remove it from one, or convert the splits one by one"
    return DataError("the image is in two splits", file=dataset.images.path(index), remedy=remedy)


def copy_or_link_images(dataset: Dataset, folder: Path, mode: ImageMode, *, names: Sequence[str] | None = None) -> None:
    """Copy or link a data set's images into ``folder``, under ``names`` (default: their own relative paths).

    Existing files are kept: they are the same images, written with another split. Temporary images are always copied.
    """
    if mode == "none":
        return
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names or dataset.images.files):
        source, target = dataset.images.path(index), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        if mode == "copy" or dataset.images.files[index] in dataset.images.temporary:
            shutil.copyfile(source, target)
            continue
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system
            target.symlink_to(source.resolve())
