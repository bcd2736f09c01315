"""The interface of a format, and what all writers share.

A format is one module with some of:

- ``find(path) -> list[Layout]``: the data sets of this format at a path, cheaply (names of files, the first bytes);
- ``read(layout, *, report) -> Dataset``: ``report`` gets each problem as a :class:`~otus.errors.DataError`; the default
  raises the first one, ``otus doctor`` collects them; after reporting, the reader leaves the faulty record out and goes on;
- ``write(datasets, folder, *, images) -> list[Loss]``: one data set, or its splits (:func:`as_splits`); what the target
  could not hold comes back, object by object.
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
"""What a writer does with the images: copy them, link to them (hard, else symbolic), or leave them where they are."""


@dataclass(frozen=True)
class Layout:
    """A data set recognised at a path, not read yet.

    ``source`` is the file or folder that a reader starts from, ``split`` its part where the format has parts. One that is
    ``secondary`` has other labels of the same images, and is taken only where its split is named.
    """

    format: str
    source: Path
    split: str | None = None
    secondary: bool = False


@dataclass(frozen=True)
class ConversionLoss:
    """Something that a target format cannot hold.

    ``kind`` is a word to count by (``holes``, ``parts``, ``crowd``, ``keypoints``, ``score`` …), ``object_id`` the id of
    the annotation, None for what concerns the whole image; ``image`` is empty for what concerns the whole data set.
    """

    kind: str
    image: str
    object_id: int | None
    message: str


def as_splits(datasets: Dataset | Sequence[Dataset]) -> list[Dataset]:
    """Return a writer's argument (one data set, or splits) as a list, checked for distinct names and equal categories.

    Raises
    ------
    DataError
        If the splits are not so.
    """
    splits = [datasets] if isinstance(datasets, Dataset) else list(datasets)
    names = [dataset.split for dataset in splits]
    if len(splits) > 1 and (None in names or len(set(names)) < len(names)):
        raise DataError(f"expected splits of different names, got {names}", remedy="write them one by one")
    if any(dataset.categories.names != splits[0].categories.names for dataset in splits):
        raise DataError(
            "the splits have different lists of categories", remedy="see otus.data.merging.remap_categories"
        )
    return splits


def split_file_name(dataset: Dataset) -> str:
    """Return a split's name as it is used in file names; empty without a split."""
    return (dataset.split or "").replace("/", "_")


def split_name_losses(dataset: Dataset, name: str | None) -> list[ConversionLoss]:
    """Report the loss of a split's name if readers of the target will see another."""
    if dataset.split in (None, name):
        return []
    now = f"is called {name!r} now" if name else "stands nowhere"
    return [ConversionLoss("split", "", None, f"the name of the split {dataset.split!r}, which {now}")]


def duplicate_image_error(dataset: Dataset, index: int) -> DataError:
    """Return the error for an image that is in two splits, which the target cannot distinguish."""
    remedy = "take it out of one, or convert the splits one by one"
    return DataError("the image stands in two splits", file=dataset.images.path(index), remedy=remedy)


def copy_or_link_images(dataset: Dataset, folder: Path, mode: ImageMode, *, names: Sequence[str] | None = None) -> None:
    """Copy or link a data set's images into ``folder``, under their own relative names or those given.

    One that is there already is the same image, of another split.
    """
    if mode == "none":
        return
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names or dataset.images.files):
        source, target = dataset.images.path(index), folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        if mode == "copy":
            shutil.copyfile(source, target)
            continue
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system
            target.symlink_to(source.resolve())
